"""Several processes on one node: torchrun starts them, and the pod still ends with one answer and one exit code.

torchrun by itself ends with 1 whatever its processes ended with, gives them 30 seconds after SIGTERM, and sends SIGTERM to those
that are well when one fails. Each process therefore leaves its answer in a folder, and here the one that tells the cause is chosen.
Imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_api.answer import StageResult
from finetune_api.environment import RUN_FILE
from finetune_api.outcome import ExitCode, Reason
from finetune_api.run import RunSpec, Stage

ANSWERS_VARIABLE = "FINETUNE_ANSWERS"
_SHUTDOWN_TIMEOUT_S = 24 * 3600
"""How long torchrun waits after SIGTERM, in seconds: the pod's own grace period is what ends it."""


@dataclass(frozen=True)
class ProcessAnswer:
    code: int
    message: str
    """The stage's answer as JSON: what becomes the pod's termination message."""


def needs_launch(stage: Stage, run: RunSpec, environ: Mapping[str, str]) -> bool:
    """Whether this process is to start one for each GPU instead of working itself."""
    return stage.access.gpus and run.gpus_per_node > 1 and "WORLD_SIZE" not in environ


def launch(stage: Stage, run_file: str, processes: int) -> ProcessAnswer:
    """Runs the stage in `processes` processes on this node and returns the answer of the whole. SIGTERM is passed on to them."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", f"--shutdown-timeout={_SHUTDOWN_TIMEOUT_S}"),
        *("-m", "finetune_trainer", stage.value),  # no --run: torchrun would take it for its own --run-path
    ]
    with tempfile.TemporaryDirectory(prefix="answers-") as answers:
        environ = {**os.environ, ANSWERS_VARIABLE: answers, RUN_FILE: run_file}
        terminated: list[int] = []
        children: list[subprocess.Popen[bytes]] = []

        def forward(number: int, frame: FrameType | None) -> None:
            terminated.append(number)
            for child in children:
                child.send_signal(number)

        former = signal.signal(signal.SIGTERM, forward)
        try:
            children.append(subprocess.Popen(command, env=environ))
            if terminated:
                children[0].send_signal(signal.SIGTERM)
            status = children[0].wait()
        finally:
            signal.signal(signal.SIGTERM, former)
        return choose_answer(stage, read_answers(Path(answers)), processes, status, bool(terminated))


def write_answer(folder: Path, rank: int, answer: ProcessAnswer) -> None:
    """Leaves one process's answer for the launcher."""
    (folder / str(rank)).write_text(f"{answer.code}\n{answer.message}")


def read_answers(folder: Path) -> dict[int, ProcessAnswer]:
    """Answers by rank, of those processes that gave one."""
    answers = {}
    for path in folder.iterdir():
        code, _, message = path.read_text().partition("\n")
        answers[int(path.name)] = ProcessAnswer(int(code), message)
    return answers


def choose_answer(stage: Stage, answers: Mapping[int, ProcessAnswer], processes: int, status: int, terminated: bool) -> ProcessAnswer:
    """The answer that tells why the whole ended as it did.

    `status`: torchrun's exit status; `terminated`: SIGTERM came from outside. Without it a process that ended by SIGTERM was only
    stopped because another failed, by its own answer or without one (killed for its memory, say).
    """
    failed = [answer for _, answer in sorted(answers.items()) if answer.code not in (ExitCode.OK, ExitCode.TERMINATED)]
    if failed:
        return failed[0]
    if 0 in answers and (terminated or (status == 0 and len(answers) == processes)):
        return answers[0]
    message = f"{processes - len(answers)} of {processes} processes ended without an answer; the pod's log has what they said last"
    return ProcessAnswer(Reason.CRASHED.exit_code, StageResult(stage=stage, reason=Reason.CRASHED, message=message).termination_message())
