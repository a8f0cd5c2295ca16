"""The evaluate stage on a tiny tuned Llama: gates pass on evidence, fail without it, and answer at once when asked again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.answer import EvaluationReport, MetricReport, StageResult
from finetune_api.outcome import ExitCode
from finetune_api.run import Baseline, RunSpec, Stage
from finetune_trainer.errors import StageError
from finetune_trainer.evaluate import stage
from finetune_trainer.storage import hash_file

from tests.trainer import packaged
from tests.trainer.packaged import EVALUATION, PackagedJob


def evaluate(run: RunSpec, tmp_path: Path) -> StageResult:
    """Evaluates the packaged job under other settings, on a copy of its storage that shares no stage folder with others."""
    return job_on_copy(run, tmp_path).stage(Stage.EVALUATE)


def job_on_copy(run: RunSpec, tmp_path: Path) -> PackagedJob:
    root = tmp_path / "storage"
    if not root.exists():
        shutil.copytree(packaged.packaged_job().storage.root, root)
    job = PackagedJob.__new__(PackagedJob)
    job.base = packaged.base()
    job.run = run.model_copy(update={"storage": run.storage.model_copy(update={"root": str(root)})})
    return job


def with_evaluation(**changes: Any) -> RunSpec:
    run = packaged.packaged_job().run
    return run.model_copy(update={"evaluation": type(run.evaluation).model_validate(EVALUATION | changes)})


def metric(report: EvaluationReport | None, name: str) -> MetricReport:
    assert report is not None
    return {entry.name: entry for entry in report.metrics}[name]


def test_a_model_that_learned_passes_its_gates(tmp_path: Path) -> None:
    result = evaluate(with_evaluation(), tmp_path)
    report = result.evaluation
    assert report is not None
    assert report.artifact == "Q8_0"
    assert [(gate.name, gate.result) for gate in report.gates] == [
        ("recall", "Passed"), ("choice", "Passed"), ("stops", "Passed"), ("no-worse", "Passed"),
    ]  # fmt: skip
    match = metric(report, "facts/ExactMatch")
    assert match.base is not None
    assert match.base.value == 0
    assert match.tuned.n == len(packaged.SUBJECTS)
    perplexity = metric(report, "facts/Perplexity")
    assert perplexity.base is not None
    assert perplexity.tuned.value < perplexity.base.value
    folder = tmp_path / "storage/job/evaluate"
    content = folder / json.loads((folder / "manifest.json").read_text())["directory"]
    assert sorted(path.name for path in content.iterdir()) == ["metrics.svg", "report.json", "report.md"]
    assert json.loads((folder / "last-verdict.json").read_text())["reason"] == "Completed"


def test_a_failed_gate_publishes_nothing_and_answers_at_once_when_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_evaluation(gates=[{"name": "impossible", "metric": "facts/ExactMatch", "min": 1.01}])
    job = job_on_copy(run, tmp_path)
    refusals = []
    for attempt in range(2):
        if attempt:
            monkeypatch.setattr(stage, "GGUFModel", None)  # nothing is loaded any more
        with pytest.raises(StageError) as refusal:
            job.stage(Stage.EVALUATE)
        refusals.append((refusal.value.reason, refusal.value.message, refusal.value.exit_code, refusal.value.result))
    assert refusals[0] == refusals[1]
    reason, message, code, result = refusals[0]
    assert (reason, code) == ("GateFailed", ExitCode.GATE_FAILED)
    assert "impossible: facts/ExactMatch" in message
    assert result is not None
    assert metric(result.evaluation, "facts/ExactMatch").tuned.value > 0
    assert job.storage.manifest(Stage.EVALUATE) is None


def test_a_verdict_on_other_settings_is_not_repeated(tmp_path: Path) -> None:
    failing = job_on_copy(with_evaluation(gates=[{"name": "impossible", "metric": "facts/Perplexity", "max": 0}]), tmp_path)
    with pytest.raises(StageError, match="GateFailed"):
        failing.stage(Stage.EVALUATE)
    passing = job_on_copy(with_evaluation(gates=[{"name": "possible", "metric": "facts/Perplexity", "max": 1e9}]), tmp_path)
    assert passing.stage(Stage.EVALUATE).evaluation is not None


def test_too_few_samples_block(tmp_path: Path) -> None:
    with pytest.raises(StageError) as refusal:
        evaluate(with_evaluation(minSamples=100), tmp_path)
    assert refusal.value.reason == "GateInconclusive"
    assert "at least 100 are needed" in refusal.value.message


def test_production_is_judged_by_its_verified_artifact(tmp_path: Path) -> None:
    gguf = packaged.packaged_job().folder(Stage.PACKAGE) / "gguf/tiny-F16.gguf"
    run = with_evaluation(gates=[EVALUATION["gates"][3]])  # type: ignore[index]
    same = Baseline(name="tiny-v1", uri=str(gguf), sha256=hash_file(gguf))
    report = evaluate(run.model_copy(update={"production": same}), tmp_path).evaluation
    change = metric(report, "facts/AnswerChoice").improvement_over_production
    assert change is not None
    assert abs(change.value) <= 0.125
    changed = Baseline(name="tiny-v1", uri=str(gguf), sha256="0" * 64)
    with pytest.raises(StageError, match="ProductionChanged"):
        evaluate(run.model_copy(update={"production": changed}), tmp_path / "changed")


def test_an_artifact_that_was_cut_short_is_not_judged(tmp_path: Path) -> None:
    job = job_on_copy(with_evaluation(), tmp_path)
    path = job.folder(Stage.PACKAGE) / "gguf/tiny-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StageError, match=r"CorruptArtifact.*tiny-Q8_0\.gguf"):
        job.stage(Stage.EVALUATE)


def test_a_model_tuned_on_shuffled_answers_fails_by_answer_choice(tmp_path: Path) -> None:
    """The control: it learned the format as well as the other, and beats the base's perplexity, yet knows nothing."""
    gates = [
        {"name": "format", "metric": "facts/Perplexity", "against": "Base", "minImprovement": 0},
        {"name": "choice", "metric": "facts/AnswerChoice", "against": "Base", "minImprovement": 0},
    ]
    evaluation = EVALUATION | {"gates": gates}
    job = PackagedJob(tmp_path / "job", packaged.adapter(shuffled=True), evaluation=evaluation)
    job.stage(Stage.PACKAGE)
    with pytest.raises(StageError, match="GateFailed") as refusal:
        job.stage(Stage.EVALUATE)
    assert refusal.value.result is not None
    assert refusal.value.result.evaluation is not None
    assert [gate.result for gate in refusal.value.result.evaluation.gates] == ["Passed", "Failed"]


def test_without_a_gguf_the_merged_model_is_judged_alike(tmp_path: Path) -> None:
    evaluation = EVALUATION | {"gates": EVALUATION["gates"][:3]}  # type: ignore[index]
    job = PackagedJob(tmp_path / "job", packaged.adapter(), evaluation=evaluation)
    job.stage(Stage.PACKAGE)
    by_torch = job.stage(Stage.EVALUATE).evaluation
    by_llama = evaluate(with_evaluation(), tmp_path).evaluation
    for name in ("facts/Perplexity", "facts/AnswerChoice", "facts/ExactMatch", "facts/StopRate"):
        assert metric(by_torch, name).tuned.value == pytest.approx(metric(by_llama, name).tuned.value, rel=0.1)
