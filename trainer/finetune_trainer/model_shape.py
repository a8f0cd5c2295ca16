"""The facts of a model's config.json and weights' headers that sizes and plans follow from. Plain numbers, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.answer import Answer
from finetune_api.outcome import Reason

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.model_json import JsonMembers
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


_HIDDEN = ("hidden_size", "n_embd", "d_model", "emb_dim", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_LISTED_LAYERS = "layers_block_type"
"""Where a configuration has each layer's kind instead of their number (Nemotron-H)."""
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads")
"""What else configurations call a size. Source: `attribute_map` of transformers' configurations."""


def read_shape(config: Mapping[str, Any], total_parameters: int, dtype: str) -> ModelShape:
    """The shape that a config.json states. Errors: StageError(InvalidModel) for one that lacks a size or has an odd one."""
    whole = JsonMembers("config.json", config)
    sizes = _Sizes(whole.object("text_config"), whole)
    hidden = sizes.needed(*_HIDDEN)
    heads = sizes.first(*_HEADS) or 1  # state-space models have none: what is then counted as attention's is a projection of their width
    return ModelShape(
        hidden_size=hidden,
        intermediate_size=sizes.largest("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        num_hidden_layers=len(sizes.of(_LISTED_LAYERS).texts(_LISTED_LAYERS)) or sizes.needed(*_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=sizes.largest("num_key_value_heads") or heads,
        head_dim=sizes.first("head_dim") or hidden // heads,
        vocab_size=sizes.needed("vocab_size"),
        num_experts=sizes.first("num_local_experts", "num_experts", "n_routed_experts", least=0) or 1,
        tie_word_embeddings=bool(sizes.of("tie_word_embeddings").flag("tie_word_embeddings")),
        total_parameters=total_parameters,
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Sizes:
    """Members of a configuration; those of its text model come first."""

    text: JsonMembers
    whole: JsonMembers

    def of(self, name: str) -> JsonMembers:
        """What holds a member."""
        return self.text if self.text.values.get(name) is not None else self.whole

    def first(self, *names: str, least: int = 1) -> int | None:
        """The first of `names` that is there."""
        found = (self.of(name).whole(name, least) for name in names)
        return next((value for value in found if value is not None), None)

    def largest(self, *names: str) -> int | None:
        """The first of `names` that is there; the largest where layers differ."""
        found = (self.of(name).numbers(name) for name in names)
        return next((max(values) for values in found if values is not None), None)

    def needed(self, *names: str) -> int:
        value = self.first(*names)
        if value is None:
            raise StageError(Reason.INVALID_MODEL, f"config.json lacks {names[0]}; use a decoder model's folder")
        return value


def count_parameters(folder: Path) -> tuple[int, str]:
    """`(number of parameters, their most frequent type by torch's name)` of a folder's weights. Errors: see `stored_tensors`."""
    by_dtype: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.elements
    most = max(by_dtype, key=lambda name: by_dtype[name], default="F32")
    return sum(by_dtype.values()), FLOATS.get(most, most)
