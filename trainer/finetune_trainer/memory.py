"""Memory per device, learning rate, steps and time of a run, from plain numbers: shared by `status.plan` and by training.

Sources, by part:
  activations   Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv:2205.05198), section 4,
                for a gated MLP and attention that keeps no score matrix
  NF4           Dettmers et al., QLoRA (arXiv:2305.14314): 4 bits and 0.5 or, double quantized, 0.127 bits of scale per parameter
  time          Kaplan et al., Scaling Laws (arXiv:2001.08361): 6 FLOPs per parameter and token; 4 where the base is frozen
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from finetune_api.answer import MemoryPlan
from finetune_api.run import RunSpec
from finetune_api.sections.quantization import QuantizationType
from finetune_api.sections.training import Optimizer, Packing, Switch

from finetune_trainer.adapters import Trainable, adapter_of
from finetune_trainer.batches import BatchSplit, choose_split, refuse_no_batch, smallest_split
from finetune_trainer.device import ASSUMED_CPU, ASSUMED_GPU, GIB, GPUS, Device
from finetune_trainer.model_shape import ModelShape, linear_parameters
from finetune_trainer.precision import Dtypes, choose_dtypes, shown_dtypes
from finetune_trainer.settings import refuse_no_evaluation

DEFAULT_EPOCHS = 3.0
_USABLE_SHARE = 0.9
"""Of a device's memory; the rest goes to fragmentation."""
_RUNTIME_BYTES = {"cuda": 1 * GIB, "cpu": 1 * GIB}
"""Context, kernels and libraries of a process that trains nothing yet (torch and TRL on CPU: 1.05 GB measured)."""
_UTILIZATION = 0.35
"""Share of a device's peak that fine-tuning reaches."""


@dataclass(frozen=True)
class RowStatistics:
    """Of the training set: rows (repeats counted), tokens, longest row in tokens. `validation_rows`: beside it."""

    rows: int
    tokens: int
    longest: int
    validation_rows: int = 0


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters. `linear`: in the layers that a 4-bit base packs."""

    total: int
    trainable: int
    linear: int


@dataclass(frozen=True)
class _Bytes:
    """Bytes per parameter or activation of a run's types."""

    frozen: float
    trained: float
    linear: float
    optimizer: float
    activation: float


_OPTIMIZER_BYTES = {
    Optimizer.ADAMW: 8.0,
    Optimizer.ADAMW_FUSED: 8.0,
    Optimizer.ADAMW_8BIT: 2.0,
    Optimizer.PAGED_ADAMW_8BIT: 2.0,
    Optimizer.PAGED_ADAMW_32BIT: 8.0,
    Optimizer.ADAFACTOR: 0.02,
    Optimizer.SGD: 0.0,
}
"""Bytes of optimizer state per trained parameter: two fp32 moments, two 8-bit ones, factored ones, none."""


def count_parameters(run: RunSpec, shape: ModelShape) -> Parameters:
    """How many parameters there are and how many of them train."""
    trained = adapter_of(run.adapter)
    trainable = trained.count(shape)
    # What an adapter trains, saved modules too, is held beside the frozen original.
    total = shape.total_parameters + (trainable if trained.freezes_base else 0)
    return Parameters(total, trainable, min(linear_parameters(shape), shape.total_parameters))


def advised_learning_rate(trained: Trainable, parameters: int, rows: int) -> float:
    """Peak learning rate by what is trained (full 1e-5, LoRA 2e-4), scaled by model size (parameters) and data (rows)."""
    rate = trained.learning_rate
    if parameters > 30e9:
        rate *= 0.5
    elif parameters > 10e9:
        rate *= 0.7
    if rows > 100_000:
        rate *= 1.2
    elif rows < 1_000:
        rate *= 0.8
    return float(f"{rate:.6g}")


def count_steps(run: RunSpec, statistics: RowStatistics) -> int:
    """Optimizer steps of the run: those asked for, or whole steps for each epoch, the last of an epoch not full."""
    if run.training.max_steps is not None:
        return run.training.max_steps
    samples = statistics.rows
    if run.training.packing is Packing.DOCUMENTS:
        samples = ceil(statistics.tokens / run.training.max_length)
    per_epoch = max(1, ceil(samples / run.training.global_batch_size))
    return ceil(per_epoch * (run.training.epochs or DEFAULT_EPOCHS))


def world_size(run: RunSpec) -> int:
    """Ranks that a run trains with: one for each GPU, or one on the CPU."""
    return max(1, run.gpus_per_node)


def plan_memory(run: RunSpec, shape: ModelShape, statistics: RowStatistics, device: Device | None = None) -> MemoryPlan:
    """What a device must hold, and the micro-batch, checkpointing, rate and steps that follow.

    `device` None: not seen yet; a small GPU is assumed where the run has GPUs, 4 GiB where it has none.
    Errors: StageError(UnsupportedPrecision | UnsupportedQuantization) for types that cannot train on it; StageError(InvalidBatchSize | InvalidArgument).
    """
    assumed = device is None
    device = device or (ASSUMED_GPU if run.gpus_per_node else ASSUMED_CPU)
    parameters = count_parameters(run, shape)
    types = choose_dtypes(run, device)
    sizes = _bytes(run, types)
    fixed = _fixed_bytes(parameters, sizes)
    length = _longest_row(run, statistics)
    room = int(device.memory_bytes * _USABLE_SHARE) - _RUNTIME_BYTES[device.kind] - sum(fixed)

    def needed(micro_batch: int, checkpointing: bool) -> int:
        return activation_bytes(shape, micro_batch * length, sizes.activation, checkpointing)

    split, checkpointing = _choose(run, needed, room)
    refuse_no_evaluation(run.training, statistics.validation_rows)
    if run.training.packing is Packing.NONE:  # how many packs there are is known when they are made
        refuse_no_batch(run.training, statistics.rows, split.micro_batch * world_size(run))
    activations = needed(split.micro_batch, checkpointing)
    total = sum(fixed) + activations + _RUNTIME_BYTES[device.kind]
    steps = count_steps(run, statistics)
    return MemoryPlan(
        weights_bytes=fixed[0],
        gradients_bytes=fixed[1],
        optimizer_bytes=fixed[2],
        activations_bytes=activations,
        total_bytes=total,
        trainable_parameters=parameters.trainable,
        total_parameters=parameters.total,
        per_device_batch_size=split.micro_batch,
        gradient_accumulation_steps=split.accumulation,
        gradient_checkpointing=checkpointing,
        learning_rate=run.training.learning_rate or advised_learning_rate(adapter_of(run.adapter), shape.total_parameters, statistics.rows),
        total_steps=steps,
        training_seconds=_seconds(run, parameters, statistics, device, steps),
        dtypes=shown_dtypes(run, types),
        planned_for=_device_words(device, assumed),
        warnings=_warnings(device, total),
    )


def _longest_row(run: RunSpec, statistics: RowStatistics) -> int:
    """In tokens, as a device is given it."""
    most = run.training.max_length
    return most if run.training.packing is Packing.DOCUMENTS else min(most, statistics.longest or most)


def _bytes(run: RunSpec, types: Dtypes) -> _Bytes:
    size = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
    frozen = size[types.base]
    nf4 = run.quantization.type is QuantizationType.NF4
    linear = (4 + (0.127 if run.quantization.effective_nf4.double_quantization else 0.5)) / 8 if nf4 else frozen
    return _Bytes(frozen, 4.0, linear, _OPTIMIZER_BYTES[run.training.optimizer], size[types.autocast])


def _fixed_bytes(parameters: Parameters, sizes: _Bytes) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state: what does not grow with the batch."""
    frozen = parameters.total - parameters.trainable
    linear = min(parameters.linear, frozen)
    weights = linear * sizes.linear + (frozen - linear) * sizes.frozen + parameters.trainable * sizes.trained
    return int(weights), int(parameters.trainable * 4), int(parameters.trainable * sizes.optimizer)


def activation_bytes(shape: ModelShape, tokens: int, bytes_each: float, checkpointing: bool) -> int:
    """Bytes kept for the backward pass of `tokens` tokens, logits (fp32, with their gradient) included."""
    attention, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layer = bytes_each * (4 * shape.hidden_size + 2 * attention + 2 * key_value + 4 * shape.intermediate_size)
    kept = shape.num_hidden_layers * bytes_each * shape.hidden_size + layer if checkpointing else shape.num_hidden_layers * layer
    logits = shape.vocab_size * (4 + 4 + bytes_each)
    return int(tokens * (kept + logits))


def _choose(run: RunSpec, needed: Callable[[int, bool], int], room: int) -> tuple[BatchSplit, bool]:
    """The largest micro-batch that fits, and checkpointing only where no micro-batch fits without.

    `needed`: bytes of activations by micro-batch and checkpointing; `room`: bytes there are for them.
    """
    options = {Switch.AUTO: (False, True), Switch.ENABLED: (True,), Switch.DISABLED: (False,)}[run.training.gradient_checkpointing]
    for checkpointing in options:
        split = choose_split(run.training, world_size(run), _fitting(needed, checkpointing, room))
        if split is not None:
            return split, checkpointing
    return smallest_split(run.training, world_size(run)), options[-1]


def _fitting(needed: Callable[[int, bool], int], checkpointing: bool, room: int) -> Callable[[int], bool]:
    return lambda micro_batch: needed(micro_batch, checkpointing) <= room


def _seconds(run: RunSpec, parameters: Parameters, statistics: RowStatistics, device: Device, steps: int) -> int | None:
    if device.flops is None or not statistics.rows:
        return None
    tokens = statistics.tokens / statistics.rows * run.training.global_batch_size * steps
    per_token = 4 if adapter_of(run.adapter).freezes_base else 6
    return ceil(per_token * parameters.total * tokens / (device.flops * _UTILIZATION * world_size(run)))


def _device_words(device: Device, assumed: bool) -> str:
    words = f"{'a GPU' if device.kind == 'cuda' else 'CPU'}, {device.memory_bytes / GIB:.0f} GiB"
    return f"{words}; assumed, training plans again with what it gets" if assumed else words


def _warnings(device: Device, total: int) -> list[str]:
    warnings = []
    if total > device.memory_bytes:
        fits = [name for name, gpu in GPUS.items() if gpu.memory_bytes * _USABLE_SHARE >= total]
        cure = f"it fits {', '.join(fits)}" if fits and device.kind == "cuda" else "use LoRA, NF4, a smaller maxLength or more memory"
        warnings.append(f"needs {total / GIB:.1f} GiB, more than the {device.memory_bytes / GIB:.0f} GiB of the device planned for; {cure}")
    return warnings
