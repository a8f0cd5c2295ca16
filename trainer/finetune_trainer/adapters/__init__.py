"""What is trained: an adapter on a frozen base, one file each, or the weights themselves (`full.py`).

To add one: its member in `finetune_api.sections.adapter`, its file here, its line in `adapter_of`. mypy then names each `match` that
must know it: how package merges it, or why it refuses to. All is in the ground and not in `train`, because the memory plan counts
parameters in prepare and the model card names the adapter. No module here imports torch before it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, assert_never

from finetune_api.sections.adapter import Adapter, AdapterType

from finetune_trainer.adapters.full import FullWeights
from finetune_trainer.adapters.lora import LoRAAdapter
from finetune_trainer.architecture import Architecture
from finetune_trainer.model_shape import ModelShape
from finetune_trainer.weight_files import StoredTensor

if TYPE_CHECKING:
    import peft


class Trainable(Protocol):
    """What is asked of an adapter, or of full weights."""

    @property
    def freezes_base(self) -> bool:
        """Whether the base's weights stay as they are: they may be 4-bit then, and take no gradients."""

    @property
    def learning_rate(self) -> float:
        """Peak rate that is advised for it, before model and data scale it."""

    @property
    def relation(self) -> Literal["adapter", "finetune"]:
        """What the result is to its base. Source: https://huggingface.co/docs/hub/model-cards (base_model_relation)."""

    def describe(self) -> str:
        """What was trained, in the model card's words."""

    def count(self, shape: ModelShape) -> int:
        """Parameters that are trained."""

    def refuse_unmergeable(self, built: Architecture) -> None:
        """Errors: StageError(UnknownModules | UnsupportedModules) for modules that cannot be trained so, or not be merged afterwards."""

    def passed_over(self, built: Architecture) -> list[str]:
        """Layers that a reader of the settings would think trained and that are not, by short names."""

    def make(self, model: Any, base_name: str, built: Architecture) -> peft.PeftConfig | None:
        """PEFT's configuration, by which TRL puts the adapter on `model`; None where `model` is trained as it is."""

    def refuse_unmergeable_tensors(self, model: Any, stored: Mapping[str, StoredTensor], built: Architecture) -> None:
        """Goes through the merge of what is about to be trained, by names and shapes. `stored`: the base's tensors.

        Errors: StageError(UnsupportedAdapterVariant | AdapterMismatch) for what could be trained and not be merged.
        """

    def save(self, model: Any, folder: Path) -> None:
        """Writes exactly what is trained to a checkpoint.

        Errors: StageError(Diverged) where a tensor is not finite: such a checkpoint would be resumed for ever.
        """

    def load(self, model: Any, folder: Path) -> None:
        """Puts what `save` wrote back, bit for bit. Errors: StageError(CorruptArtifact) where it does not fit the model."""

    def leave(self, model: Any, base: Path, folder: Path) -> None:
        """Writes the result into the train stage's folder (see `trained.py`); nothing can be trained after it.

        `base`: the base model's folder; `dtype`: the type of its weights, by torch's name. Errors: as `save`.
        """


def adapter_of(asked: Adapter) -> Trainable:
    """What a run trains."""
    match asked.type:
        case AdapterType.LORA:
            return LoRAAdapter(asked.effective_lora)
        case AdapterType.NONE:
            return FullWeights()
        case _:
            assert_never(asked.type)
