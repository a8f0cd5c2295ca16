"""What every test of prepare is spared: a look at the architecture is a process of its own that imports torch, seconds each time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.prepare import look


@dataclass
class Told:
    """A look that is over: `answer` is what it found, or raises."""

    answer: Architecture | StageError | None
    finished: bool = True

    def result(self) -> Architecture | None:
        if isinstance(self.answer, StageError):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def architecture_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the look fails: prepare goes on without. Tests of what follows from it are in `test_model_checks.py` and tests/trainer."""
    monkeypatch.setattr(look, "Inspection", lambda folder: Told(None))
