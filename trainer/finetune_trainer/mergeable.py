"""What a PEFT LoRA adapter will change of its base, from names and shapes alone: asked before the first step, and again by the merge.

No torch, and no tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.trained import ADAPTER_CONFIG

Shape = tuple[int, ...]
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
class AdapterConfig:
    """The settings of adapter_config.json that decide what a merge is."""

    rank: int
    alpha: float
    fan_in_fan_out: bool


def read_config(folder: Path) -> AdapterConfig:
    """The adapter's settings. Errors: see `config_of`."""
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise _invalid() from error
    return config_of(settings)


def config_of(settings: Mapping[str, Any]) -> AdapterConfig:
    """Errors: StageError(UnsupportedAdapterVariant), by the variant's name; StageError(AdapterInvalid)."""
    try:
        refuse_variants(settings)
        return AdapterConfig(int(settings["r"]), float(settings["lora_alpha"]), bool(settings.get("fan_in_fan_out")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid() from error


def _invalid() -> StageError:
    return StageError(Reason.ADAPTER_INVALID, f"{ADAPTER_CONFIG} is missing or not an adapter's configuration; train again")


def refuse_variants(config: Mapping[str, Any]) -> None:
    """Refuses whatever a merge by W + alpha/r · BA would get wrong, unknown settings included."""
    for name, value in config.items():
        if name in _HARMLESS or not value or value in _NEUTRAL.get(name, ()):
            continue
        variant = _VARIANTS.get(name, f"{name}={value}" if isinstance(value, str | bool | int | float) else name)
        if name == "init_lora_weights" and str(value).lower().startswith("pissa"):
            variant = "PiSSA"
        raise StageError(Reason.UNSUPPORTED_ADAPTER_VARIANT, f"package merges plain LoRA only, not {variant}; train without it")


@dataclass(frozen=True)
class Place:
    """What an adapter does to one tensor of the base. `parts`: names in the adapter, A and B of a low-rank update or the whole tensor."""

    target: str
    parts: tuple[str, ...]
    transposed: bool = False
    """The update's product is the weight the other way round."""

    @property
    def is_low_rank(self) -> bool:
        return len(self.parts) == 2


def places(adapter: Mapping[str, Shape], config: AdapterConfig, base: Mapping[str, Shape], built: Architecture | None) -> list[Place]:
    """Where each tensor of an adapter goes. `adapter`, `base`: shapes by name, of the adapter's file and of the checkpoint.

    Errors: StageError(UnsupportedAdapterVariant) for a tensor of another variant, StageError(AdapterMismatch) for one that the base
    does not have, or that does not fit it or its own configuration.
    """
    found = [place for name in adapter if (place := _place(name, adapter, config, built)) is not None]
    for place in found:
        _refuse_unfit(place, adapter, _base_shape(place.target, base, built))
    if not found:
        raise StageError(Reason.ADAPTER_MISMATCH, "the adapter holds no update")
    return found


def head_of(built: Architecture | None) -> str:
    """The name under which an output head lies in the checkpoint, or would."""
    if built is None or built.head is None:
        return "lm_head.weight"
    return built.tensor_of(f"{built.head}.weight") or f"{built.head}.weight"


def embedding_of(built: Architecture | None, base: Mapping[str, Shape]) -> str | None:
    """The name of the input embedding in the checkpoint."""
    if built is not None and built.embedding is not None:
        return built.tensor_of(f"{built.embedding}.weight")
    return next((name for name in base if name.endswith(_EMBEDDINGS) and "vision" not in name), None)


_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HALVES = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}


def _place(name: str, adapter: Mapping[str, Shape], config: AdapterConfig, built: Architecture | None) -> Place | None:
    module, _, kind = _split_name(name)
    if kind in (*_HALVES.values(), "base_layer.weight"):
        return None  # read with its A; an untouched copy of the base's own weight
    parameter = f"{module}.weight" if kind in _HALVES else f"{module}.{kind}"
    target = built.tensor_of(parameter) if built else parameter
    if target is None:
        raise StageError(
            Reason.ADAPTER_MISMATCH, f"the adapter updates {parameter}, which is no single tensor of the base model's checkpoint"
        )
    if kind not in _HALVES:
        return Place(target, (name,))
    other = name.removesuffix(kind) + _HALVES[kind]
    if other not in adapter:
        raise StageError(Reason.ADAPTER_MISMATCH, f"the adapter holds {name} without its other half")
    _refuse_rank(name, adapter[name], adapter[other], config)
    # Embeddings and GPT-2's Conv1D keep their weights the other way round: (BA)ᵀ = AᵀBᵀ.
    return Place(target, (name, other), transposed=kind == "lora_embedding_A" or _is_conv1d(module, config, built))


def _is_conv1d(module: str, config: AdapterConfig, built: Architecture | None) -> bool:
    if built is not None:
        return any(layer.path == module and layer.kind == "Conv1D" for layer in built.layers)
    return config.fan_in_fan_out and module != "lm_head"  # GPT-2's one ordinary linear layer


def _refuse_rank(name: str, a: Shape, b: Shape, config: AdapterConfig) -> None:
    if len(a) != 2 or len(b) != 2:
        raise StageError(
            Reason.UNSUPPORTED_ADAPTER_VARIANT, "package merges LoRA of linear layers and embeddings only, not of convolutions"
        )
    if a[0] != config.rank or b[1] != config.rank:
        raise StageError(Reason.ADAPTER_MISMATCH, f"{name} has rank {a[0]} where {ADAPTER_CONFIG} says {config.rank}")


def _base_shape(target: str, base: Mapping[str, Shape], built: Architecture | None) -> Shape:
    embedding = embedding_of(built, base)
    if target in base:
        return base[target]
    if target == head_of(built) and embedding is not None and embedding in base:
        return base[embedding]  # a tied head, which is not stored
    raise StageError(Reason.ADAPTER_MISMATCH, f"the adapter updates {target}, which the base model does not have")


def _refuse_unfit(place: Place, adapter: Mapping[str, Shape], wanted: Shape) -> None:
    if place.is_low_rank:
        a, b = (adapter[name] for name in place.parts)
        shape: Shape = (a[1], b[0]) if place.transposed else (b[0], a[1])
    else:
        shape = adapter[place.parts[0]]
    if shape != wanted:
        raise StageError(Reason.ADAPTER_MISMATCH, f"{place.target} has shape {list(wanted)} in the base and {list(shape)} in the adapter")


def _split_name(name: str) -> tuple[str, str, str]:
    module = name.removeprefix(_PREFIX)
    for kind in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "base_layer.weight"):
        if module.endswith("." + kind):
            return module.removesuffix("." + kind), ".", kind
    if ".lora_" in module:
        raise StageError(Reason.UNSUPPORTED_ADAPTER_VARIANT, f"package merges plain LoRA only; the adapter holds {module}")
    return module.replace(".modules_to_save.default", "").rpartition(".")
