"""What a run tells while it trains: progress for the background thread, and the loss curve for the result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune_trainer.progress import Progress
from finetune_trainer.train.checkpoint import CheckpointStore

CURVE_FIELDS = {
    "step", "epoch", "loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy", "num_tokens", "eval_loss",
}  # fmt: skip


class ProgressCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Hands each step's figures on; the thread behind `progress` does the posting."""

    def __init__(self, progress: Progress, store: CheckpointStore) -> None:
        self._progress = progress
        self._store = store
        self._tokens = 0.0
        self._since = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tokens = last_logged(state.log_history, "num_tokens") or 0.0
        self._since = time.monotonic()
        self._report(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self._report(state, logs or {})

    def _report(self, state: Any, logs: dict[str, float]) -> None:
        if not state.is_world_process_zero:
            return
        metrics: dict[str, float] = {name: float(logs[name]) for name in ("loss", "eval_loss", "learning_rate") if name in logs}
        if "loss" in logs and "num_tokens" in logs:
            now = time.monotonic()
            metrics["tokens_per_second"] = (logs["num_tokens"] - self._tokens) / max(now - self._since, 1e-6)
            self._tokens, self._since = logs["num_tokens"], now
        if torch.cuda.is_available():
            metrics["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
        if self._store.newest is not None:
            metrics["checkpoint_step"] = float(self._store.newest.step)
        self._progress.report(
            state.global_step / max(state.max_steps, 1),
            step=float(state.global_step),
            total_steps=float(state.max_steps),
            epoch=float(state.epoch or 0),
            **metrics,
        )


def write_curve(history: list[dict[str, Any]], path: Path) -> None:
    """Writes the loss curve as JSON lines: one for each optimizer step, and one for each loss on the validation rows."""
    rows = [{key: value for key, value in entry.items() if key in CURVE_FIELDS} for entry in history]
    kept = [row for row in rows if "loss" in row or "eval_loss" in row]
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))


def mean_loss(history: list[dict[str, Any]]) -> float | None:
    """Mean of the steps' losses over the whole run, interruptions included."""
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    return sum(losses) / len(losses) if losses else None


def eval_loss_at(history: list[dict[str, Any]], step: int) -> float | None:
    """The loss on the validation rows that was taken at a step, if one was."""
    found = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry and entry.get("step") == step]
    return found[-1] if found else None


def last_logged(history: list[dict[str, Any]], name: str) -> float | None:
    """The newest figure of a name in a run's logs, if there is one."""
    return next((float(entry[name]) for entry in reversed(history) if name in entry), None)
