"""The stages: who does the work, what its result follows from, how it may be stopped and what may be said of it. One row each.

What a stage's pod is given (GPUs, hub tokens, the version in production) and what comes before it, the operator must know as well:
that is `Stage.access` and `Stage.upstream`. What a stage leaves is described where the next one reads it: `prepared.py` (prepare),
`trained.py` (train), `package/stage.py` and `evaluate/stage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune_api.answer import StageResult
from finetune_api.run import RunSpec, Stage
from finetune_api.section import digest_of

from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage, Manifest


@dataclass(frozen=True)
class Workspace:
    """What a stage is given beside its run: the job's storage, its own empty folder, and where to report progress."""

    storage: JobStorage
    folder: Path
    progress: Progress


StageFunction = Callable[[RunSpec, Workspace], StageResult]
Settings = dict[str, Any]


@dataclass(frozen=True)
class StageRow:
    """`module` is named, not imported, and its `run` is the stage's function: prepare and evaluate must not pay for torch."""

    module: str
    settings: Callable[[RunSpec], Settings]
    """What of the run its result follows from. On storage its digest tells a finished stage's result from another's: see `inputs_digest`."""
    resumes: bool = False
    """Whether the next start after SIGTERM goes on from what was saved; it begins anew otherwise."""
    reads_text: bool = True
    """Whether the words of an error may quote the data, so that no log may show them."""

    def function(self) -> StageFunction:
        function: StageFunction = import_module(self.module).run
        return function


_SECRETS = {"token_secret_ref"}
_WEIGHTS_ONLY = {"dtype", "attention_implementation"}
"""Members of `model` that say how training holds it; data is prepared alike for all."""


def _of_prepare(run: RunSpec) -> Settings:
    return {
        "model": run.model.model_dump(mode="json", exclude=_SECRETS | _WEIGHTS_ONLY),
        "datasets": [dataset.model_dump(mode="json", exclude=_SECRETS) for dataset in run.datasets],
        "preparation": run.preparation.wire(),
        "method": run.method.spelled_out().wire(),
        "maxLength": run.training.max_length,
        "gguf": bool(run.export.gguf),
        "chatTemplate": run.chat_template_text,
    }


def _of_train(run: RunSpec) -> Settings:
    return {
        "model": run.model.model_dump(mode="json", include=_WEIGHTS_ONLY),
        "method": run.method.spelled_out().wire(),
        "adapter": run.adapter.spelled_out().wire(),
        "quantization": run.quantization.spelled_out().wire(),
        "training": run.training.wire(),
    }


def _of_package(run: RunSpec) -> Settings:
    return {"export": run.export.wire()}


def _of_evaluate(run: RunSpec) -> Settings:
    return {"evaluation": run.evaluation.wire(), "production": run.production.wire() if run.production else None}


STAGES: dict[Stage, StageRow] = {
    Stage.PREPARE: StageRow("finetune_trainer.prepare.stage", _of_prepare),
    Stage.TRAIN: StageRow("finetune_trainer.train.stage", _of_train, resumes=True, reads_text=False),
    Stage.PACKAGE: StageRow("finetune_trainer.package.stage", _of_package),
    Stage.EVALUATE: StageRow("finetune_trainer.evaluate.stage", _of_evaluate),
}


def inputs_digest(run: RunSpec, stage: Stage, upstream: Manifest | None) -> str:
    """Names what a stage's result follows from: its own settings and the contents of the stage before it."""
    settings = STAGES[stage].settings(run)
    return digest_of({"stage": stage.value, "settings": settings, "upstream": upstream.digest if upstream else None})
