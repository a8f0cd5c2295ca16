"""What every test of prepare is spared: a look at the architecture is a process of its own that imports torch, seconds each time."""

from __future__ import annotations

import pytest
from finetune_trainer.prepare import base_model


@pytest.fixture(autouse=True)
def architecture_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the look fails: prepare goes on without. Tests of what follows from it are in `test_model_checks.py` and tests/trainer."""
    monkeypatch.setattr(base_model, "architecture_of", lambda folder: None)
