"""What is trained: an adapter on a frozen base, or the weights themselves; how it is set up, saved and read back."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from finetune_api.outcome import Reason
from finetune_api.sections.adapter import Adapter, AdapterType, LoRA
from safetensors.torch import load_file, save_file

from finetune_trainer.errors import StageError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MASTER_WEIGHTS = "masters.safetensors"
ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"


def peft_config(adapter: Adapter, model: Any, base_name: str) -> peft.PeftConfig | None:
    """PEFT's configuration of the adapter; None for full weights.

    Errors: StageError(UnknownModules) for a module name the model lacks, with the names it has.
    """
    if adapter.type is AdapterType.NONE:
        return None
    lora = adapter.lora or LoRA()
    named = lora.target_modules.names
    _check_modules(model, named or [], "adapter.lora.targetModules.names")
    _check_modules(model, lora.modules_to_save, "adapter.lora.modulesToSave")
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=named or "all-linear",
        modules_to_save=lora.modules_to_save or None,
        # Saved modules that share a tensor go on sharing it: two copies could not be merged back into one.
        ensure_weight_tying=bool(lora.modules_to_save and getattr(model.config, "tie_word_embeddings", False)),
    )


def _check_modules(model: torch.nn.Module, names: Iterable[str], field: str) -> None:
    paths = [path for path, _ in model.named_modules()]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            known = sorted({path.rpartition(".")[2] for path in paths if path and not path.rpartition(".")[2].isdigit()})
            raise StageError(Reason.UNKNOWN_MODULES, f"{field}: the model has no module {name}; it has {', '.join(known[:40])}")


def save_trained(model: Any, folder: Path) -> None:
    """Writes exactly what is trained to a checkpoint: the adapter as PEFT reads it, or the fp32 masters.

    Errors: StageError(Diverged) where a tensor is not finite: such a checkpoint would be resumed for ever.
    """
    if isinstance(model, peft.PeftModel):
        save_adapter(model, folder)
        return
    masters = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    _check_finite(masters)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in masters.items()}, folder / MASTER_WEIGHTS)


def load_trained(model: Any, folder: Path) -> None:
    """Puts what `save_trained` wrote back, bit for bit. Errors: StageError(CorruptArtifact) where it does not fit the model."""
    if isinstance(model, peft.PeftModel):
        outcome = peft.set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        wrong = sorted(set(outcome.unexpected_keys) | (trained & set(outcome.missing_keys)))
    else:
        masters = dict(model.named_parameters())
        tensors = load_file(folder / MASTER_WEIGHTS)
        wrong = sorted({name for name, parameter in masters.items() if parameter.requires_grad} ^ tensors.keys())
        if not wrong:
            for name, tensor in tensors.items():
                masters[name].data.copy_(tensor)
    if wrong:
        raise StageError(Reason.CORRUPT_ARTIFACT, f"the checkpoint does not fit the model ({wrong[0]})")


def save_adapter(model: Any, folder: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json: what `PeftModel.from_pretrained` reads, and nothing else."""
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    _check_finite(state)
    folder.mkdir(parents=True, exist_ok=True)
    # Tied saved modules share memory, which safetensors refuses: each is written by itself.
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS)
    config = model.peft_config[model.active_adapter]
    former, config.inference_mode = config.inference_mode, True
    config.save_pretrained(folder)
    config.inference_mode = former


def save_model(model: Any, base_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes full weights as safetensors in the base's own type and tensor names, beside the base's config.json unchanged.

    The model's weights are cast in place: nothing can be trained after it.
    """
    _check_finite(dict(model.named_parameters()))
    model.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size="5GB")
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".safetensors.index.json"):
            path.unlink()
    for name in ("config.json", "generation_config.json"):
        if (base_folder / name).exists():
            shutil.copyfile(base_folder / name, folder / name)


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(Reason.DIVERGED, f"the trained tensor {name} is not finite; lower training.learningRate")
