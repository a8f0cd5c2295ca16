"""Metrics from a model's losses and texts, with models made of a table."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from finetune_api.sections.evaluation import ANSWER_CHOICES, Evaluation
from finetune_api.sections.evaluation import METRICS as DIRECTIONS
from finetune_trainer.bootstrap import Samples
from finetune_trainer.evaluate.metrics import METRICS, measure, normalized, preferred
from finetune_trainer.evaluate.passes import choice_blocks, context_tokens, draw
from finetune_trainer.llama.model import Choice, Generation, token_losses
from finetune_trainer.prepared import HeldOutRow


def row(index: int, answer: str = "", **more: object) -> HeldOutRow:
    fields = {"dataset": "d", "row": index, "group": f"g{index // 2}", "kind": "Chat", "prompt": "p", "prompt_ids": [1, 100 + index]}
    return HeldOutRow.model_validate(fields | {"answer": answer or f"a{index}", "answer_ids": [200 + index, 2]} | more)


class TableModel:
    """Knows question n's answer when `knows(n)`; an answer's own cost is `cost(answer)`, whatever the question."""

    def __init__(self, known: frozenset[int]) -> None:
        self.known = known

    def losses(self, choices: Sequence[Choice]) -> Iterator[list[npt.NDArray[np.float64]]]:
        for choice in choices:
            question = choice.prompt[-1] - 100
            costs = [
                (answer[0] * 37) % 11 - (0.5 if answer[0] - 200 == question and question in self.known else 0) for answer in choice.answers
            ]
            yield [np.array([cost, 0.0]) for cost in costs]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Generation]:
        for prompt in prompts:
            question = prompt[-1] - 100
            yield Generation([question], ended=question in self.known)

    def text(self, ids: Sequence[int]) -> str:
        return f" a{ids[0]}\n" if ids[0] in self.known else "else"


ROWS = [row(index) for index in range(40)]


def measured(model: TableModel, rows: Sequence[HeldOutRow], *metrics: str) -> dict[str, Samples]:
    return measure(model, rows, frozenset(metrics), Evaluation(), lambda share: None)


def test_true_answers_on_the_diagonal_are_preferred_after_their_own_cost_is_taken_out() -> None:
    cost = np.arange(8.0)
    losses = np.tile(cost, (8, 1))
    assert preferred((losses - 0.1 * np.eye(8))[None]).mean() == 1
    assert preferred((losses + 0.1 * np.eye(8))[None]).mean() == 0


@pytest.mark.parametrize(("known", "share"), [(range(40), 1.0), (range(0), 0.125), (range(20), 0.55)])
def test_answer_choice_is_the_share_of_known_answers_and_chance_for_the_rest(known: range, share: float) -> None:
    found = measured(TableModel(frozenset(known)), ROWS, "AnswerChoice")["AnswerChoice"]
    assert found.n == 40
    assert found.totals.mean() == pytest.approx(share, abs=0.1)


def test_blocks_are_full_and_hold_different_answers() -> None:
    rows = [row(index, answer_ids=[200 + index % 10]) for index in range(60)]
    blocks = choice_blocks(rows)
    assert len(blocks) >= 6
    for block in blocks:
        assert len(block) == len({tuple(rows[index].answer_ids) for index in block}) == ANSWER_CHOICES
    used = [index for block in blocks for index in block]
    assert len(used) == len(set(used))


def test_rows_that_fill_no_block_give_no_samples() -> None:
    assert measured(TableModel(frozenset()), ROWS[:7], "AnswerChoice") == {}


def test_perplexity_is_of_each_rows_own_answer_whether_or_not_its_block_is_scored_with_it() -> None:
    rows = [*ROWS[:21], row(30, kind="Text", prompt="", prompt_ids=[100])]  # five rows fill no block
    alone = measured(TableModel(frozenset()), rows, "Perplexity")["Perplexity"]
    beside = measured(TableModel(frozenset()), rows, "Perplexity", "AnswerChoice")
    assert alone.totals.tolist() == [(index + 200) * 37 % 11 for index in (*range(21), 30)]
    assert beside["Perplexity"].totals.tolist() == alone.totals.tolist()
    assert beside["AnswerChoice"].n == 16


def test_every_metric_that_a_gate_may_name_is_measured() -> None:
    assert sorted(METRICS) == sorted(DIRECTIONS)


def test_progress_is_told_row_by_row_and_ends_at_all() -> None:
    told: list[float] = []
    measure(TableModel(frozenset()), ROWS, frozenset({"Perplexity", "ExactMatch"}), Evaluation(), told.append)
    assert told == sorted(told)
    assert len(told) == 40 + 40 + 1
    assert told[-1] == 1


def test_exact_match_and_stop_rate_are_told_apart_by_row() -> None:
    found = measured(TableModel(frozenset(range(10))), ROWS, "ExactMatch", "StopRate")
    assert found["ExactMatch"].totals.tolist() == [1.0] * 10 + [0.0] * 30
    assert found["StopRate"].totals.sum() == 10
    assert "Perplexity" not in found


def test_text_rows_count_for_perplexity_only() -> None:
    text = [row(index, kind="Text", prompt="", prompt_ids=[]) for index in range(3)]
    model = TableModel(frozenset())
    model.losses = lambda choices: iter([[np.array([1.0, 2.0])] for _ in choices])  # type: ignore[method-assign]
    found = measured(model, text, "Perplexity", "ExactMatch", "AnswerChoice")
    assert list(found) == ["Perplexity"]
    assert found["Perplexity"].counts.tolist() == [2, 2, 2]


def test_more_rows_than_asked_are_drawn_by_a_fixed_seed() -> None:
    drawn = draw(iter(ROWS), 40, 10)
    assert drawn == draw(ROWS, 40, 10)
    assert len(drawn) == 10
    assert draw(ROWS, 40, 100) == ROWS


def test_the_context_fits_eight_answers_and_what_is_generated() -> None:
    assert context_tokens([row(0)], Evaluation(max_new_tokens=5)) == 2 + 8 * 2
    assert context_tokens([row(0)], Evaluation(max_new_tokens=50)) == 2 + 50


def test_equal_texts_in_other_unicode_forms_match() -> None:
    assert normalized("Cafe\u0301 ") == normalized("Caf\u00e9")


def test_token_losses_are_minus_log_softmax() -> None:
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]], np.float32)
    assert token_losses(logits, [2, 1]).tolist() == pytest.approx([np.log(4), 1e4])
