"""Two processes train as one does, stop together and end with one answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from finetune_api.outcome import ExitCode
from finetune_api.run import Stage

from tests.trainer.conftest import JobMaker, TrainedJob

STEPS = 60


def start(job: TrainedJob, run_file: Path, pod: str) -> subprocess.Popen[str]:
    run_file.write_text(job.run.model_copy(update={"gpus_per_node": 2}).model_dump_json(by_alias=True, exclude_none=True))
    environ = {**os.environ, "FINETUNE_DEVICE": "cpu", "POD_UID": pod}
    command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(run_file)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return told


def test_two_ranks_stopped_and_resumed_train_as_one(make_job: JobMaker, tmp_path: Path) -> None:
    sections = {
        "training": {"maxSteps": STEPS, "globalBatchSize": 4, "perDeviceBatchSize": 2, "learningRate": 1e-3},
        "checkpoints": {"type": "Steps", "everySteps": 5},
    }
    one, two = make_job("one", **sections), make_job("two", **sections)
    one.train()

    stopped = start(two, tmp_path / "run.json", "pod-0")
    while not list((two.storage.folder / "checkpoints").glob("step-*/manifest.json")):
        assert stopped.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    told = answer(stopped)
    assert (stopped.returncode, told["reason"]) == (ExitCode.TERMINATED, "Terminated")
    step = told["checkpoint"]["step"]
    assert 5 <= step < STEPS

    finished = start(two, tmp_path / "run.json", "pod-1")
    told = answer(finished)
    assert (finished.returncode, told["resumedFromStep"], told["steps"]) == (0, step, STEPS)
    assert two.output.name == "pod-1"
    assert two.losses() == pytest.approx(one.losses(), abs=2e-5)
    losses = [job.storage.finished(Stage.TRAIN)[0].result.eval_loss for job in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)
