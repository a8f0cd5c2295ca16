"""The facts of a model's config.json and weights' headers that sizes and plans follow from. Plain numbers, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.answer import Answer
from finetune_api.outcome import Reason

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.weight_files import FLOATS, stored_tensors


class ModelShape(Answer):
    """Sizes of a decoder: counts of units, not bytes."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int = 1
    tie_word_embeddings: bool = False
    total_parameters: int
    dtype: str = "float32"
    built: Architecture | None = None
    """What transformers builds of the configuration; None where that could not be told: counts are estimates then."""


def linear_parameters(shape: ModelShape) -> int:
    """Parameters of the layers that a 4-bit base packs: not embeddings, the output head, or experts that are one fused parameter."""
    if shape.built is not None:
        return sum(
            layer.inputs * layer.outputs for layer in shape.built.layers if layer.kind == "Linear" and layer.path != shape.built.head
        )
    return shape.num_hidden_layers * sum(inputs * outputs * copies for inputs, outputs, copies in linear_layers(shape).values())


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


def read_shape(config: Mapping[str, Any], total_parameters: int, dtype: str) -> ModelShape:
    """The shape that a config.json states. Errors: StageError(InvalidModel) for one that lacks a size."""
    text = {**config, **config.get("text_config", {})}
    try:
        hidden = int(_first(text, "hidden_size", "n_embd", "d_model"))
        heads = int(_first(text, "num_attention_heads", "n_head"))
        return ModelShape(
            hidden_size=hidden,
            intermediate_size=int(_first(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)),
            num_hidden_layers=int(_first(text, "num_hidden_layers", "n_layer")),
            num_attention_heads=heads,
            num_key_value_heads=int(_first(text, "num_key_value_heads", default=heads)),
            head_dim=int(_first(text, "head_dim", default=hidden // heads)),
            vocab_size=int(_first(text, "vocab_size")),
            num_experts=int(_first(text, "num_local_experts", "num_experts", "n_routed_experts", default=1)),
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
            total_parameters=total_parameters,
            dtype=dtype,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise StageError(Reason.INVALID_MODEL, f"config.json lacks a usable {error}; use a decoder model's folder") from error


def _first(config: Mapping[str, Any], *names: str, default: int | None = None) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    if default is None:
        raise KeyError(names[0])
    return default


def count_parameters(folder: Path) -> tuple[int, str]:
    """`(number of parameters, their most frequent type by torch's name)` of a folder's weights. Errors: see `stored_tensors`."""
    by_dtype: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.elements
    most = max(by_dtype, key=lambda name: by_dtype[name], default="F32")
    return sum(by_dtype.values()), FLOATS.get(most, most)
