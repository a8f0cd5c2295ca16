"""What a finished train stage leaves: an adapter that moved over a base that did not, or full weights."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune_trainer.storage import folder_digest, hash_folder
from tests.trainer.conftest import JobMaker


def test_lora_moves_the_adapter_and_not_the_base(make_job: JobMaker, base_model: Path) -> None:
    before = folder_digest(hash_folder(base_model))
    job = make_job()
    result = job.train()
    assert folder_digest(hash_folder(base_model)) == before
    assert sorted(path.name for path in (job.output / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = load_file(job.output / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    moved = [float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name]
    assert len(moved) == 14
    assert min(moved) > 0
    assert result.steps == 6
    assert result.checkpoint is not None
    assert result.checkpoint.step == 6
    assert job.losses()[-1] < job.losses()[0]
