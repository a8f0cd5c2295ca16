"""Which of several processes' answers is the pod's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_api.run import RunSpec, Stage
from finetune_trainer import __main__ as program
from finetune_trainer.launch import ProcessAnswer, choose_answer, needs_launch, read_answers, write_answer

DONE, STOPPED = ProcessAnswer(0, '{"reason":"Completed"}'), ProcessAnswer(143, '{"reason":"Terminated"}')
DIVERGED, OTHER = ProcessAnswer(12, '{"reason":"Diverged"}'), ProcessAnswer(15, '{"reason":"StorageError"}')


@pytest.mark.parametrize(
    ("answers", "status", "terminated", "wanted"),
    [
        ({0: DONE, 1: DONE}, 0, False, DONE),
        ({0: STOPPED, 1: STOPPED}, 1, True, STOPPED),
        ({0: STOPPED}, 1, True, STOPPED),
        ({0: STOPPED, 1: DIVERGED}, 1, False, DIVERGED),
        ({0: DIVERGED, 1: STOPPED}, 1, False, DIVERGED),
        ({0: OTHER, 1: DIVERGED}, 1, False, OTHER),
        ({0: DONE, 1: DONE}, 0, True, DONE),
    ],
)
def test_the_answer_that_tells_the_cause_is_chosen(
    answers: dict[int, ProcessAnswer], status: int, terminated: bool, wanted: ProcessAnswer
) -> None:
    assert choose_answer(Stage.TRAIN, answers, 2, status, terminated) == wanted


@pytest.mark.parametrize("answers", [{}, {0: STOPPED}, {0: DONE}])
def test_a_process_that_died_without_a_word_is_a_crash(answers: dict[int, ProcessAnswer]) -> None:
    answer = choose_answer(Stage.TRAIN, answers, 2, 1, terminated=False)
    assert answer.code == 1
    assert json.loads(answer.message)["reason"] == "Crashed"
    assert f"{2 - len(answers)} of 2 processes" in answer.message


def test_answers_survive_the_folder(tmp_path: Path) -> None:
    write_answer(tmp_path, 0, DONE)
    write_answer(tmp_path, 1, ProcessAnswer(12, "two\nlines"))
    assert read_answers(tmp_path) == {0: DONE, 1: ProcessAnswer(12, "two\nlines")}


@pytest.mark.parametrize(
    ("stage", "gpus", "environ", "wanted"),
    [
        (Stage.TRAIN, 2, {}, True),
        (Stage.TRAIN, 1, {}, False),
        (Stage.TRAIN, 0, {}, False),
        (Stage.PACKAGE, 2, {}, False),
        (Stage.TRAIN, 2, {"WORLD_SIZE": "2"}, False),
    ],
)
def test_only_training_on_several_gpus_is_launched(stage: Stage, gpus: int, environ: dict[str, str], wanted: bool) -> None:
    run = RunSpec.model_validate(
        {"storage": {"root": "/s", "prefix": "p"}, "model": {"source": "hf://a/b"}, "datasets": [], "gpusPerNode": gpus}
    )
    assert needs_launch(stage, run, environ) is wanted


def test_repeating_an_answer_starts_no_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"storage": {"root": str(tmp_path), "prefix": "p"}, "model": {"source": "hf://a/b"}, "datasets": [], "gpusPerNode": 2}
    (tmp_path / "run.json").write_text(json.dumps(run))
    monkeypatch.setattr(program, "launch", lambda *arguments: pytest.fail("a report pod has no GPUs to train on"))
    program.main(["train", "--report", "--run", str(tmp_path / "run.json")])
    assert json.loads(capsys.readouterr().out)["reason"] == "StageMissing"
