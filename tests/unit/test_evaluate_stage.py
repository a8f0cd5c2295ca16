"""What the evaluate stage judges, found without running a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.evaluate.stage import judged_file
from finetune_trainer.spec import Artifact, GGUFType, Stage, StageResult
from finetune_trainer.storage import Manifest


def packaged(*names: tuple[str, str]) -> Manifest:
    artifacts = [Artifact(name=form, format="GGUF", uri=f"pvc://claim/j/package/w/gguf/{name}", sha256="", bytes=1) for form, name in names]
    return Manifest(
        stage=Stage.PACKAGE, inputs_digest="", directory="w", files=[], result=StageResult(stage=Stage.PACKAGE, artifacts=artifacts)
    )


def test_a_package_taken_over_from_an_older_job_is_judged_under_its_own_name() -> None:
    manifest = packaged(("F16", "older-F16.gguf"), ("Q8_0", "older-Q8_0.gguf"))
    assert judged_file(manifest, Path("/package"), GGUFType.Q8_0) == Path("/package/gguf/older-Q8_0.gguf")


def test_a_format_that_was_not_made_is_named() -> None:
    with pytest.raises(StageError, match=r"NothingToEvaluate.*Q8_0"):
        judged_file(packaged(("F16", "job-F16.gguf")), Path("/package"), GGUFType.Q8_0)
