"""What every method's training loop has beside TRL's: guarded steps, own checkpoints, exact resume, SIGTERM at any moment.

A mixin before a TRL trainer: `class SFT(GuardedLoop, trl.SFTTrainer)`.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from finetune_api.answer import StageResult
from finetune_api.outcome import Reason
from finetune_api.run import Stage
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from finetune_trainer.adapters import Trainable
from finetune_trainer.errors import StageError
from finetune_trainer.interruption import Interruption, terminated
from finetune_trainer.prepared import IGNORED_LABEL
from finetune_trainer.storage import not_written
from finetune_trainer.train.cadence import Cadence
from finetune_trainer.train.checkpoint import CheckpointStore
from finetune_trainer.train.guard import StepGuard, any_rank
from finetune_trainer.train.methods import Trained, TrainingJob
from finetune_trainer.train.reporting import eval_loss_at, last_logged
from finetune_trainer.train.trial import told_by_field

log = logging.getLogger(__name__)

_WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""What writing to a full or failing disk raises. RuntimeError: torch.save's own (`PytorchStreamWriter failed writing file`)."""


@dataclass(frozen=True)
class Controls:
    """What a loop is given beside the method's own parts. `save_on_sigterm`: checkpoints.onPreemption is Save."""

    trained: Trainable
    store: CheckpointStore
    cadence: Cadence
    interruption: Interruption
    save_on_sigterm: bool


class GuardedLoop:
    """Overrides of transformers.Trainer; `controls` is its one argument more."""

    args: Any
    model: Any
    state: Any
    accelerator: Any
    add_callback: Any
    is_world_process_zero: Any
    _save_optimizer_and_scheduler: Any
    _save_scaler: Any

    def __init__(self, *args: Any, controls: Controls, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.controls = controls
        self.guard = StepGuard(loss_scaling=bool(self.args.fp16))
        self.step_loss = torch.zeros((), device=self.args.device)
        self.rng_at_step_end: dict[str, Any] = {}
        self.eval_sums = torch.zeros(2, dtype=torch.float64)
        self.add_callback(_StepMarks(self))

    # ------------------------------------------------------------------------------------------------------ before each optimizer step

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._end_if_asked()
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.step_loss += loss
        self._end_if_asked()
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers asks for the norm right before the optimizer steps: here a step that is not finite ends the run."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        problem = self.guard.problem(float(self.step_loss), float(norm))
        self.step_loss.zero_()
        if any_rank(problem is not None, self.args.device):
            raise self._diverged(problem or "another rank's loss is not finite")
        return norm

    def _diverged(self, problem: str) -> StageError:
        step = self.state.global_step + 1
        newest = self.controls.store.newest
        kept = f"the checkpoint of step {newest.step} is kept" if newest else "no checkpoint was due before"
        return StageError(
            Reason.DIVERGED,
            f"{problem} at step {step} of {self.state.max_steps}; it was not taken, {kept}. Lower training.learningRate or look at the data",
            self._so_far(),
        )

    def _so_far(self) -> StageResult:
        return StageResult(stage=Stage.TRAIN, steps=self.state.global_step, checkpoint=self.controls.store.report())

    # ----------------------------------------------------------------------------------------------------------------------- SIGTERM

    def _end_if_asked(self) -> None:
        """Ends the run after SIGTERM; the last whole step is saved first. What a half accumulated step added is dropped."""
        if not any_rank(self.controls.interruption.requested, self.args.device):
            return
        if self.controls.save_on_sigterm and self.state.global_step > self.controls.cadence.last_saved_step:
            self._write_checkpoint()
        raise terminated(f"step {self.controls.cadence.last_saved_step} of {self.state.max_steps} is saved", self._so_far())

    # ------------------------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replaces transformers' own: called between whole steps, after evaluation."""
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """Saves the last whole step with the random state at its end, from which the next step begins."""
        began = time.monotonic()
        step = self.state.global_step
        folder = self._agree_on(self.controls.store.new_folder(step) if self.is_world_process_zero() else None)
        try:
            self._write_files(folder)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.controls.store.publish(step, folder)
        except _WRITE_ERRORS as error:
            self.controls.store.discard(folder)
            raise StageError(Reason.STORAGE_ERROR, not_written(f"the checkpoint of step {step}", error), self._so_far()) from error
        self.controls.cadence.saved(step, time.monotonic() - began)

    def _write_files(self, folder: Path) -> None:
        if self.is_world_process_zero():
            self.controls.trained.save(self.model, folder)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
        torch.save(self.rng_at_step_end, folder / self._rng_file())

    def _agree_on(self, folder: Path | None) -> Path:
        """Rank 0's folder, on every rank."""
        agreed = [folder]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(agreed, src=0)
        assert agreed[0] is not None
        return agreed[0]

    def _rng_file(self) -> str:
        """Source: transformers.Trainer._load_rng_state, which reads these names with weights_only."""
        return "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.controls.trained.load(self.model, Path(resume_from_checkpoint))

    def restore(self, folder: Path) -> None:
        """Takes over weights and state of a checkpoint without training on: for a run that was stopped after its last step."""
        self.controls.trained.load(self.model, folder)
        self.state = transformers.TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))

    # -------------------------------------------------------------------------------------------------------------------- evaluation

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._end_if_asked()
        outcome = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        tokens = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum().double()
        self.eval_sums += torch.stack([outcome[0].double() * tokens, tokens]).cpu()
        return outcome

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates without touching the run's random state, and reports the mean loss per token.

        transformers' own figure is a mean of batch means: it moves with the micro-batch.
        """
        self.eval_sums.zero_()
        rng = _random_state()
        outcome = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        _set_random_state(rng)
        sums = self.eval_sums
        if self.args.world_size > 1:
            sums = sums.to(self.args.device)
            torch.distributed.all_reduce(sums)
        outcome.metrics["eval_loss"] = float(sums[0] / sums[1].clamp(min=1))
        return outcome


def run_to_last_step(trainer: Any, job: TrainingJob, warnings: list[str]) -> Trained:
    """Trains to the last step, from the newest checkpoint where one counts. `trainer`: a `GuardedLoop` before a TRL trainer.

    Errors: StageError(Terminated | Diverged | Superseded | StoppedEarly | …); `result` carries the newest checkpoint.
    """
    checkpoint = job.controls.store.newest
    with told_by_field(job.run.training.args):
        last_step = _last_step(trainer)
    with job.controls.interruption.deferred():
        if checkpoint is None:
            log.info("the model is loaded; next: %d steps", last_step)
            trainer.train()
        elif checkpoint.step < last_step:
            job.controls.cadence.start_from(checkpoint.step)
            log.info("resuming at step %d of %d", checkpoint.step, last_step)
            trainer.train(resume_from_checkpoint=str(checkpoint.folder))
        else:
            trainer.restore(checkpoint.folder)
    job.controls.interruption.end_if_requested()
    # transformers returns normally from a run that something stopped early.
    if trainer.state.global_step < last_step:
        raise StageError(Reason.STOPPED_EARLY, f"training ended at step {trainer.state.global_step} of {last_step}")
    return Trained(
        model=trainer.model,
        eval_loss=_final_eval_loss(trainer),
        history=trainer.state.log_history,
        steps=trainer.state.global_step,
        resumed_from_step=checkpoint.step if checkpoint else None,
        warnings=warnings,
    )


def _last_step(trainer: Any) -> int:
    """Optimizer steps of the whole run. Source: transformers.Trainer.set_initial_training_values."""
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    return int(steps)


def _final_eval_loss(trainer: Any) -> float | None:
    """Mean loss per token on the validation rows after the last step; None without such rows."""
    if trainer.eval_dataset is None:
        return None
    taken = eval_loss_at(trainer.state.log_history, trainer.state.global_step)
    return taken if taken is not None else float(trainer.evaluate()["eval_loss"])


class _StepMarks(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes the random state where a step ends, and asks for a save where one is due."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # TRL counts from 0 in each process; the curve and tokens per second are of the whole run.
        self._loop._total_train_tokens = int(last_logged(state.log_history, "num_tokens") or 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Up to the next step nothing draws from it (evaluation puts it back), but that step does, and an epoch's first batch.
        self._loop.rng_at_step_end = _random_state()
        cadence = self._loop.controls.cadence
        cadence.step_done(time.monotonic() - self._began)
        last = state.global_step >= state.max_steps
        control.should_save = any_rank(last or cadence.is_due(state.global_step), args.device)


def _random_state() -> dict[str, Any]:
    """The random state of this process in the form that transformers.Trainer._load_rng_state reads."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        state["cuda"] = torch.cuda.random.get_rng_state_all() if distributed else torch.cuda.random.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        if isinstance(state["cuda"], list):
            torch.cuda.random.set_rng_state_all(state["cuda"])
        else:
            torch.cuda.random.set_rng_state(state["cuda"])
