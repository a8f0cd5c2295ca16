"""SIGTERM: where it may end the process at once, and where the work must be saved first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from finetune_api.answer import StageResult
from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError


def terminated(saved: str, result: StageResult | None = None) -> StageError:
    """How a stage ends that was stopped from outside; `saved` says what is kept of its work. Whether it starts again, it cannot know."""
    return StageError(Reason.TERMINATED, f"stopped by SIGTERM; {saved}", result)


class Interruption:
    """Notes SIGTERM. Outside of `deferred()` it ends the stage at once: nothing would be lost there.

    Within it only `requested` turns true, and whoever deferred it must look, save and raise `terminated(…)`.
    """

    def __init__(self, saved: str = "the last checkpoint is kept") -> None:
        self.requested = False
        self._saved = saved
        self._deferred = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Takes SIGTERM until left; the former handler then has it again."""
        former = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def end_if_requested(self) -> None:
        """Errors: StageError(Terminated). Catches up on a signal whose exception a library swallowed."""
        if self.requested:
            raise terminated(self._saved)

    def cause(self, error: Exception) -> Exception:
        """What really ended the stage: SIGTERM where it came, whatever a library made of its exception, else `error`."""
        if not self.requested or (isinstance(error, StageError) and error.reason is Reason.TERMINATED):
            return error
        return terminated(self._saved)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            self.end_if_requested()
