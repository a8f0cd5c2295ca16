"""A PEFT LoRA adapter as updates of the base model's tensors, by the base's own tensor names. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.package.tensors import Float32, TensorInfo, TensorReader
from finetune_trainer.trained import ADAPTER_CONFIG

_PREFIX = "base_model.model."

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}
"""Values beside None, False and empty ones under which the update is W + alpha/r · BA and the base was not changed."""
_VARIANTS = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
_HARMLESS = frozenset(
    [
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "fan_in_fan_out",
        "ensure_weight_tying",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "qalora_group_size",
    ]
)
"""Settings that the merge understands, or that only matter while training."""


@dataclass(frozen=True)
class LowRank:
    """An update by scale · up @ down. up: (rows, r), down: (r, columns)."""

    up: Float32
    down: Float32


@dataclass(frozen=True)
class Saved:
    """A tensor trained in full, which replaces the base's."""

    reader: TensorReader
    tensor: TensorInfo


Update = LowRank | Saved


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of adapter_config.json that decide what a merge is."""

    rank: int
    alpha: float
    fan_in_fan_out: bool
    ties_embeddings: bool
    """PEFT kept the output head tied to the trained embedding."""


def read_config(folder: Path) -> AdapterConfig:
    """The adapter's settings. Errors: StageError(UnsupportedAdapterVariant), by the variant's name; StageError(AdapterInvalid)."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        refuse_variants(config)
        return AdapterConfig(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
            ties_embeddings=bool(config.get("ensure_weight_tying")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(Reason.ADAPTER_INVALID, f"{ADAPTER_CONFIG} is missing or not an adapter's configuration; train again") from error


def refuse_variants(config: Mapping[str, Any]) -> None:
    """Refuses whatever a merge by W + alpha/r · BA would get wrong, unknown settings included."""
    for name, value in config.items():
        if name in _HARMLESS or not value or value in _NEUTRAL.get(name, ()):
            continue
        variant = _VARIANTS.get(name, f"{name}={value}" if isinstance(value, str | bool | int | float) else name)
        if name == "init_lora_weights" and str(value).lower().startswith("pissa"):
            variant = "PiSSA"
        raise StageError(Reason.UNSUPPORTED_ADAPTER_VARIANT, f"package merges plain LoRA only, not {variant}; train without it")


def read_updates(adapter: TensorReader, config: AdapterConfig, base: Collection[str]) -> dict[str, Update]:
    """What the adapter does to each tensor of the base. `base` holds its tensor names, the tied output head's included.

    Errors: StageError(UnsupportedAdapterVariant) for a tensor of another variant, StageError(AdapterMismatch) for one that the base
    does not have or whose rank is not the configuration's.
    """
    updates: dict[str, Update] = {}
    for name, info in adapter.tensors.items():
        module, _, kind = _split_name(name)
        if kind in ("lora_B.weight", "lora_embedding_B", "base_layer.weight"):
            continue  # read with its lora_A; an untouched copy of the base's own weight
        target = f"{module}.weight" if kind.startswith("lora_") else f"{module}.{kind}"
        if target not in base:
            raise StageError(Reason.ADAPTER_MISMATCH, f"the adapter updates {target}, which the base model does not have")
        updates[target] = _low_rank(adapter, name, kind, config) if kind.startswith("lora_") else Saved(adapter, info)
    if not updates:
        raise StageError(Reason.ADAPTER_MISMATCH, "the adapter holds no update")
    return updates


def _split_name(name: str) -> tuple[str, str, str]:
    module = name.removeprefix(_PREFIX)
    for kind in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "base_layer.weight"):
        if module.endswith("." + kind):
            return module.removesuffix("." + kind), ".", kind
    if ".lora_" in module:
        raise StageError(Reason.UNSUPPORTED_ADAPTER_VARIANT, f"package merges plain LoRA only; the adapter holds {module}")
    return module.replace(".modules_to_save.default", "").rpartition(".")


def _low_rank(adapter: TensorReader, name: str, kind: str, config: AdapterConfig) -> LowRank:
    other = adapter.tensors.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B"))
    if other is None:
        raise StageError(Reason.ADAPTER_MISMATCH, f"the adapter holds {name} without its other half")
    a, b = adapter.whole(adapter.tensors[name]), adapter.whole(other)
    if a.ndim != 2 or b.ndim != 2:
        raise StageError(
            Reason.UNSUPPORTED_ADAPTER_VARIANT, "package merges LoRA of linear layers and embeddings only, not of convolutions"
        )
    if a.shape[0] != config.rank or b.shape[1] != config.rank:
        raise StageError(Reason.ADAPTER_MISMATCH, f"{name} has rank {a.shape[0]} where {ADAPTER_CONFIG} says {config.rank}")
    # Embeddings and GPT-2's Conv1D keep their weights the other way round: (BA)ᵀ = AᵀBᵀ.
    # GPT-2's output head is the one ordinary linear layer among them.
    if kind == "lora_embedding_A" or (config.fan_in_fan_out and not name.endswith("lm_head.lora_A.weight")):
        return LowRank(up=a.T.copy(), down=b.T.copy())
    return LowRank(up=b, down=a)
