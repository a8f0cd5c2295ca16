"""What a model is asked on held-out rows, once for all metrics: what answers cost after their questions, and what it writes itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt
from finetune_api.sections.evaluation import ANSWER_CHOICES, Evaluation

from finetune_trainer.bootstrap import SEED
from finetune_trainer.llama.model import Choice, Generation
from finetune_trainer.prepared import HeldOutRow


class Model(Protocol):
    """A model as it is judged: by token ids, the same ones for every model."""

    def losses(self, choices: Sequence[Choice]) -> Iterator[list[npt.NDArray[np.float64]]]: ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Generation]: ...

    def text(self, ids: Sequence[int]) -> str: ...


class Need(Flag):
    """What a metric is computed from."""

    LOSSES = auto()
    """The loss of each row's own answer."""
    CHOICES = auto()
    """The losses of eight rows' answers after each of their questions."""
    TEXTS = auto()
    """What the model answers by itself."""


@dataclass(frozen=True)
class Score:
    """What a row's answers cost after its question, in nats. `means`: per token, of its block's eight answers; empty without a block."""

    loss: float
    tokens: int
    means: list[float]


@dataclass(frozen=True)
class Written:
    """A row and what the model answered. `ended`: it ended the answer by itself."""

    row: HeldOutRow
    text: str
    ended: bool


@dataclass(frozen=True)
class Seen:
    """What was asked of one model on the rows of one set. What no metric needed is empty."""

    rows: Sequence[HeldOutRow]
    scores: Sequence[Score]
    blocks: Sequence[Sequence[int]]
    """Indices of rows, eight to a block."""
    written: Sequence[Written]


def look(model: Model, rows: Sequence[HeldOutRow], needs: Need, max_new_tokens: int, report: Callable[[float], None]) -> Seen:
    """Asks the model for what is needed, and reports the share done."""
    blocks = choice_blocks(rows) if Need.CHOICES in needs else []
    questions = [row for row in rows if is_question(row)] if Need.TEXTS in needs else []
    scored = rows if needs & (Need.LOSSES | Need.CHOICES) else []
    count = len(scored) + len(questions)
    scores, written = [], []
    for found in score(model, scored, blocks):
        scores.append(found)
        report(len(scores) / count)
    for answer in write(model, questions, max_new_tokens):
        written.append(answer)
        report((len(scores) + len(written)) / count)
    return Seen(rows, scores, blocks, written)


def score(model: Model, rows: Sequence[HeldOutRow], blocks: Sequence[Sequence[int]]) -> Iterator[Score]:
    """Every row's own answer, and beside it those of its block, in one pass."""
    block_of = {index: block for block in blocks for index in block}
    answers = [[rows[other].answer_ids for other in block_of.get(index, [index])] for index in range(len(rows))]
    for index, losses in enumerate(model.losses([Choice(row.prompt_ids, own) for row, own in zip(rows, answers, strict=True)])):
        block = block_of.get(index)
        own = losses[block.index(index) if block else 0]
        yield Score(float(own.sum()), len(own), [float(loss.mean()) for loss in losses] if block else [])


def write(model: Model, questions: Sequence[HeldOutRow], max_new_tokens: int) -> Iterator[Written]:
    """The most likely continuation of each question."""
    for row, found in zip(questions, model.generate([row.prompt_ids for row in questions], max_new_tokens), strict=True):
        yield Written(row, model.text(found.ids), found.ended)


def is_question(row: HeldOutRow) -> bool:
    return row.kind != "Text" and bool(row.prompt_ids)


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
    return prompt + max(ANSWER_CHOICES * answer, settings.max_new_tokens)


def choice_blocks(rows: Sequence[HeldOutRow]) -> list[list[int]]:
    """Indices of questions in blocks of eight with different answers, shuffled by a fixed seed; what fills no block is left out."""
    order = [index for index, row in enumerate(rows) if is_question(row)]
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
        if len(block) == ANSWER_CHOICES:
            full.append(block)
            open_blocks = [entry for entry in open_blocks if entry[0] is not block]
    return full
