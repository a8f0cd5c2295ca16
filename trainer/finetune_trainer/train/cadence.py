"""How often a run is saved: a fixed number of steps, or the one that loses least between saving and starting over. Pure."""

from __future__ import annotations

import math

NODE_MEAN_TIME_BETWEEN_FAILURES_S = 24 * 3600.0
"""Declared failure rate of a node, in seconds.

Source: https://cloud.google.com/compute/docs/instances/preemptible (stopped after 24 hours at the latest): the shortest life that a
common kind of GPU capacity promises. Hardware alone fails less often (Llama 3, arXiv:2407.21783, table 5: 419 times in 54 days on
16,384 GPUs, once in about 6 years for 8).
"""

FIRST_SAVE_AFTER_S = 60.0
"""Seconds of training until the first save under Auto, which is what measures the time of a save."""


def seconds_between_saves(save_s: float, mean_time_between_failures_s: float = NODE_MEAN_TIME_BETWEEN_FAILURES_S) -> float:
    """The interval that minimizes time spent on saves plus expected work lost, in seconds of training.

    Source: J. W. Young, CACM 17(9), 1974: sqrt(2·C·M); J. T. Daly, FGCS 22(3), 2006, equation 37 gives the same to first order.
    """
    return math.sqrt(2 * save_s * mean_time_between_failures_s)


class Cadence:
    """Says after which optimizer step to save. `every_steps` fixes it; None derives it from measured times."""

    def __init__(self, every_steps: int | None) -> None:
        self._fixed = every_steps
        self._every: int | None = None
        self.last_saved_step = 0
        """0 where nothing is saved yet."""
        self._steps = 0
        self._seconds = 0.0

    def start_from(self, step: int) -> None:
        """Counts from a checkpoint that is there already."""
        self.last_saved_step = step

    def is_due(self, step: int) -> bool:
        """Whether to save after optimizer step `step`."""
        if self._fixed is not None:
            return step % self._fixed == 0
        since = step - self.last_saved_step
        if self._every is not None:
            return since >= self._every
        return self._steps > 0 and since * self._step_s >= FIRST_SAVE_AFTER_S

    def step_done(self, seconds: float) -> None:
        """Notes an optimizer step's time, evaluation and saves left out."""
        self._steps += 1
        self._seconds += seconds

    def saved(self, step: int, seconds: float) -> None:
        """Notes a save and the time that training stood still for it."""
        self.last_saved_step = step
        if self._fixed is None and self._steps:
            self._every = max(1, round(seconds_between_saves(seconds) / max(self._step_s, 1e-6)))

    @property
    def _step_s(self) -> float:
        return self._seconds / self._steps
