"""The newest progress of each job, let through to passes at most every few seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.progress import TrainerStatus

from finetune_operator.core import names
from finetune_operator.engine.queue import Queue
from finetune_operator.engine.store import Key

_REMEMBERED = 8192


@dataclass(frozen=True)
class Report:
    """What a pod said of itself."""

    pod_uid: str
    status: TrainerStatus


@dataclass
class _Entry:
    newest: Report
    shown: Report | None = None
    shown_at: float = float("-inf")


@dataclass
class Reports:
    """A pass sees a value that changes at most every `every_s`: otherwise each pass would write status for every report."""

    queue: Queue
    every_s: float
    monotonic: Callable[[], float] = time.monotonic
    _entries: OrderedDict[tuple[str, str], _Entry] = field(default_factory=OrderedDict)

    def submit(self, namespace: str, job: str, report: Report) -> None:
        entry = self._entries.setdefault((namespace, job), _Entry(report))
        entry.newest = report
        self._entries.move_to_end((namespace, job))
        if len(self._entries) > _REMEMBERED:
            self._entries.popitem(last=False)
        wait_s = max(0.0, entry.shown_at + self.every_s - self.monotonic())
        self.queue.add_after(Key(names.FINETUNEJOB, namespace, job), wait_s)

    def newest(self, namespace: str, job: str) -> Report | None:
        """What passes are to see now."""
        entry = self._entries.get((namespace, job))
        if entry is None:
            return None
        if entry.shown is None or (entry.newest is not entry.shown and self.monotonic() - entry.shown_at >= self.every_s):
            entry.shown, entry.shown_at = entry.newest, self.monotonic()
        return entry.shown
