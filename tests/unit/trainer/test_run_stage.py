"""The driver around a stage: what is repeated, taken over, refused, and how a process ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_api.answer import Artifact, StageResult
from finetune_api.outcome import ExitCode, Reason
from finetune_api.run import LocalRunSpec, RunSpec, Stage
from finetune_trainer import __main__ as driver
from finetune_trainer.errors import StageError
from finetune_trainer.progress import Progress
from finetune_trainer.stages import STAGES, Workspace
from finetune_trainer.storage import JobStorage


def make_run(root: Path, prefix: str = "jobs/new", **changes: Any) -> LocalRunSpec:
    body = {
        "storage": {"root": str(root), "prefix": prefix, "uri": "pvc://claim"},
        "model": {"source": "/base"},
        "datasets": [{"name": "a", "source": "/data"}],
    }
    return LocalRunSpec.model_validate(body | changes)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that leave one file; the list says which did work."""
    worked: list[str] = []

    def run(run: RunSpec, workspace: Workspace) -> StageResult:
        stage = Stage(workspace.folder.parent.name)
        worked.append(f"{run.storage.prefix}:{stage}")
        file = workspace.folder / "file"
        file.write_text(stage.value)
        uri = workspace.storage.uri(file)
        return StageResult(stage=stage, artifacts=[Artifact(name="f", format="GGUF", uri=uri, sha256="0" * 64, bytes=1)])

    module = types.ModuleType("planted_stage")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_stage", module)
    monkeypatch.setattr(driver, "STAGES", {stage: replace(row, module="planted_stage") for stage, row in STAGES.items()})
    return worked


def go(stage: Stage, run: RunSpec, **options: Any) -> StageResult:
    return driver.run_stage(stage, run, "writer", Progress.from_environment({}), **options)


def test_running_a_stage_twice_is_free(tmp_path: Path, stages: list[str]) -> None:
    run = make_run(tmp_path)
    assert go(Stage.PREPARE, run) == go(Stage.PREPARE, run)
    assert stages == ["jobs/new:prepare"]


def test_reporting_never_works(tmp_path: Path, stages: list[str]) -> None:
    run = make_run(tmp_path)
    with pytest.raises(StageError, match="StageMissing"):
        go(Stage.PREPARE, run, report_only=True)
    first = go(Stage.PREPARE, run)
    assert go(Stage.PREPARE, run, report_only=True) == first


def test_other_content_on_the_storage_is_refused(tmp_path: Path, stages: list[str]) -> None:
    go(Stage.PREPARE, make_run(tmp_path))
    with pytest.raises(StageError, match="StorageConflict"):
        go(Stage.PREPARE, make_run(tmp_path, training={"maxLength": 64}))


def test_equal_stages_of_an_older_job_are_taken_over(tmp_path: Path, stages: list[str]) -> None:
    older = make_run(tmp_path, "jobs/older")
    for stage in (Stage.PREPARE, Stage.TRAIN):
        go(stage, older)
    stages.clear()
    newer = make_run(tmp_path, resumeFrom=older.storage.wire(), export={"merged": "Omit"})
    results = {stage: go(stage, newer) for stage in (Stage.PREPARE, Stage.TRAIN, Stage.PACKAGE)}
    assert stages == ["jobs/new:package"]
    assert results[Stage.TRAIN].artifacts[0].uri == "pvc://claim/jobs/new/train/writer/file"


def test_a_different_stage_is_not_taken_over(tmp_path: Path, stages: list[str]) -> None:
    older = make_run(tmp_path, "jobs/older")
    go(Stage.PREPARE, older)
    go(Stage.TRAIN, older)
    newer = make_run(tmp_path, resumeFrom=older.storage.wire(), training={"seed": 7})
    go(Stage.PREPARE, newer)
    go(Stage.TRAIN, newer)
    assert stages[-1] == "jobs/new:train"


def test_checkpoints_go_after_the_last_stage_unless_kept(tmp_path: Path, stages: list[str]) -> None:
    for retention, left in (("Keep", True), ("Delete", False)):
        run = make_run(tmp_path, f"jobs/{retention}", retention=retention)
        checkpoints = JobStorage(run.storage, "w").folder / "checkpoints"
        checkpoints.mkdir(parents=True)
        go(Stage.EVALUATE, run)
        assert checkpoints.exists() is left


def process(
    run: dict[str, Any] | None, folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str = "prepare"
) -> tuple[int, dict[str, Any]]:
    """Exit code and termination message of the program on a run file."""
    log = folder / "termination-log"
    log.write_text("")
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(log))
    file = folder / "run.json"
    file.write_text(json.dumps(run) if run is not None else "{")
    code = driver.main([stage, "--run", str(file)])
    return code, json.loads(log.read_text())


def test_a_run_file_that_does_not_parse_ends_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, message = process(None, tmp_path, monkeypatch)
    assert (code, message["reason"]) == (ExitCode.INVALID_RUN_FILE, "InvalidRunFile")


def test_the_answer_is_the_termination_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
    assert (code, message["stage"], message["reason"]) == (0, "prepare", "Completed")


def test_a_refusal_is_the_termination_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    def refuse(run: RunSpec, workspace: Workspace) -> StageResult:
        raise StageError(Reason.INVALID_DATASET, "a: line 3: expected a JSON object")

    monkeypatch.setattr(sys.modules["planted_stage"], "run", refuse)
    code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
    assert (code, message["reason"]) == (ExitCode.INVALID_INPUT, "InvalidDataset")
    assert "line 3" in message["message"]


def test_a_crash_ends_with_a_code_worth_another_attempt_and_quotes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    def crash(run: RunSpec, workspace: Workspace) -> StageResult:
        raise ValueError("the user's secret words")

    monkeypatch.setattr(sys.modules["planted_stage"], "run", crash)
    code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
    assert (code, message["reason"]) == (ExitCode.CRASH, "Crashed")
    assert "secret" not in json.dumps(message)


@pytest.mark.parametrize(("stage", "quoted"), [("prepare", False), ("evaluate", False), ("train", True)])
def test_the_log_of_a_crash_has_its_frames_and_words_only_where_no_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], caplog: pytest.LogCaptureFixture, stage: str, quoted: bool
) -> None:
    row = "-".join(["canary", "7f3a"])

    def read(run: RunSpec, workspace: Workspace) -> StageResult:
        try:
            return StageResult(stage=Stage.PREPARE, steps=int(row))
        except ValueError as error:
            raise RuntimeError(f"unreadable: {row}") from error

    monkeypatch.setattr(sys.modules["planted_stage"], "run", read)
    code, _ = process(make_run(tmp_path).wire(), tmp_path, monkeypatch, stage)
    assert code == ExitCode.CRASH
    assert all(words in caplog.text for words in ("in read", "ValueError", "RuntimeError", "steps=int(row)"))
    assert (row in caplog.text) is quoted


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space on the job's storage or enlarge it"),
        (PermissionError(errno.EACCES, "Permission denied", "/storage/jobs/a"), "Permission denied at /storage/jobs/a; let the pod's user"),
        (OSError(errno.EIO, "Input/output error", "/storage/x"), "Input/output error at /storage/x; look at the claim"),
    ],
    ids=["full", "not ours", "failing"],
)
def test_a_storage_error_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], caplog: pytest.LogCaptureFixture, error: OSError, words: str
) -> None:
    def fail(run: RunSpec, workspace: Workspace) -> StageResult:
        raise error

    monkeypatch.setattr(sys.modules["planted_stage"], "run", fail)
    code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
    assert (code, message["reason"]) == (ExitCode.STORAGE, "StorageError")
    assert words in message["message"]
    assert "in fail" in caplog.text


def test_a_library_that_calls_its_refusal_an_os_error_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    def fail(run: RunSpec, workspace: Workspace) -> StageResult:
        raise OSError("no file named pytorch_model.bin found")

    monkeypatch.setattr(sys.modules["planted_stage"], "run", fail)
    code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
    assert (code, message["reason"]) == (ExitCode.CRASH, "Crashed")


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "taken for an error of the input"])
def test_sigterm_ends_any_stage_at_once_without_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], swallowed: bool
) -> None:
    def be_stopped(run: RunSpec, workspace: Workspace) -> StageResult:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except StageError as error:
            if swallowed:
                raise StageError(Reason.INVALID_TOKENIZER, "tokenizer.json does not load") from error
            raise
        return StageResult(stage=Stage.PREPARE)

    monkeypatch.setattr(sys.modules["planted_stage"], "run", be_stopped)
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what a container's first process has by default
    try:
        code, message = process(make_run(tmp_path).wire(), tmp_path, monkeypatch)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert (code, message["reason"]) == (ExitCode.TERMINATED, "Terminated")
    assert "nothing of what stage prepare did is kept" in message["message"]
    assert not list(tmp_path.rglob("manifest.json"))


def test_memory_that_ran_out_has_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    def fill(run: RunSpec, workspace: Workspace) -> StageResult:
        raise MemoryError

    monkeypatch.setattr(sys.modules["planted_stage"], "run", fill)
    assert process(make_run(tmp_path).wire(), tmp_path, monkeypatch)[0] == ExitCode.OUT_OF_MEMORY


def test_a_long_answer_still_fits(tmp_path: Path) -> None:
    result = StageResult(stage=Stage.PREPARE, message="x" * 9000, warnings=["w" * 500] * 9)
    assert len(result.termination_message().encode()) <= 3500
    assert json.loads(result.termination_message())["stage"] == "prepare"


def test_artifacts_outlast_every_cut() -> None:
    uri = f"pvc://{'claim-of-a-long-name' * 2}/jobs/{'0' * 36}/package/{'1' * 36}"
    made = [
        {"name": form, "format": "GGUF", "uri": f"{uri}/gguf/{'n' * 40}-{form}.gguf", "sha256": "a" * 64, "bytes": 10**10}
        for form in ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
    ]
    made += [
        {"name": name, "format": kind, "uri": f"{uri}/{name}", "sha256": "a" * 64, "bytes": 10**10}
        for name, kind in (("adapter", "Adapter"), ("merged", "Safetensors"))
    ]
    parity = [
        {"format": entry["name"], "meanKL": 1 / 3, "top1": 2 / 3, "keptOfTune": 1 / 7, "fallbackTensors": 0, "verdict": "Passed"}
        for entry in made
    ]
    result = StageResult.model_validate({"stage": "package", "artifacts": made, "parity": parity, "message": "x" * 3000})
    told = StageResult.model_validate_json(result.termination_message())
    assert len(result.termination_message().encode()) <= 3500
    assert told.artifacts == result.artifacts


def test_gates_and_what_they_judged_outlast_other_metrics() -> None:
    figure = {"value": 1 / 3, "low": 1 / 7, "high": 2 / 3, "n": 2000}
    metrics = [
        {"name": f"set-{index}/AnswerChoice", **dict.fromkeys(("tuned", "base", "production", "improvementOverBase"), figure)}
        for index in range(16)
    ]
    gate = {"name": "g", "metric": "set-15/AnswerChoice", "result": "Failed", "evidence": "0.1 → 0.2; " * 30}
    body = {"stage": "evaluate", "message": gate["evidence"], "evaluation": {"metrics": metrics, "gates": [gate]}}
    text = StageResult.model_validate(body).termination_message()
    told = StageResult.model_validate_json(text)
    assert len(text.encode()) <= 3500
    assert told.evaluation is not None
    assert [entry.result for entry in told.evaluation.gates] == ["Failed"]
    assert "set-15/AnswerChoice" in [entry.name for entry in told.evaluation.metrics]


def test_numbers_are_short_and_such_as_json_has() -> None:
    """A status with NaN is refused by the API server for ever."""
    parity = {"format": "F16", "meanKL": float("nan"), "top1": 1 / 3, "verdict": "Failed"}
    text = StageResult.model_validate({"stage": "package", "parity": [parity], "trainLoss": float("-inf")}).termination_message()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (told["parity"][0]["meanKL"], told["parity"][0]["top1"], told["trainLoss"]) == (1e308, 0.333333, -1e308)
