"""Trained tensors on their way to a file and back. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from finetune_api.outcome import Reason
from safetensors.torch import save_file

from finetune_trainer.errors import StageError


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes tensors to a safetensors file. Errors: StageError(Diverged) where one is not finite."""
    refuse_not_finite(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def refuse_not_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Errors: StageError(Diverged), which names the first such tensor."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(Reason.DIVERGED, f"the trained tensor {name} is not finite; lower training.learningRate")


def refuse_unfit(names: Set[str]) -> None:
    """Errors: StageError(CorruptArtifact) where a checkpoint lacks tensors of the model or holds others; `names` are these."""
    if names:
        raise StageError(Reason.CORRUPT_ARTIFACT, f"the checkpoint does not fit the model ({min(names)})")
