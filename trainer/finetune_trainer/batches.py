"""How a global batch is split: rows per forward pass and device, and passes per optimizer step. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.outcome import Reason
from finetune_api.sections.training import Training

from finetune_trainer.errors import StageError

_LARGEST_MICRO_BATCH = 64
"""More rows at once make no device faster."""


@dataclass(frozen=True)
class BatchSplit:
    """`micro_batch` rows per device and forward pass, `accumulation` passes per optimizer step; over all ranks the global batch size."""

    micro_batch: int
    accumulation: int


def choose_split(training: Training, world_size: int, fits: Callable[[int], bool]) -> BatchSplit | None:
    """The whole split with the largest micro-batch that `fits`; the one that the run names, where it names one. None where none fits.

    Errors: StageError(InvalidBatchSize) where there is no whole split.
    """
    return next((split for split in _splits(training, world_size) if fits(split.micro_batch)), None)


def smallest_split(training: Training, world_size: int) -> BatchSplit:
    """The whole split with the smallest micro-batch: what is left where none fits. Errors: as `choose_split`."""
    return _splits(training, world_size)[-1]


def _splits(training: Training, world_size: int) -> list[BatchSplit]:
    per_rank, rest = divmod(training.global_batch_size, world_size)
    if rest or not per_rank:
        raise StageError(Reason.INVALID_BATCH_SIZE, f"training.globalBatchSize must be a multiple of the {world_size} GPUs")
    own = training.per_device_batch_size
    if own is not None and per_rank % own:
        raise StageError(
            Reason.INVALID_BATCH_SIZE,
            f"training.globalBatchSize must be a multiple of perDeviceBatchSize × {world_size} GPUs = {own * world_size}",
        )
    sizes = [own] if own else [size for size in range(min(per_rank, _LARGEST_MICRO_BATCH), 0, -1) if per_rank % size == 0]
    return [BatchSplit(size, per_rank // size) for size in sizes]


def refuse_no_batch(training: Training, samples: int, round_size: int) -> None:
    """Errors: StageError(InvalidArgument) where batches that are not full are dropped and no other is left.

    `samples`: rows, or packs of them; `round_size`: micro-batch times ranks.
    """
    if training.args.get("dataloader_drop_last") and samples < round_size:
        raise StageError(
            Reason.INVALID_ARGUMENT,
            f"training.args.dataloader_drop_last: {samples} training samples make no whole batch of {round_size}, so nothing would be "
            "trained; remove it, or lower training.perDeviceBatchSize",
        )
