"""Memory per device, learning rate, steps and time of a run, from plain numbers: shared by `status.plan` and by training.

Sources, by part:
  activations   Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv:2205.05198), section 4,
                for a gated MLP and attention that keeps no score matrix
  NF4           Dettmers et al., QLoRA (arXiv:2305.14314): 4 bits and 0.5 or, double quantized, 0.127 bits of scale per parameter
  time          Kaplan et al., Scaling Laws (arXiv:2001.08361): 6 FLOPs per parameter and token; 4 where the base is frozen
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from finetune_api.answer import MemoryPlan
from finetune_api.run import RunSpec
from finetune_api.sections.adapter import AdapterType
from finetune_api.sections.model import Dtype
from finetune_api.sections.quantization import QuantizationType
from finetune_api.sections.training import Optimizer, Packing, Precision, Switch

from finetune_trainer.model_shape import ModelShape

GIB = 1 << 30
DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.03
_USABLE_SHARE = 0.9
"""Of a device's memory; the rest goes to fragmentation."""
_RUNTIME_BYTES = {"cuda": 1 * GIB, "cpu": 1 * GIB}
"""Context, kernels and libraries of a process that trains nothing yet (torch and TRL on CPU: 1.05 GB measured)."""
_UTILIZATION = 0.35
"""Share of a device's peak that fine-tuning reaches."""
_LARGEST_MICRO_BATCH = 64


@dataclass(frozen=True)
class Device:
    """What a run trains on. `flops`: peak dense FLOP/s in bf16; None where a time cannot be told."""

    kind: str
    memory_bytes: int
    flops: float | None = None
    has_bfloat16: bool = True


GPUS: dict[str, Device] = {
    "A10G": Device("cuda", 24 * GIB, 70e12),
    "L4": Device("cuda", 24 * GIB, 121e12),
    "RTX 3090": Device("cuda", 24 * GIB, 71e12),
    "RTX 4090": Device("cuda", 24 * GIB, 165e12),
    "A100-40GB": Device("cuda", 40 * GIB, 312e12),
    "L40S": Device("cuda", 48 * GIB, 362e12),
    "A100-80GB": Device("cuda", 80 * GIB, 312e12),
    "H100": Device("cuda", 80 * GIB, 989e12),
    "H200": Device("cuda", 141 * 10**9, 989e12),
    "B200": Device("cuda", 180 * 10**9, 2250e12),
}
"""Memory and peak dense bf16 FLOP/s. Source: NVIDIA's data sheets."""

ASSUMED_GPU = GPUS["A10G"]
"""The smallest common one: a plan made before a GPU is seen must not promise too much."""
ASSUMED_CPU = Device("cpu", 4 * GIB, None, has_bfloat16=False)


@dataclass(frozen=True)
class RowStatistics:
    """Of the training set: rows (repeats counted), tokens, longest row in tokens."""

    rows: int
    tokens: int
    longest: int


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


def linear_layers(shape: ModelShape) -> dict[str, tuple[int, int, int]]:
    """`(inputs, outputs, copies per decoder layer)` of each linear layer, by the names that LoRA targets."""
    attention, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, inner, experts = shape.hidden_size, shape.intermediate_size, shape.num_experts
    return {
        "q_proj": (hidden, attention, 1),
        "k_proj": (hidden, key_value, 1),
        "v_proj": (hidden, key_value, 1),
        "o_proj": (attention, hidden, 1),
        "gate_proj": (hidden, inner, experts),
        "up_proj": (hidden, inner, experts),
        "down_proj": (inner, hidden, experts),
    }


def count_parameters(run: RunSpec, shape: ModelShape) -> Parameters:
    """How many parameters there are and how many of them train."""
    layers = linear_layers(shape)
    linear = shape.num_hidden_layers * sum(inputs * outputs * copies for inputs, outputs, copies in layers.values())
    if run.adapter.type is AdapterType.NONE:
        return Parameters(shape.total_parameters, shape.total_parameters, linear)
    lora = run.adapter.effective_lora
    named = lora.target_modules.names
    targets = [size for name, size in layers.items() if named is None or any(name == wanted.rpartition(".")[2] for wanted in named)]
    update = shape.num_hidden_layers * sum(lora.rank * (inputs + outputs) * copies for inputs, outputs, copies in targets)
    embedding = shape.vocab_size * shape.hidden_size
    saved = embedding * sum(name.rpartition(".")[2] in ("embed_tokens", "lm_head") for name in lora.modules_to_save)
    # A saved module is a copy beside the frozen original.
    return Parameters(shape.total_parameters + update + saved, update + saved, min(linear, shape.total_parameters))


def dtypes(run: RunSpec, device: Device) -> dict[str, str]:
    """Types in memory: of frozen weights, of trained ones, of the arithmetic (autocast)."""
    compute = {
        Precision.AUTO: "float32" if device.kind == "cpu" else ("bfloat16" if device.has_bfloat16 else "float16"),
        Precision.BFLOAT16: "bfloat16",
        Precision.FLOAT16: "float16",
        Precision.FLOAT32: "float32",
    }[run.training.precision]
    asked = {Dtype.AUTO: compute, Dtype.BFLOAT16: "bfloat16", Dtype.FLOAT16: "float16", Dtype.FLOAT32: "float32"}[run.model.dtype]
    if run.adapter.type is AdapterType.NONE:
        return {"trained": "float32", "compute": compute}
    frozen = "nf4" if run.quantization.type is QuantizationType.NF4 else asked
    return {"frozen": frozen, "trained": "float32", "compute": compute}


def advised_learning_rate(adapter: AdapterType, parameters: int, rows: int) -> float:
    """Peak learning rate by method, model size (parameters) and data (rows): full 1e-5, LoRA 2e-4, scaled."""
    rate = 1e-5 if adapter is AdapterType.NONE else 2e-4
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


def plan_memory(run: RunSpec, shape: ModelShape, statistics: RowStatistics, device: Device | None = None) -> MemoryPlan:
    """What a device must hold, and the micro-batch, checkpointing, rate and steps that follow.

    `device` None: not seen yet; a small GPU is assumed where the run has GPUs, 4 GiB where it has none.
    """
    assumed = device is None
    device = device or (ASSUMED_GPU if run.gpus_per_node else ASSUMED_CPU)
    parameters = count_parameters(run, shape)
    types = dtypes(run, device)
    sizes = _bytes(run, types)
    fixed = _fixed_bytes(parameters, sizes, run)
    length = min(run.training.max_length, statistics.longest or run.training.max_length)
    if run.training.packing is Packing.DOCUMENTS:
        length = run.training.max_length
    room = int(device.memory_bytes * _USABLE_SHARE) - _RUNTIME_BYTES[device.kind] - sum(fixed)
    micro_batch, checkpointing, activations = _choose(run, shape, sizes, length, room)
    world = max(1, run.gpus_per_node)
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
        per_device_batch_size=micro_batch,
        gradient_accumulation_steps=max(1, run.training.global_batch_size // (micro_batch * world)),
        gradient_checkpointing=checkpointing,
        learning_rate=run.training.learning_rate or advised_learning_rate(run.adapter.type, shape.total_parameters, statistics.rows),
        total_steps=steps,
        training_seconds=_seconds(run, parameters, statistics, device, steps),
        dtypes=types,
        warnings=_warnings(run, device, total, assumed),
    )


def _bytes(run: RunSpec, types: dict[str, str]) -> _Bytes:
    size = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
    compute = size[types["compute"]]
    frozen = types.get("frozen", "float32")
    linear = (4 + (0.127 if run.quantization.effective_nf4.double_quantization else 0.5)) / 8 if frozen == "nf4" else size[frozen]
    return _Bytes(size.get(frozen, compute), 4.0, linear, _OPTIMIZER_BYTES[run.training.optimizer], compute)


def _fixed_bytes(parameters: Parameters, sizes: _Bytes, run: RunSpec) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state: what does not grow with the batch."""
    frozen = 0 if run.adapter.type is AdapterType.NONE else parameters.total - parameters.trainable
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


def _choose(run: RunSpec, shape: ModelShape, sizes: _Bytes, length: int, room: int) -> tuple[int, bool, int]:
    """`(micro-batch, checkpointing, bytes)`: the largest micro-batch that fits; checkpointing only where one row does not fit without."""
    wanted = run.training.gradient_checkpointing
    options = {Switch.AUTO: (False, True), Switch.ENABLED: (True,), Switch.DISABLED: (False,)}[wanted]
    per_device = max(1, run.training.global_batch_size // max(1, run.gpus_per_node))
    own = run.training.per_device_batch_size
    candidates = [own] if own else [n for n in range(min(per_device, _LARGEST_MICRO_BATCH), 0, -1) if per_device % n == 0]
    needed = candidates[-1], options[-1], activation_bytes(shape, candidates[-1] * length, sizes.activation, options[-1])
    for checkpointing in options:
        for micro_batch in candidates:
            size = activation_bytes(shape, micro_batch * length, sizes.activation, checkpointing)
            if size <= room:
                return micro_batch, checkpointing, size
    return needed


def _seconds(run: RunSpec, parameters: Parameters, statistics: RowStatistics, device: Device, steps: int) -> int | None:
    if device.flops is None or not statistics.rows:
        return None
    tokens = statistics.tokens / statistics.rows * run.training.global_batch_size * steps
    per_token = 6 if run.adapter.type is AdapterType.NONE else 4
    return ceil(per_token * parameters.total * tokens / (device.flops * _UTILIZATION * max(1, run.gpus_per_node)))


def _warnings(run: RunSpec, device: Device, total: int, assumed: bool) -> list[str]:
    warnings = []
    if total > device.memory_bytes:
        fits = [name for name, gpu in GPUS.items() if gpu.memory_bytes * _USABLE_SHARE >= total]
        cure = f"it fits {', '.join(fits)}" if fits and device.kind == "cuda" else "use LoRA, NF4, a smaller maxLength or more memory"
        warnings.append(f"needs {total / GIB:.1f} GiB, more than the {device.memory_bytes / GIB:.0f} GiB of the device planned for; {cure}")
    if assumed and run.gpus_per_node:
        warnings.append(f"planned for a GPU of {device.memory_bytes // GIB} GiB; training plans again with the one it gets")
    return warnings
