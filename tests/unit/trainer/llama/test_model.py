"""Scores by a GGUF, over a decoder made of a table: what rows share is decoded once and changes nothing; what is held at once is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.llama import model
from finetune_trainer.llama.batching import MAX_SEQUENCES, Batch, Request, groups, shared_length
from finetune_trainer.llama.model import Choice, Generation, GGUFModel, token_losses
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY = 50
CHOICES = [
    Choice([1, 2, 3], [[4, 5, 6, 7, 8, 9], [10], [11, 12, 13]]),
    Choice([], [[20, 21, 22, 23]]),
    Choice([30], [[31, 32]] * 8),
]


def row(prefix: tuple[int, ...]) -> model.Logits:
    """Logits after a text: any other text gives others."""
    return np.random.default_rng(list(prefix)).standard_normal(VOCABULARY).astype(np.float32)


class TableModel(GGUFModel):
    """Remembers each sequence's tokens as llama.cpp's cells do, and refuses what llama.cpp refuses."""

    def __init__(self, shares_beginnings: bool = True) -> None:
        self.shares_beginnings = shares_beginnings
        self.vocabulary_size, self.cells = VOCABULARY, 4096
        self.asked: list[int] = []
        self.decoded = 0
        self.held: dict[int, tuple[int, ...]] = {}

    def ends_generation(self, token: int) -> bool:
        return token % 5 == 0

    def _decode_fresh(self, batch: Batch) -> model.Logits:
        self.held = {}
        return self._decode(batch)

    def _decode(self, batch: Batch) -> model.Logits:
        self.asked.append(sum(batch.outputs))
        self.decoded += len(batch.tokens)
        assert len(batch.tokens) <= self.cells
        found = []
        for token, position, sequences, output in zip(batch.tokens, batch.positions, batch.sequences, batch.outputs, strict=True):
            assert self.shares_beginnings or len(sequences) == 1
            (before,) = {self.held.get(sequence, ()) for sequence in sequences}  # a shared token has one past
            assert position == len(before)
            self.held |= dict.fromkeys(sequences, (*before, token))
            found += [row((*before, token))] if output else []
        return np.stack(found)


def expected(choice: Choice, answer: Sequence[int]) -> list[float]:
    ids = (*choice.prompt, *answer)
    first = max(len(choice.prompt), 1)
    after = [row(ids[:position]) for position in range(first, len(ids))]
    return token_losses(np.stack(after), ids[first:]).tolist() if after else []


def continued(prompt: Sequence[int], limit: int) -> Generation:
    ids = tuple(prompt)
    while len(ids) < len(prompt) + limit:
        token = int(row(ids).argmax())
        if token % 5 == 0:
            return Generation(list(ids[len(prompt) :]), ended=True)
        ids = (*ids, token)
    return Generation(list(ids[len(prompt) :]), ended=False)


@pytest.mark.parametrize("outputs", [1, 2, 3, 1000])
def test_losses_are_those_of_each_answer_however_few_logits_fit_at_once(monkeypatch: pytest.MonkeyPatch, outputs: int) -> None:
    monkeypatch.setattr(model, "_OUTPUT_FLOATS", outputs * VOCABULARY)
    table = TableModel()
    for choice, found in zip(CHOICES, table.losses(CHOICES), strict=True):
        assert [losses.tolist() for losses in found] == [pytest.approx(expected(choice, answer)) for answer in choice.answers]
    assert max(table.asked) <= outputs


def test_a_lone_token_without_a_prompt_has_no_loss() -> None:
    assert [losses.tolist() for losses in next(TableModel().losses([Choice([], [[7]])]))] == [[]]


def test_an_empty_answer_has_no_loss_and_moves_none() -> None:
    choice = Choice([1, 2], [[], [3, 4], []])
    (found,) = TableModel().losses([choice])
    assert [losses.tolist() for losses in found] == [[], pytest.approx(expected(choice, [3, 4])), []]


few_ids = st.lists(st.integers(1, 3), max_size=5)  # few values, so that beginnings coincide
choices = st.builds(Choice, few_ids, st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=8))


@given(asked=st.lists(choices, min_size=1, max_size=6), shares=st.booleans())
def test_losses_are_those_of_each_row_by_itself_whatever_rows_share(asked: list[Choice], shares: bool) -> None:
    for choice, found in zip(asked, TableModel(shares).losses(asked), strict=True):
        assert [losses.tolist() for losses in found] == [pytest.approx(expected(choice, answer)) for answer in choice.answers]


@given(rows=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=6), shares=st.booleans(), data=st.data())
def test_logits_are_those_of_each_row_by_itself(rows: list[list[int]], shares: bool, data: st.DataObject) -> None:
    asked = [(ids, sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1)))) for ids in rows]
    for (ids, positions), found in zip(asked, TableModel(shares).logits(asked), strict=True):
        assert found.tolist() == [row(tuple(ids[: position + 1])).tolist() for position in positions]


@given(prompts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=6), shares=st.booleans())
def test_continuations_are_those_of_each_prompt_by_itself(prompts: list[list[int]], shares: bool) -> None:
    assert list(TableModel(shares).generate(prompts, 4)) == [continued(prompt, 4) for prompt in prompts]


def test_what_all_rows_begin_with_is_decoded_once_for_each_group() -> None:
    system = list(range(1000, 3000))
    table = TableModel()
    list(table.losses([Choice([*system, index], [[1, 2], [3, 4]]) for index in range(20)]))
    assert table.decoded == 2000 + 20 * 3


def test_a_group_fits_its_context_and_its_sequences() -> None:
    requests = [Request([1, 2, index], 103, 10, sequences=8) for index in range(30)]
    found = list(groups(requests, cells=400, outputs=1000))
    assert [index for group in found for index in group] == list(range(30))
    assert {len(group) for group in found[:-1]} == {3}  # 103 + 2 * 101 cells; a fourth would not fit 400
    assert len(next(groups([Request([1], 2, 1, sequences=50)] * 9, 4000, 1000))) == MAX_SEQUENCES // 50
    assert len(next(groups([Request([1], 2, 300)] * 9, 4000, 1000))) == 3


def test_a_row_that_fits_no_context_is_refused() -> None:
    with pytest.raises(StageError, match="row 1 needs a context of 9 tokens; it has 8"):
        list(groups([Request([1], 8, 1), Request([1], 9, 1)], 8, 100))


@pytest.mark.parametrize(("one", "other", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([4], [4], 1)])
def test_shared_beginnings(one: list[int], other: list[int], length: int) -> None:
    assert shared_length(one, other) == length
