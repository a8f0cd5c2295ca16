"""What the evaluate stage judges, found without running a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.answer import Artifact, StageResult
from finetune_api.run import RunSpec, Stage
from finetune_api.sections.export import GGUFType
from finetune_trainer.errors import StageError
from finetune_trainer.evaluate.stage import judged_file, plan_tests
from finetune_trainer.prepared import HeldOutRow, PreparedSet
from finetune_trainer.storage import Manifest


def packaged(*names: tuple[str, str]) -> Manifest:
    artifacts = [Artifact(name=form, format="GGUF", uri=f"pvc://claim/j/package/w/gguf/{name}", sha256="", bytes=1) for form, name in names]
    return Manifest(
        stage=Stage.PACKAGE, inputs_digest="", directory="w", files=[], result=StageResult(stage=Stage.PACKAGE, artifacts=artifacts)
    )


def test_a_package_taken_over_from_an_older_job_is_judged_under_its_own_name() -> None:
    manifest = packaged(("F16", "older-F16.gguf"), ("Q8_0", "older-Q8_0.gguf"))
    assert judged_file(manifest, Path("/package"), GGUFType.Q8_0) == Path("/package/gguf/older-Q8_0.gguf")


def test_no_more_rows_are_held_than_are_scored(tmp_path: Path) -> None:
    def rows(name: str) -> Iterator[HeldOutRow]:
        for index in range(500):
            yield HeldOutRow(dataset="d", row=index, group="g", kind="Chat", prompt="", prompt_ids=[1], answer="", answer_ids=[2])

    tested = PreparedSet(name="test", arrow="", rows=500, tokens=0, held_out="test.jsonl")
    prepared: Any = SimpleNamespace(held_out_sets=lambda: [tested], held_out_rows=rows)
    run = RunSpec.model_validate(
        {
            "storage": {"root": "/", "prefix": "job"},
            "model": {"source": "hf://a/b"},
            "datasets": [],
            "evaluation": {"maxSamples": 50},
        }
    )
    (test,) = plan_tests(run, prepared)
    assert len(test.rows) == 50


def test_a_format_that_was_not_made_is_named() -> None:
    with pytest.raises(StageError, match=r"NothingToEvaluate.*Q8_0"):
        judged_file(packaged(("F16", "job-F16.gguf")), Path("/package"), GGUFType.Q8_0)
