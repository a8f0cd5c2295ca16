"""Model and adapter folders made of numpy arrays, for tests that need no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from finetune_trainer.package.tensors import TensorInfo, TensorWriter, round_to

Floats = npt.NDArray[np.float32]


def write_tensors(path: Path, tensors: dict[str, Floats], dtype: str) -> None:
    layout = [TensorInfo(name, dtype, values.shape, 0) for name, values in tensors.items()]
    with TensorWriter(path, layout, {"format": "pt"}) as writer:
        for info in layout:
            writer.write_rows(info.name, 0, round_to(tensors[info.name].reshape(info.rows_and_columns).copy(), dtype))


def write_model(folder: Path, shards: dict[str, dict[str, Floats]], dtype: str = "BF16", **config: Any) -> Path:
    """A model folder; more than one shard gets an index."""
    folder.mkdir(parents=True)
    for shard, tensors in shards.items():
        write_tensors(folder / shard, tensors, dtype)
    if len(shards) > 1:
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False} | config))
    return folder


def write_adapter(folder: Path, tensors: dict[str, Floats], rank: int = 4, alpha: float = 8, dtype: str = "F32", **config: Any) -> Path:
    """A PEFT adapter folder; tensor names are PEFT's without `base_model.model.`."""
    folder.mkdir(parents=True)
    write_tensors(folder / "adapter_model.safetensors", {f"base_model.model.{name}": values for name, values in tensors.items()}, dtype)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha} | config))
    return folder
