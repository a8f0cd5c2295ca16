"""What is measured of a model on held-out rows, row by row, so that it can be resampled."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from finetune_api.sections.evaluation import Evaluation

from finetune_trainer.bootstrap import SEED, Samples, samples
from finetune_trainer.llama.model import Choice, Generation
from finetune_trainer.prepared import HeldOutRow

CHOICES = 8
"""Answers among which the true one must be preferred; chance is 1 / 8."""
_GENERATED = frozenset({"ExactMatch", "StopRate"})


class Model(Protocol):
    """A model as it is judged: by token ids, the same ones for every model."""

    def losses(self, choices: Sequence[Choice]) -> Iterator[list[npt.NDArray[np.float64]]]: ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Generation]: ...

    def text(self, ids: Sequence[int]) -> str: ...


def measure(
    model: Model, rows: Sequence[HeldOutRow], metrics: frozenset[str], settings: Evaluation, report: Callable[[float], None]
) -> dict[str, Samples]:
    """Samples of each metric on the rows of one set; metrics for which no row fits are left out. Reports the share done."""
    asked = [row for row in rows if row.kind != "Text" and row.prompt_ids]
    generated = metrics & _GENERATED if asked else frozenset()
    blocks = choice_blocks(rows) if "AnswerChoice" in metrics else []
    found: dict[str, Samples] = {}
    if blocks or "Perplexity" in metrics:
        scored = score(model, rows, blocks, lambda share: report(share / (1 + len(generated))))
        found |= {"Perplexity": perplexity(rows, scored)} if "Perplexity" in metrics and rows else {}
        found |= {"AnswerChoice": answer_choice(rows, blocks, scored)} if blocks else {}
    if generated:
        texts = generations(model, asked, settings.max_new_tokens)
        found |= {name: texts[name] for name in sorted(generated)}
    report(1.0)
    return found


def draw(rows: Iterable[HeldOutRow], count: int, limit: int) -> list[HeldOutRow]:
    """At most `limit` of `count` rows, drawn by a fixed seed, in file order; the others are not kept in memory."""
    if count <= limit:
        return list(rows)
    drawn = set(random.Random(SEED).sample(range(count), limit))
    return [row for index, row in enumerate(rows) if index in drawn]


def context_tokens(rows: Sequence[HeldOutRow], settings: Evaluation) -> int:
    """Cells that the longest request of any metric needs: a prompt with eight answers, or with what is generated."""
    prompt = max((len(row.prompt_ids) for row in rows), default=0)
    answer = max((len(row.answer_ids) for row in rows), default=0)
    return prompt + max(CHOICES * answer, settings.max_new_tokens)


# -------------------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Score:
    """What a row's answers cost after its question, in nats. `means`: per token, of its block's eight answers; empty without a block."""

    loss: float
    tokens: int
    means: list[float]


def score(model: Model, rows: Sequence[HeldOutRow], blocks: Sequence[Sequence[int]], report: Callable[[float], None]) -> list[Score]:
    """Every row's own answer, and beside it those of its block, in one pass."""
    block_of = {index: block for block in blocks for index in block}
    answers = [[rows[other].answer_ids for other in block_of.get(index, [index])] for index in range(len(rows))]
    scores = []
    for index, losses in enumerate(model.losses([Choice(row.prompt_ids, own) for row, own in zip(rows, answers, strict=True)])):
        block = block_of.get(index)
        own = losses[block.index(index) if block else 0]
        scores.append(Score(float(own.sum()), len(own), [float(loss.mean()) for loss in losses] if block else []))
        report((index + 1) / len(rows))
    return scores


def perplexity(rows: Sequence[HeldOutRow], scores: Sequence[Score]) -> Samples:
    """Loss of the true answer's tokens: totals in nats, counts in tokens. Perplexity is exp(total / count)."""
    return samples([score.loss for score in scores], [row.group for row in rows], [score.tokens for score in scores])


def answer_choice(rows: Sequence[HeldOutRow], blocks: Sequence[Sequence[int]], scores: Sequence[Score]) -> Samples:
    """1 where a question's true answer is preferred among the eight of its block, else 0.

    An answer's score is its mean loss per token after the question, less its mean over the block's eight questions: what an answer
    costs by itself (short, common words) drops out, so that a model which only learned the style stays at chance.
    """
    means = np.array([[scores[index].means for index in block] for block in blocks])
    return samples(preferred(means).ravel().tolist(), [rows[index].group for block in blocks for index in block])


def preferred(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """losses: (blocks, question, answer), true answers on the diagonal → (blocks, question), 1 where the true answer scores best."""
    scores = losses - losses.mean(axis=1, keepdims=True)
    right: npt.NDArray[np.float64] = (scores.argmin(axis=2) == np.arange(losses.shape[2])).astype(np.float64)
    return right


def choice_blocks(rows: Sequence[HeldOutRow]) -> list[list[int]]:
    """Indices of questions in blocks of eight with different answers, shuffled by a fixed seed; what fills no block is left out."""
    order = [index for index, row in enumerate(rows) if row.kind != "Text" and row.prompt_ids]
    random.Random(SEED).shuffle(order)
    full: list[list[int]] = []
    open_blocks: list[tuple[list[int], set[tuple[int, ...]]]] = []
    for index in order:
        answer = tuple(rows[index].answer_ids)
        if not answer:
            continue
        block, answers = next((entry for entry in open_blocks if answer not in entry[1]), ([], set()))
        if not block:
            open_blocks.append((block, answers))
        block.append(index)
        answers.add(answer)
        if len(block) == CHOICES:
            full.append(block)
            open_blocks = [entry for entry in open_blocks if entry[0] is not block]
    return full


def generations(model: Model, rows: Sequence[HeldOutRow], max_new_tokens: int) -> dict[str, Samples]:
    """ExactMatch: 1 where the most likely continuation is the true answer. StopRate: 1 where the model ended it by itself."""
    groups = [row.group for row in rows]
    found = list(model.generate([row.prompt_ids for row in rows], max_new_tokens))
    matches = [float(normalized(model.text(one.ids)) == normalized(row.answer)) for one, row in zip(found, rows, strict=True)]
    return {"ExactMatch": samples(matches, groups), "StopRate": samples([float(one.ended) for one in found], groups)}


def normalized(text: str) -> str:
    """Unicode NFC without white space around: what a reader would call the same text."""
    return unicodedata.normalize("NFC", text).strip()
