"""The train stage: prepared rows and a pinned base in, an adapter or full weights out; interrupted at any moment, it goes on exactly."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune_api.answer import StageResult
from finetune_api.environment import DEVICE, DEVICE_CPU, HUB_OFFLINE
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage

from finetune_trainer.adapters import adapter_of
from finetune_trainer.architecture import Architecture
from finetune_trainer.cpus import usable_cpus
from finetune_trainer.device import ASSUMED_CPU, Device
from finetune_trainer.errors import StageError
from finetune_trainer.interruption import Interruption
from finetune_trainer.memory import plan_memory
from finetune_trainer.precision import choose_dtypes
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.quiet import quiet_libraries
from finetune_trainer.stages import Workspace, inputs_digest
from finetune_trainer.storage import not_written
from finetune_trainer.train.cadence import Cadence
from finetune_trainer.train.checkpoint import CheckpointStore
from finetune_trainer.train.hf_arguments import Surroundings
from finetune_trainer.train.methods import Trained, TrainingJob
from finetune_trainer.trained import CURVE_FILE

log = logging.getLogger(__name__)

METHODS: dict[str, str] = {
    "SFT": "finetune_trainer.train.methods.sft",
}
"""Modules by `method.type`; each has `train(job) -> Trained`. Named, not imported: one method does not pay for another."""

_LIBRARIES = {
    HUB_OFFLINE: "1",  # prepare fetched everything
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # It would post from the training loop; our own thread posts in the same format.
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
    "TOKENIZERS_PARALLELISM": "false",
}


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Trains and leaves in the stage's folder what `trained.py` lists.

    Errors: StageError(Terminated) with the work saved; StageError(Diverged | OutOfMemory | GPUNotVisible | Superseded | …).
    """
    interruption = Interruption()
    with interruption.armed(), tempfile.TemporaryDirectory(prefix="train-") as scratch:
        os.environ.update(_LIBRARIES)
        quiet_libraries()
        manifest, _ = workspace.storage.finished(Stage.PREPARE)
        prepared = load_prepared(workspace.storage, run)
        device = find_device(run, os.environ)
        if device.kind == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, which TRL imports, warns that it looked for a GPU
        store = CheckpointStore(workspace.storage, inputs_digest(run, Stage.TRAIN, manifest), run.checkpoints.keep)
        job = TrainingJob(
            run=run,
            prepared=prepared,
            around=_surroundings(run, prepared, device),
            controls=_controls(run, store, interruption),
            progress=workspace.progress,
            scratch=Path(scratch),
            built=_built(prepared),
        )
        job.controls.trained.refuse_unmergeable(job.built)
        _limit_threads(job.around.world_size)
        _claim(store, job.around)
        method: Callable[[TrainingJob], Trained] = import_module(METHODS[run.method.type]).train
        _tell_plan(job)
        trained = _guarding_memory(method, job)
        return _leave(job, trained, workspace.folder)


def find_device(run: RunSpec, environ: Mapping[str, str]) -> Device:
    """What this pod trains on: the smallest of its GPUs, so that all ranks plan alike, or its CPU.

    Errors: StageError(GPUNotVisible) where GPUs were given and are not seen; only FINETUNE_DEVICE=cpu (a test device plugin sets
    it) or `gpusPerNode: 0` allow the CPU. StageError(WorldTooSmall) where fewer processes were started than GPUs were given.
    """
    import torch

    if run.gpus_per_node > 1 and int(environ.get("WORLD_SIZE", "1")) != run.gpus_per_node:
        raise StageError(Reason.WORLD_TOO_SMALL, f"{run.gpus_per_node} GPUs need as many processes; start it with torchrun")
    if run.gpus_per_node == 0 or environ.get(DEVICE) == DEVICE_CPU:
        return ASSUMED_CPU
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < run.gpus_per_node:
        raise StageError(
            Reason.GPU_NOT_VISIBLE, f"the pod was given {run.gpus_per_node} GPUs and sees {seen}; check the node's driver and device plugin"
        )
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(seen)]
    return Device("cuda", min(sizes), has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))


def _built(prepared: Prepared) -> Architecture:
    """The base's architecture as prepare recorded it, or looked at now where it could not."""
    if prepared.model.shape.built is not None:
        return prepared.model.shape.built
    from finetune_trainer.inspection import inspect

    try:
        return inspect(prepared.model_folder)
    except ValueError as error:
        raise StageError(Reason.INVALID_MODEL, f"the base model cannot be built: {error}"[:400]) from error


def _tell_plan(job: TrainingJob) -> None:
    rows, statistics = job.prepared.set("train").rows, job.prepared.file.dataset
    log.info(
        "%d rows of %d tokens are prepared; next: %s in %s", rows, statistics.train_tokens, job.run.method.type, job.around.dtypes.autocast
    )


def _surroundings(run: RunSpec, prepared: Prepared, device: Device) -> Surroundings:
    return Surroundings(
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        on_cpu=device.kind == "cpu",
        has_validation_rows=prepared.set("validation").rows > 0,
        # Planned anew: prepare had not seen the device, and an older job whose prepare was taken over may have asked for another method.
        plan=plan_memory(run, prepared.model.shape, prepared.file.statistics, device),
        dtypes=choose_dtypes(run, device),
    )


def _controls(run: RunSpec, store: CheckpointStore, interruption: Interruption) -> Any:
    from finetune_trainer.train.loop import Controls

    return Controls(
        trained=adapter_of(run.adapter),
        store=store,
        cadence=Cadence(run.checkpoints.every_steps),
        interruption=interruption,
        save_on_sigterm=run.checkpoints.on_preemption == "Save",
    )


def _limit_threads(world_size: int) -> None:
    """One thread for each CPU that the container may use: torch counts the node's, and threads beyond a quota only wait."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cpus() // world_size))


def _claim(store: CheckpointStore, around: Surroundings) -> None:
    """Rank 0 claims the run and finds the checkpoint; the other ranks are told."""
    if around.world_size == 1:
        store.claim_newest()
        return
    import accelerate
    import torch

    state = accelerate.PartialState(cpu=around.on_cpu)
    found = [store.claim_newest() if state.is_main_process else None]
    torch.distributed.broadcast_object_list(found, src=0)
    store.newest = found[0]


def _guarding_memory(method: Callable[[TrainingJob], Trained], job: TrainingJob) -> Trained:
    import torch

    try:
        return method(job)
    except torch.cuda.OutOfMemoryError as error:
        raise StageError(
            Reason.OUT_OF_MEMORY,
            "the GPU's memory is used up; lower training.perDeviceBatchSize or training.maxLength, or enable gradientCheckpointing",
            StageResult(stage=Stage.TRAIN, checkpoint=job.controls.store.report()),
        ) from error


def _leave(job: TrainingJob, trained: Trained, folder: Path) -> StageResult:
    """Writes what the next stage reads, on rank 0, and answers."""
    from finetune_trainer.train import reporting

    store = job.controls.store
    log.info("trained %d steps, mean loss %.3g; next: package", trained.steps, reporting.mean_loss(trained.history) or 0.0)
    if int(os.environ.get("RANK", "0")) == 0:
        _leave_weights(job, trained, folder)
        reporting.write_curve(trained.history, folder / CURVE_FILE)
        store.check_claim()
    return StageResult(
        stage=Stage.TRAIN,
        plan=job.around.plan,  # for the device it got: prepare could only assume one
        steps=trained.steps,
        train_loss=reporting.mean_loss(trained.history),
        eval_loss=trained.eval_loss,
        checkpoint=store.report(),
        resumed_from_step=trained.resumed_from_step,
        warnings=[*store.skipped, *trained.warnings],
    )


def _leave_weights(job: TrainingJob, trained: Trained, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        job.controls.trained.leave(trained.model, job.prepared.model_folder, folder)
    except SafetensorError as error:  # safetensors' own word for what the system says of its file
        raise StageError(
            Reason.STORAGE_ERROR,
            not_written("trained weights", error),
            StageResult(stage=Stage.TRAIN, checkpoint=job.controls.store.report()),
        ) from error
