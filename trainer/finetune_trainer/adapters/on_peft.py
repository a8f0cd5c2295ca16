"""What all adapters that PEFT makes have in common: a frozen base, and files as `PeftModel.from_pretrained` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.trained import ADAPTER_FOLDER, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from finetune_trainer.architecture import Architecture
    from finetune_trainer.weight_files import StoredTensor


class OnPeft:
    @property
    def freezes_base(self) -> bool:
        return True

    @property
    def relation(self) -> Literal["adapter", "finetune"]:
        return "adapter"

    def save(self, model: Any, folder: Path) -> None:
        """adapter_model.safetensors and adapter_config.json: what `PeftModel.from_pretrained` reads, and nothing else."""
        import peft

        from finetune_trainer.adapters.tensors import save_finite

        state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        # Tied saved modules share memory, which safetensors refuses: each is written by itself.
        save_finite({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS)
        config = model.peft_config[model.active_adapter]
        former, config.inference_mode = config.inference_mode, True
        config.save_pretrained(folder)
        config.inference_mode = former

    def refuse_unmergeable_tensors(self, model: Any, stored: Mapping[str, StoredTensor], built: Architecture) -> None:
        import peft

        from finetune_trainer.mergeable import config_of, places

        shapes = {name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()}
        settings = model.peft_config[model.active_adapter].to_dict()
        places(shapes, config_of(settings), {name: tensor.shape for name, tensor in stored.items()}, built)

    def load(self, model: Any, folder: Path) -> None:
        import peft
        from safetensors.torch import load_file

        from finetune_trainer.adapters.tensors import refuse_unfit, trained_tensors

        outcome = peft.set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
        refuse_unfit(set(outcome.unexpected_keys) | (trained_tensors(model).keys() & set(outcome.missing_keys)))

    def leave(self, model: Any, base: Path, folder: Path) -> None:
        self.save(model, folder / ADAPTER_FOLDER)
