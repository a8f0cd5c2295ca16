"""Which adapters a merge understands, and what it refuses by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.mergeable import read_config, refuse_variants
from finetune_trainer.package.adapter import LowRank, Saved, read_updates
from finetune_trainer.package.tensors import TensorReader

from tests.unit.trainer.package.model_folders import write_adapter

Q = "model.layers.0.self_attn.q_proj"


def factors(rows: int = 6, columns: int = 5, rank: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        f"{Q}.lora_A.weight": rng.standard_normal((rank, columns), dtype=np.float32),
        f"{Q}.lora_B.weight": rng.standard_normal((rows, rank), dtype=np.float32),
    }


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"bias": "all"}, "bias=all"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "peft_type=IA3"),
        ({"a_setting_of_next_year": 1}, "a_setting_of_next_year=1"),
    ],
)
def test_another_variant_is_refused_by_name(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(StageError) as refusal:
        refuse_variants({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | setting)
    assert refusal.value.reason == "UnsupportedAdapterVariant"
    assert named in refusal.value.message


def test_plain_lora_as_peft_writes_it_is_taken(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a", factors(), bias="none", init_lora_weights=True, use_dora=False, rank_pattern={}, qalora_group_size=16
    )
    assert read_config(folder).alpha == 8


def test_factors_and_saved_modules_become_updates_of_the_bases_tensors(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", factors() | {"model.embed_tokens.weight": np.ones((7, 5), np.float32)})
    with TensorReader(folder / "adapter_model.safetensors") as adapter:
        updates = read_updates(adapter, read_config(folder), {f"{Q}.weight": (6, 5), "model.embed_tokens.weight": (7, 5)}, None)
    low_rank = updates[f"{Q}.weight"]
    assert isinstance(low_rank, LowRank)
    assert np.array_equal(low_rank.up, factors()[f"{Q}.lora_B.weight"])
    assert isinstance(updates["model.embed_tokens.weight"], Saved)


def test_layers_that_keep_their_weights_the_other_way_round_get_the_transposed_update(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", factors(), fan_in_fan_out=True)
    with TensorReader(folder / "adapter_model.safetensors") as adapter:
        update = read_updates(adapter, read_config(folder), {f"{Q}.weight": (5, 6)}, None)[f"{Q}.weight"]
    assert isinstance(update, LowRank)
    b, a = factors()[f"{Q}.lora_B.weight"], factors()[f"{Q}.lora_A.weight"]
    assert np.allclose(update.up @ update.down, (b @ a).T)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"model.elsewhere.lora_A.weight": np.ones((4, 5)), "model.elsewhere.lora_B.weight": np.ones((5, 4))}, "AdapterMismatch"),
        ({f"{Q}.lora_A.weight": np.ones((4, 5))}, "AdapterMismatch"),
        ({f"{Q}.lora_A.weight": np.ones((3, 5)), f"{Q}.lora_B.weight": np.ones((6, 3))}, "AdapterMismatch"),
        ({f"{Q}.lora_magnitude_vector": np.ones(6)}, "UnsupportedAdapterVariant"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(tmp_path: Path, tensors: dict[str, Any], reason: str) -> None:
    folder = write_adapter(tmp_path / "a", {name: value.astype(np.float32) for name, value in tensors.items()})
    with TensorReader(folder / "adapter_model.safetensors") as adapter, pytest.raises(StageError) as refusal:
        read_updates(adapter, read_config(folder), {f"{Q}.weight": (6, 5)}, None)
    assert refusal.value.reason == reason
