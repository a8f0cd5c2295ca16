"""The package stage on SmolLM2-135M: a correct export passes by what was measured on this model, and planted faults are still caught."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetune_api.answer import StageResult
from finetune_api.run import Stage
from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import Source
from finetune_trainer.llama.model_files import write_model_files
from finetune_trainer.package import stage
from finetune_trainer.package.merge import merge
from finetune_trainer.package.merged_dtype import Choice
from finetune_trainer.package.references import References

from tests.trainer import packaged, smollm2
from tests.trainer.test_package import swap_adapter

FORMATS = ["Q8_0", "F16", "Q4_K_M"]


@dataclasses.dataclass
class Kept:
    """The answer of a stage that passed, and what it was judged by, for stages of the same training that must not pass."""

    result: StageResult
    references: References
    choice: Choice


@cache
def passed() -> Kept:
    kept: dict[str, Any] = {}
    measure, choose = stage._measure_references, stage._choose_dtype

    def keep_references(package: stage.Package) -> References:
        found = measure(package)
        for name in ("tuned", "base"):
            stored = getattr(found, name)
            target = packaged.scratch() / f"smollm2-{name}.npy"
            shutil.copyfile(stored.path, target)
            found = dataclasses.replace(found, **{name: dataclasses.replace(stored, path=target)})
        kept["references"] = found
        return found

    def keep_choice(package: stage.Package, references: References) -> Choice:
        return kept.setdefault("choice", choose(package, references))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_measure_references", keep_references)
        patch.setattr(stage, "_choose_dtype", keep_choice)
        result = smollm2.job(packaged.scratch() / "smollm2-job", export={"gguf": FORMATS}).stage(Stage.PACKAGE)
    return Kept(result, kept["references"], kept["choice"])


def test_a_correct_export_passes_by_bounds_measured_on_this_model() -> None:
    reports = {report.format: report for report in passed().result.parity}
    assert list(reports) == ["Merged", *FORMATS]
    for report in reports.values():
        assert report.verdict == "Passed", report
        assert report.rounding_kl is not None
        assert report.max_kl is not None
        assert report.mean_kl <= report.max_kl
        assert report.max_kl >= 3 * report.rounding_kl
    finest_first = [reports[form].mean_kl for form in ("F16", "Q8_0", "Q4_K_M")]
    assert finest_first == sorted(finest_first)
    assert f"merged weights are {reports['Merged'].dtype}" in passed().result.message


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {}


def fault(named: str) -> Callable[[Callable[[pytest.MonkeyPatch], None]], Callable[[pytest.MonkeyPatch], None]]:
    """Registers a planted fault, with what the refusal must name."""

    def register(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
        FAULTS[plant.__name__] = plant, named
        return plant

    return register


@fault("Merged: model.layers")
def alpha_of_the_merge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stage, "merge", lambda base, plan, scale, *rest: merge(base, plan, scale * 1.01, *rest))


@fault("GGUF: before it is rounded")
def alpha_on_the_way_to_gguf(patch: pytest.MonkeyPatch) -> None:
    source = stage.gguf_source

    def faulty(package: stage.Package) -> Source:
        made = source(package)
        return dataclasses.replace(made, through=(*made.through[:-1], str(float(made.through[-1]) * 1.01)))

    patch.setattr(stage, "gguf_source", faulty)


@fault("Merged: mean KL")
def adapter_of_the_merge(patch: pytest.MonkeyPatch) -> None:
    source = stage.gguf_source
    swap_adapter(patch, smollm2.adapter(seed=7))
    patch.setattr(stage, "gguf_source", source)


@fault("GGUF: before it is rounded")
def adapter_on_the_way_to_gguf(patch: pytest.MonkeyPatch) -> None:
    planned = stage.planned
    swap_adapter(patch, smollm2.adapter(seed=7))
    patch.setattr(stage, "planned", planned)


@fault("chat_template.jinja")
def template_of_the_merge(patch: pytest.MonkeyPatch) -> None:
    write = write_model_files

    def faulty(prepared: Any, target: Path, *rest: Any) -> None:
        write(prepared, target, *rest)
        template = target / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant", "model"))

    patch.setattr(stage, "write_model_files", faulty)


@fault("another chat template")
def template_on_the_way_to_gguf(patch: pytest.MonkeyPatch) -> None:
    source = stage.gguf_source

    def faulty(package: stage.Package) -> Source:
        made = source(package)
        template = made.model / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant", "model"))
        return made

    patch.setattr(stage, "gguf_source", faulty)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kept = passed()
    monkeypatch.setattr(stage, "_measure_references", lambda package: kept.references)
    monkeypatch.setattr(stage, "_choose_dtype", lambda package, references: kept.choice)
    plant, named = FAULTS[name]
    plant(monkeypatch)
    job = smollm2.job(tmp_path / "job", export={"gguf": ["Q8_0"] if "gguf" in name else []})
    with pytest.raises(StageError) as refusal:
        job.stage(Stage.PACKAGE)
    assert refusal.value.reason == "ParityFailed"
    assert named in refusal.value.message
    assert job.storage.manifest(Stage.PACKAGE) is None
