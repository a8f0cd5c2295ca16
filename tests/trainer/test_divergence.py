"""Nothing that is not finite is stepped, saved or published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from finetune_api.outcome import ExitCode
from finetune_trainer.errors import StageError
from finetune_trainer.train.guard import SCALER_SKIPS_ALLOWED, StepGuard
from finetune_trainer.train.methods.sft import SFT
from safetensors.torch import load_file

from tests.trainer.conftest import JobMaker


def plant_nan(monkeypatch: pytest.MonkeyPatch, micro_batch: int, where: str) -> None:
    """Makes the loss of a micro-batch (from 0), or only the gradients that follow from it, NaN."""
    compute_loss = SFT.compute_loss
    calls = [0]

    def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] - 1 != micro_batch:
            return loss
        if where == "loss":
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(SFT, "compute_loss", planted)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_at_step_5_ends_with_the_last_good_checkpoint(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    job = make_job(checkpoints={"type": "Steps", "everySteps": 2})
    plant_nan(monkeypatch, micro_batch=8, where=where)
    with pytest.raises(StageError) as error:
        job.train()
    assert (error.value.reason, error.value.exit_code) == ("Diverged", ExitCode.DIVERGED)
    assert f"the {'loss' if where == 'loss' else 'gradient norm'} is nan at step 5 of 6" in error.value.message
    result = error.value.result
    assert result is not None
    assert result.steps == 4
    assert result.checkpoint is not None
    assert result.checkpoint.step == 4
    assert not (job.storage.folder / "train" / "manifest.json").exists()
    kept = load_file(job.storage.folder / "checkpoints" / "step-4-pod-0" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_finite_steps_pass() -> None:
    assert StepGuard(loss_scaling=False).problem(1.0, 2.0) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_is_never_excused(loss: float) -> None:
    assert StepGuard(loss_scaling=True).problem(loss, 1.0) == f"the loss is {loss}"


def test_without_loss_scaling_no_norm_is_excused() -> None:
    assert StepGuard(loss_scaling=False).problem(1.0, math.inf) == "the gradient norm is inf"


def test_the_scaler_may_skip_twenty_steps_in_a_row() -> None:
    guard = StepGuard(loss_scaling=True)
    assert [guard.problem(1.0, math.inf) for _ in range(SCALER_SKIPS_ALLOWED)] == [None] * 20
    assert guard.problem(1.0, 1.0) is None
    assert [guard.problem(1.0, math.nan) for _ in range(SCALER_SKIPS_ALLOWED)] == [None] * 20
    assert guard.problem(1.0, math.inf) == "the gradient norm is inf"
