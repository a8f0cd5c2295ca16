"""LoRA: a low-rank update of linear layers, and on wish whole modules beside it. QLoRA is the same on a 4-bit base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_api.sections.adapter import LoRA

from finetune_trainer.adapters.on_peft import OnPeft
from finetune_trainer.architecture import Architecture
from finetune_trainer.model_shape import ModelShape, linear_layers

if TYPE_CHECKING:
    import peft


@dataclass(frozen=True)
class LoRAAdapter(OnPeft):
    settings: LoRA

    @property
    def learning_rate(self) -> float:
        return 2e-4

    def describe(self) -> str:
        return f"LoRA of rank {self.settings.rank} and alpha {self.settings.alpha:g}"

    def count(self, shape: ModelShape) -> int:
        if shape.built is not None:
            return shape.built.count(self.settings)
        named = self.settings.target_modules.names
        layers = linear_layers(shape)
        targets = [size for name, size in layers.items() if named is None or any(name == wanted.rpartition(".")[2] for wanted in named)]
        update = shape.num_hidden_layers * sum(self.settings.rank * (inputs + outputs) * copies for inputs, outputs, copies in targets)
        embedding = shape.vocab_size * shape.hidden_size
        saved = sum(name.rpartition(".")[2] in ("embed_tokens", "lm_head") for name in self.settings.modules_to_save)
        return update + embedding * saved

    def refuse_unmergeable(self, built: Architecture) -> None:
        built.refuse_unmergeable(self.settings)

    def passed_over(self, built: Architecture) -> list[str]:
        names = self.settings.target_modules.names
        return built.passed_over() if names is None else built.passed_over_of(names)

    def make(self, model: Any, base_name: str, built: Architecture) -> peft.PeftConfig:
        """Errors: StageError(UnknownModules | UnsupportedModules)."""
        import peft

        lora = self.settings
        return peft.LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_name,
            r=lora.rank,
            lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=built.names_of(built.targets(lora)),
            modules_to_save=lora.modules_to_save or None,
            # Saved modules that share a tensor go on sharing it: two copies could not be merged back into one.
            ensure_weight_tying=built.tied
            and any(saved.name == f"{built.embedding}.weight" for saved in built.saved(lora.modules_to_save)),
        )
