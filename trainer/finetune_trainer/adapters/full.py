"""Full weights: no adapter, the model itself is trained, in fp32 masters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_trainer.architecture import Architecture
from finetune_trainer.model_shape import ModelShape
from finetune_trainer.trained import MODEL_FOLDER
from finetune_trainer.weight_files import StoredTensor

_MASTER_WEIGHTS = "masters.safetensors"


@dataclass(frozen=True)
class FullWeights:
    @property
    def freezes_base(self) -> bool:
        return False

    @property
    def learning_rate(self) -> float:
        return 1e-5

    @property
    def relation(self) -> Literal["adapter", "finetune"]:
        return "finetune"

    def describe(self) -> str:
        return "all weights trained"

    def count(self, shape: ModelShape) -> int:
        return shape.total_parameters

    def refuse_unmergeable(self, built: Architecture) -> None:
        """Nothing: the weights are written by the base's own names and copied."""

    def passed_over(self, built: Architecture) -> list[str]:
        return []

    def make(self, model: Any, base_name: str, built: Architecture) -> None:
        return None

    def refuse_unmergeable_tensors(self, model: Any, stored: Mapping[str, StoredTensor], built: Architecture) -> None:
        """Nothing, as above."""

    def save(self, model: Any, folder: Path) -> None:
        """The fp32 masters."""
        from finetune_trainer.adapters.tensors import save_finite, trained_tensors

        save_finite({name: parameter.data for name, parameter in trained_tensors(model).items()}, folder / _MASTER_WEIGHTS)

    def load(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file

        from finetune_trainer.adapters.tensors import refuse_unfit, trained_tensors

        masters, tensors = trained_tensors(model), load_file(folder / _MASTER_WEIGHTS)
        refuse_unfit(masters.keys() ^ tensors.keys())
        for name, tensor in tensors.items():
            masters[name].data.copy_(tensor)

    def leave(self, model: Any, base: Path, folder: Path) -> None:
        """The fp32 masters as safetensors by the base's tensor names, beside its config.json unchanged: package rounds them, once."""
        from finetune_trainer.adapters.tensors import refuse_not_finite

        refuse_not_finite(dict(model.named_parameters()))
        target = folder / MODEL_FOLDER
        target.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(target, max_shard_size="5GB")
        for path in target.iterdir():
            if path.suffix != ".safetensors" and not path.name.endswith(".safetensors.index.json"):
                path.unlink()
        for name in ("config.json", "generation_config.json"):
            if (base / name).exists():
                shutil.copyfile(base / name, target / name)
