"""A run that was interrupted ends with the weights of one that was not, bit for bit: with dropout, accumulation and epochs.

The rows make an epoch of three steps, the last of one micro-batch instead of two: 6 steps are two epochs and 10 micro-batches.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from finetune_api.outcome import ExitCode
from finetune_trainer.adapters import adapter_of
from finetune_trainer.errors import StageError
from finetune_trainer.train.checkpoint import CheckpointStore
from finetune_trainer.train.loop import GuardedLoop
from safetensors.torch import load_file

from tests.trainer.conftest import JobMaker, RecordedProgress, TrainedJob, make_rows

MICRO_BATCHES = 10
STEPS = 6
DROPOUT = {"lora": {"rank": 4, "dropout": 0.2}}
KILLS = 10


@pytest.fixture
def make_interrupted(make_job: JobMaker) -> JobMaker:
    def make(name: str = "interrupted", **sections: Any) -> TrainedJob:
        return make_job(name, rows=make_rows(10, seed=3), adapter=DROPOUT, **sections)

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> TrainedJob:
    job = TrainedJob(tmp_path_factory.mktemp("undisturbed"), base_model, make_rows(10, seed=3), adapter=DROPOUT)
    job.train()
    return job


def assert_same_run(job: TrainedJob, oracle: TrainedJob) -> None:
    weights, wanted = (load_file(each.output / "adapter" / "adapter_model.safetensors") for each in (job, oracle))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert job.losses() == oracle.losses()
    assert tokens_so_far(job) == tokens_so_far(oracle)


def tokens_so_far(job: TrainedJob) -> list[float]:
    return [row["num_tokens"] for row in job.curve() if "loss" in row]


@contextmanager
def at_call(owner: type, method: str, call: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Runs `act` within the `call`-th call (from 0) of a method, once the method's own work is done. Yields the count so far."""
    original = getattr(owner, method)
    counted = [0]

    def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(self, *args, **kwargs)
        if counted[0] == call:
            act()
        counted[0] += 1
        return outcome

    setattr(owner, method, planted)
    try:
        yield counted
    finally:
        setattr(owner, method, original)


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_disturbed_rows_do_see_dropout(undisturbed: TrainedJob, make_job: JobMaker) -> None:
    plain = make_job(rows=make_rows(10, seed=3))
    plain.train()
    assert plain.losses() != undisturbed.losses()


@pytest.mark.parametrize("micro_batch", range(MICRO_BATCHES))
def test_sigterm_in_each_micro_batch_saves_the_last_whole_step(
    make_interrupted: JobMaker, undisturbed: TrainedJob, micro_batch: int
) -> None:
    job = make_interrupted()
    whole_steps = micro_batch // 5 * 3 + micro_batch % 5 // 2
    with at_call(trl.SFTTrainer, "training_step", micro_batch, send_sigterm) as counted, pytest.raises(StageError) as error:
        job.train("pod-0")
    assert counted[0] == micro_batch + 1
    assert error.value.exit_code == ExitCode.TERMINATED
    assert not (job.storage.folder / "train" / "manifest.json").exists()
    assert job.checkpoints == ([f"step-{whole_steps}-pod-0"] if whole_steps else [])
    assert error.value.result is not None
    assert (error.value.result.checkpoint.step if error.value.result.checkpoint else 0) == whole_steps
    assert job.train("pod-1").resumed_from_step == (whole_steps or None)
    assert_same_run(job, undisturbed)


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        (GuardedLoop, "prediction_step", 0),
        (GuardedLoop, "prediction_step", 4),
        (GuardedLoop, "_write_checkpoint", 0),
        (GuardedLoop, "_get_grad_norm", 2),
        (torch.optim.AdamW, "step", 3),
    ],
    ids=["evaluation after step 3", "evaluation after step 6", "the last save", "before a step", "after a step"],
)
def test_sigterm_elsewhere(make_interrupted: JobMaker, undisturbed: TrainedJob, owner: type, method: str, call: int) -> None:
    job = make_interrupted()
    with at_call(owner, method, call, send_sigterm) as counted, pytest.raises(StageError) as error:
        job.train("pod-0")
    assert counted[0] > call
    assert error.value.exit_code == ExitCode.TERMINATED
    job.train("pod-1")
    assert_same_run(job, undisturbed)


def test_two_interruptions_at_one_step_and_periodic_saves(make_interrupted: JobMaker, undisturbed: TrainedJob) -> None:
    job = make_interrupted(checkpoints={"type": "Steps", "everySteps": 2})
    for pod, call in (("pod-0", 4), ("pod-1", 0), ("pod-2", 0), ("pod-3", 3)):
        with at_call(trl.SFTTrainer, "training_step", call, send_sigterm), pytest.raises(StageError, match="Terminated"):
            job.train(pod)
    job.train("pod-4")
    assert_same_run(job, undisturbed)


def test_tokens_per_second_after_a_resume_are_those_of_this_process(make_interrupted: JobMaker) -> None:
    job, progress = make_interrupted(), RecordedProgress()
    with at_call(trl.SFTTrainer, "training_step", 6, send_sigterm), pytest.raises(StageError):
        job.train("pod-0")
    job.train("pod-1", progress)
    rates = [report["tokens_per_second"] for report in progress.reports if "tokens_per_second" in report]
    assert rates
    assert all(0 < rate < 1e7 for rate in rates)


def test_preemption_may_skip_the_save(make_interrupted: JobMaker) -> None:
    job = make_interrupted(checkpoints={"type": "Steps", "everySteps": 2, "onPreemption": "Skip"})
    with at_call(trl.SFTTrainer, "training_step", 6, send_sigterm), pytest.raises(StageError, match="step 2 of 6 is saved"):
        job.train()
    assert job.checkpoints == ["step-2-pod-0"]


def test_sigterm_while_the_model_is_loaded_ends_at_once(make_interrupted: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.train import building

    monkeypatch.setattr(building, "load_base", lambda *args: send_sigterm())
    with pytest.raises(StageError) as error:
        make_interrupted().train()
    assert error.value.exit_code == ExitCode.TERMINATED


def test_the_former_signal_handler_is_put_back(make_interrupted: JobMaker) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make_interrupted().train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_weights_with_8_bit_states_resume_bitwise(make_job: JobMaker, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "rows": make_rows(10, seed=3),
        "adapter": {"type": "None", "lora": None},
        "training": {"optimizer": "AdamW8bit", "learningRate": 1e-3},
    }
    oracle, job = make_job("oracle", **sections), make_job("job", **sections)
    oracle.train()
    with at_call(trl.SFTTrainer, "training_step", 6, send_sigterm), pytest.raises(StageError):
        job.train("pod-0")
    saved = torch.load(job.storage.folder / "checkpoints" / job.checkpoints[0] / "optimizer.pt", weights_only=True)
    assert torch.uint8 in set(dtypes_within(saved["state"])), "no tensor is large enough for 8-bit states"
    job.train("pod-1")
    one, other = (load_file(each.output / "model" / "model.safetensors") for each in (job, oracle))
    assert all(torch.equal(one[name], other[name]) for name in other)


def dtypes_within(value: Any) -> Iterator[torch.dtype]:
    if isinstance(value, dict):
        for each in value.values():
            yield from dtypes_within(each)
    elif isinstance(value, torch.Tensor):
        yield value.dtype


def test_packed_and_neftune_resume_bitwise(make_job: JobMaker) -> None:
    training = {"packing": "Documents", "maxLength": 64, "neftuneNoiseAlpha": 5, "perDeviceBatchSize": 1, "globalBatchSize": 2}
    oracle, job = make_job("oracle", adapter=DROPOUT, training=training), make_job("job", adapter=DROPOUT, training=training)
    oracle.train()
    with at_call(trl.SFTTrainer, "training_step", 6, send_sigterm), pytest.raises(StageError):
        job.train("pod-0")
    assert job.train("pod-1").resumed_from_step == 3
    assert_same_run(job, oracle)


# ------------------------------------------------------------------------------------------------------------- SIGKILL and bad storage


class Child:
    """A forked child that runs the train stage and sends a mark at each micro-batch and each file it opens among the checkpoints.

    The parent has imported everything already, so a child works from its first moment.
    """

    def __init__(self, job: TrainedJob, writer: str) -> None:
        self._marks, marks = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._send_marks(marks)
                job.train(writer)
                code = 0
            finally:
                os._exit(code)
        os.close(marks)

    def _send_marks(self, marks: int) -> None:
        def on_event(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and "checkpoints" in str(arguments[0]):
                os.write(marks, b".")

        sys.addaudithook(on_event)
        training_step = trl.SFTTrainer.training_step
        trl.SFTTrainer.training_step = lambda *args, **kwargs: (os.write(marks, b"."), training_step(*args, **kwargs))[1]

    def marks(self, most: int) -> int:
        """Waits for so many marks, or for the child's end; how many came."""
        return sum(1 for _ in range(most) if os.read(self._marks, 1))

    def end(self) -> int:
        """Waits for the child; its status, as os.waitpid has it."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._marks)
        return status


def test_sigkill_at_ten_seeded_moments(make_interrupted: JobMaker, undisturbed: TrainedJob) -> None:
    every_step = {"type": "Steps", "everySteps": 1}
    whole = Child(make_interrupted("whole", checkpoints=every_step), "pod")
    moments = whole.marks(100_000)
    assert whole.end() == 0
    draw = random.Random(7)
    landed, steps_left = 0, set()
    for job_number in range(KILLS):
        job = make_interrupted(f"killed-{job_number}", checkpoints=every_step)
        for pod in range(KILLS):
            child = Child(job, f"pod-{pod}")
            child.marks(draw.randrange(1, moments))
            time.sleep(draw.uniform(0, 0.02))
            os.kill(child.pid, signal.SIGKILL)
            if not os.WIFSIGNALED(child.end()):
                break
            landed += 1
            steps_left.add(max((int(name.split("-")[1]) for name in job.checkpoints), default=0))
            if landed >= KILLS:
                break
        last = Child(job, "pod-last")
        assert last.end() == 0
        assert_same_run(job, undisturbed)
        if landed >= KILLS:
            break
    assert landed == KILLS
    assert len(steps_left) > 2, "the kills all fell on the same steps"


@pytest.mark.parametrize("damage", ["cut short", "flipped bit", "no manifest", "other settings"])
def test_a_checkpoint_that_does_not_verify_is_passed_over(make_interrupted: JobMaker, undisturbed: TrainedJob, damage: str) -> None:
    job = make_interrupted(checkpoints={"type": "Steps", "everySteps": 2})
    with at_call(trl.SFTTrainer, "training_step", 9, send_sigterm), pytest.raises(StageError):
        job.train("pod-0")
    assert job.checkpoints == ["step-4-pod-0", "step-5-pod-0"]
    newest = job.storage.folder / "checkpoints" / job.checkpoints[-1]
    before = int(job.checkpoints[-2].split("-")[1])
    weights = newest / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "cut short":
        weights.write_bytes(data[:-1])
    elif damage == "flipped bit":
        data[-5] ^= 1
        weights.write_bytes(data)
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        manifest = newest / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"inputsDigest":"', '"inputsDigest":"0'))
    result = job.train("pod-1")
    assert result.resumed_from_step == before
    assert any(newest.name in warning for warning in result.warnings)
    assert_same_run(job, undisturbed)


def test_a_late_writer_publishes_nothing(make_interrupted: JobMaker, undisturbed: TrainedJob) -> None:
    job = make_interrupted(checkpoints={"type": "Steps", "everySteps": 2})
    late = CheckpointStore(job.storage, "whatever", keep=2)

    def another_pod_starts() -> None:
        late.claim_newest()

    with at_call(trl.SFTTrainer, "training_step", 4, another_pod_starts), pytest.raises(StageError) as error:
        job.train("pod-0")
    assert error.value.reason == "Superseded"
    assert not (job.storage.folder / "train" / "manifest.json").exists()
    job.train("pod-1")
    assert_same_run(job, undisturbed)


def test_a_full_disk_is_a_storage_error_and_leaves_no_torso(make_interrupted: JobMaker, undisturbed: TrainedJob, tmp_path: Path) -> None:
    """The fault is the kernel's: no file of the child may grow beyond 20 kB, and an optimizer's states are larger."""
    job, answer = make_interrupted(checkpoints={"type": "Steps", "everySteps": 2}), tmp_path / "answer"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            job.train("pod-0")
        except StageError as error:
            answer.write_text(f"{error.reason} {error.exit_code.value} {error.message}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert answer.read_text().startswith("StorageError 15 the checkpoint of step 2 cannot be written: ")
    assert answer.read_text().rstrip().endswith("free space on the job's storage or enlarge it")
    assert job.checkpoints == []
    job.train("pod-1")
    assert_same_run(job, undisturbed)


def test_only_safe_formats_are_read_back(make_interrupted: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.load of a resume is weights_only: a pickle in a checkpoint is never run."""
    job = make_interrupted()
    with at_call(trl.SFTTrainer, "training_step", 6, send_sigterm), pytest.raises(StageError):
        job.train("pod-0")
    loads: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loads.append(kwargs.get("weights_only")) or load(*args, **kwargs))
    job.train("pod-1")
    assert loads
    assert set(loads) == {True}
    files = {path.name for path in (job.storage.folder / "checkpoints").rglob("*") if path.is_file()}
    assert files >= {"manifest.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert "training_args.bin" not in files


def test_retention_keeps_the_newest(make_interrupted: JobMaker) -> None:
    job = make_interrupted(checkpoints={"type": "Steps", "everySteps": 1, "keep": 3})
    job.train()
    assert job.checkpoints == ["step-4-pod-0", "step-5-pod-0", "step-6-pod-0"]


def test_a_checkpoint_of_another_adapter_is_refused(make_job: JobMaker, tmp_path: Path) -> None:
    from finetune_trainer.train.methods import sft

    small, large = make_job("small"), make_job("large", adapter={"lora": {"rank": 8}})
    small.train()
    models: list[Any] = []
    build = sft.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "build", lambda *args, **kwargs: models.append(build(*args, **kwargs)) or models[-1])
        large.train()
    with pytest.raises(Exception, match=r"size mismatch|does not fit"):
        adapter_of(large.run.adapter).load(models[0].model, small.storage.folder / "checkpoints" / "step-6-pod-0")
