"""Paired bootstrap by group: 95 % bounds of a metric and of its difference between two models.

Rows of one document are no independent evidence, so documents are drawn, not rows; the same draws are used for both models, which
takes the difficulty of the rows out of the comparison.
Source: Efron & Tibshirani (1993), ch. 13 (percentile interval); Koehn (2004), statistical significance tests by paired resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from finetune_api.answer import Estimate

RESAMPLES = 10_000
SEED = 20_240_601
"""Fixed: the same evidence always gives the same verdict."""
_PERCENTILES = (2.5, 97.5)
_CHUNK = 250  # resamples held at once

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


def mean(ratio: Floats) -> Floats:
    """The ratio itself: a mean per sample or per token."""
    return ratio


def perplexity(ratio: Floats) -> Floats:
    """exp of the mean loss per token."""
    return np.exp(ratio)


@dataclass(frozen=True)
class Samples:
    """What was measured of each row: a total and what it is divided by (1 for a rate, tokens for a loss), and the row's group."""

    totals: Floats
    counts: Floats
    groups: Sequence[str]

    @property
    def n(self) -> int:
        return len(self.groups)

    @property
    def group_count(self) -> int:
        return len(set(self.groups))

    def by_group(self) -> tuple[Floats, Floats]:
        """Sums of totals and counts of each group, in order of first appearance."""
        order = {group: index for index, group in enumerate(dict.fromkeys(self.groups))}
        where = np.array([order[group] for group in self.groups])
        totals, counts = np.zeros(len(order)), np.zeros(len(order))
        np.add.at(totals, where, self.totals)
        np.add.at(counts, where, self.counts)
        return totals, counts


def samples(totals: Sequence[float], groups: Sequence[str], counts: Sequence[float] | None = None) -> Samples:
    return Samples(np.asarray(totals, np.float64), np.ones(len(groups)) if counts is None else np.asarray(counts, np.float64), list(groups))


def estimate(measured: Samples, statistic: Statistic = mean) -> Estimate:
    """The metric over all rows with its 95 % bounds. `measured` must not be empty."""
    totals, counts = measured.by_group()
    value = float(statistic(np.array([totals.sum() / counts.sum()]))[0])
    drawn = _resampled([(totals, counts)], statistic)[0]
    return _with_bounds(value, drawn, measured.n)


def difference(one: Samples, other: Samples, statistic: Statistic = mean) -> Estimate:
    """metric(one) − metric(other) over the same rows, with paired 95 % bounds.

    Errors: ValueError where the rows are not the same.
    """
    if list(one.groups) != list(other.groups):
        raise ValueError("a paired comparison needs the same rows in the same order")
    pairs = [one.by_group(), other.by_group()]
    values = [float(statistic(np.array([totals.sum() / counts.sum()]))[0]) for totals, counts in pairs]
    drawn = _resampled(pairs, statistic)
    return _with_bounds(values[0] - values[1], drawn[0] - drawn[1], one.n)


def _resampled(pairs: Sequence[tuple[Floats, Floats]], statistic: Statistic) -> list[Floats]:
    """The metric of each model in `RESAMPLES` draws of groups with replacement, the same draws for all."""
    generator = np.random.default_rng(SEED)
    group_count = len(pairs[0][0])
    chosen: list[list[Floats]] = [[] for _ in pairs]
    for _ in range(0, RESAMPLES, _CHUNK):
        drawn = generator.integers(0, group_count, (_CHUNK, group_count))
        for found, (totals, counts) in zip(chosen, pairs, strict=True):
            denominators = counts[drawn].sum(axis=1)
            # A draw of groups without a single counted token says nothing; it keeps a neutral 0 / 1.
            found.append(statistic(totals[drawn].sum(axis=1) / np.where(denominators > 0, denominators, 1.0)))
    return [np.concatenate(found) for found in chosen]


def _with_bounds(value: float, drawn: Floats, n: int) -> Estimate:
    low, high = np.percentile(drawn, _PERCENTILES)
    return Estimate(value=value, low=float(low), high=float(high), n=n)
