"""Training methods: one file each, read top to bottom. What they are given and what they give back is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_api.run import RunSpec

    from finetune_trainer.architecture import Architecture
    from finetune_trainer.prepared import Prepared
    from finetune_trainer.progress import Progress
    from finetune_trainer.train.hf_arguments import Surroundings
    from finetune_trainer.train.loop import Controls


@dataclass(frozen=True)
class TrainingJob:
    """`scratch`: a folder that is thrown away afterwards, for what libraries write by themselves."""

    run: RunSpec
    prepared: Prepared
    around: Surroundings
    controls: Controls
    progress: Progress
    scratch: Path
    built: Architecture

    def with_arguments(self, args: Mapping[str, Any]) -> TrainingJob:
        """The same job with other `training.args`."""
        training = self.run.training.model_copy(update={"args": dict(args)})
        return replace(self, run=self.run.model_copy(update={"training": training}))


@dataclass(frozen=True)
class Trained:
    """A model after its last step, with the curve of the whole run. `resumed_from_step`: None where it began at step 0."""

    model: Any
    history: list[dict[str, Any]]
    steps: int
    eval_loss: float | None
    resumed_from_step: int | None
    warnings: list[str]
