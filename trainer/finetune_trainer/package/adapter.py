"""A PEFT LoRA adapter as updates of the base model's tensors, by the base's own tensor names. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.architecture import Architecture
from finetune_trainer.mergeable import AdapterConfig, Place, Shape, places
from finetune_trainer.package.tensors import Float32, TensorInfo, TensorReader


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


def read_updates(adapter: TensorReader, config: AdapterConfig, base: Mapping[str, Shape], built: Architecture | None) -> dict[str, Update]:
    """What the adapter does to each tensor of the base. `base`: shapes of its tensors by name. Errors: see `places`."""
    shapes = {name: info.shape for name, info in adapter.tensors.items()}
    return {place.target: _update(adapter, place) for place in places(shapes, config, base, built)}


def _update(adapter: TensorReader, place: Place) -> Update:
    if not place.is_low_rank:
        return Saved(adapter, adapter.tensors[place.parts[0]])
    a, b = (adapter.whole(adapter.tensors[name]) for name in place.parts)
    return LowRank(up=a.T.copy(), down=b.T.copy()) if place.transposed else LowRank(up=b, down=a)
