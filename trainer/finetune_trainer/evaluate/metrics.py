"""The metrics, a row each: what it is computed from, how, row by row so that it can be resampled, and by which statistic it is judged."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt
from finetune_api.sections.evaluation import ANSWER_CHOICES, Evaluation

from finetune_trainer import bootstrap
from finetune_trainer.bootstrap import Samples, Statistic, samples
from finetune_trainer.evaluate.passes import Model, Need, Seen, look
from finetune_trainer.prepared import HeldOutRow


@dataclass(frozen=True)
class Metric:
    """`samples`: of what was seen, none where no row fits; `statistic`: of their ratio; `always`: shown whether or not a gate names it;
    `fitting`: which held-out rows it is taken of."""

    needs: Need
    samples: Callable[[Seen], Samples]
    fitting: str
    statistic: Statistic = bootstrap.mean
    always: bool = False


def measure(
    model: Model, rows: Sequence[HeldOutRow], names: frozenset[str], settings: Evaluation, report: Callable[[float], None]
) -> dict[str, Samples]:
    """Samples of each named metric on the rows of one set; metrics for which no row fits are left out. Reports the share done."""
    wanted = {name: metric for name, metric in METRICS.items() if name in names}
    needs = reduce(or_, (metric.needs for metric in wanted.values()), Need(0))
    seen = look(model, rows, needs, settings.max_new_tokens, report)
    report(1.0)
    return {name: found for name, metric in wanted.items() if (found := metric.samples(seen)).n}


def metric_of(name: str) -> Metric:
    """The metric of `<metric>` or `<data set>/<metric>`."""
    return METRICS[name.rpartition("/")[2]]


def perplexity(seen: Seen) -> Samples:
    """Loss of the true answer's tokens: totals in nats, counts in tokens. Perplexity is exp(total / count)."""
    return samples([score.loss for score in seen.scores], [row.group for row in seen.rows], [score.tokens for score in seen.scores])


def answer_choice(seen: Seen) -> Samples:
    """1 where a question's true answer is preferred among the eight of its block, else 0.

    An answer's score is its mean loss per token after the question, less its mean over the block's eight questions: what an answer
    costs by itself (short, common words) drops out, so that a model which only learned the style stays at chance.
    """
    means = np.array([[seen.scores[index].means for index in block] for block in seen.blocks]).reshape(-1, ANSWER_CHOICES, ANSWER_CHOICES)
    return samples(preferred(means).ravel().tolist(), [seen.rows[index].group for block in seen.blocks for index in block])


def preferred(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """losses: (blocks, question, answer), true answers on the diagonal → (blocks, question), 1 where the true answer scores best."""
    scores = losses - losses.mean(axis=1, keepdims=True)
    right: npt.NDArray[np.float64] = (scores.argmin(axis=2) == np.arange(losses.shape[2])).astype(np.float64)
    return right


def exact_match(seen: Seen) -> Samples:
    """1 where the most likely continuation is the true answer, else 0."""
    matches = [float(normalized(written.text) == normalized(written.row.answer)) for written in seen.written]
    return samples(matches, [written.row.group for written in seen.written])


def stop_rate(seen: Seen) -> Samples:
    """1 where the model ended its answer by itself, else 0."""
    return samples([float(written.ended) for written in seen.written], [written.row.group for written in seen.written])


def normalized(text: str) -> str:
    """Unicode NFC without white space around: what a reader would call the same text."""
    return unicodedata.normalize("NFC", text).strip()


_QUESTIONS = "rows with a prompt and an answer"
METRICS = {
    "Perplexity": Metric(Need.LOSSES, perplexity, "test rows", bootstrap.perplexity, always=True),
    "AnswerChoice": Metric(
        Need.CHOICES, answer_choice, f"{_QUESTIONS}, of which {ANSWER_CHOICES} answer differently; with fewer classes take ExactMatch"
    ),
    "ExactMatch": Metric(Need.TEXTS, exact_match, _QUESTIONS),
    "StopRate": Metric(Need.TEXTS, stop_rate, _QUESTIONS),
}
"""By the name that a gate gives; `finetune_api.sections.evaluation` has the same names, with their good directions."""
