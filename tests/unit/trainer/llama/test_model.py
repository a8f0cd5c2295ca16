"""Scores by a GGUF, over a decoder made of a table: what is decoded at once is bounded, whatever the answers' length."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.llama import model
from finetune_trainer.llama.model import Choice, GGUFModel, token_losses

VOCABULARY = 50
CHOICES = [
    Choice([1, 2, 3], [[4, 5, 6, 7, 8, 9], [10], [11, 12, 13]]),
    Choice([], [[20, 21, 22, 23]]),
    Choice([30], [[31, 32]] * 8),
]


def row(token: int, position: int) -> model.Logits:
    return np.random.default_rng([token, position]).standard_normal(VOCABULARY).astype(np.float32)


class TableModel(GGUFModel):
    def __init__(self) -> None:
        self.vocabulary_size, self.cells = VOCABULARY, 4096
        self.decoded: list[int] = []

    def _decode_fresh(self, batch: model._Batch) -> model.Logits:
        return self._decode(batch)

    def _decode(self, batch: model._Batch) -> model.Logits:
        self.decoded.append(sum(batch.outputs))
        wanted = zip(batch.tokens, batch.positions, batch.outputs, strict=True)
        return np.stack([row(token, position) for token, position, output in wanted if output])


def expected(choice: Choice, answer: list[int]) -> list[float]:
    ids = [*choice.prompt, *answer]
    first = max(len(choice.prompt), 1)
    logits = np.stack([row(ids[position], position) for position in range(first - 1, len(ids) - 1)])
    return token_losses(logits, ids[first:]).tolist()


@pytest.mark.parametrize("outputs", [1, 2, 3, 1000])
def test_losses_are_those_of_each_answer_however_few_logits_fit_at_once(monkeypatch: pytest.MonkeyPatch, outputs: int) -> None:
    monkeypatch.setattr(model, "_OUTPUT_FLOATS", outputs * VOCABULARY)
    table = TableModel()
    for choice, found in zip(CHOICES, table.losses(CHOICES), strict=True):
        assert [losses.tolist() for losses in found] == [pytest.approx(expected(choice, list(answer))) for answer in choice.answers]
    assert max(table.decoded) <= outputs


def test_a_lone_token_without_a_prompt_has_no_loss() -> None:
    assert [losses.tolist() for losses in next(TableModel().losses([Choice([], [[7]])]))] == [[]]
