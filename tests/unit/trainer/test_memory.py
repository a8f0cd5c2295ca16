"""The plan of memory, rate, steps and time: against counts known from elsewhere and the rules it states."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.answer import MemoryPlan
from finetune_api.run import LocalRunSpec
from finetune_api.sections.adapter import Adapter, AdapterType
from finetune_trainer.adapters import adapter_of
from finetune_trainer.device import ASSUMED_GPU, GIB, GPUS, Device
from finetune_trainer.errors import StageError
from finetune_trainer.memory import (
    RowStatistics,
    activation_bytes,
    advised_learning_rate,
    count_parameters,
    count_steps,
    plan_memory,
)
from finetune_trainer.model_shape import ModelShape, read_shape
from finetune_trainer.precision import choose_dtypes, shown_dtypes

LLAMA_8B = ModelShape(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    total_parameters=8_030_261_248,
    dtype="bfloat16",
)
ROWS = RowStatistics(rows=10_000, tokens=5_000_000, longest=2048)


def run(**sections: Any) -> LocalRunSpec:
    basic = {
        "storage": {"root": "/x", "prefix": "y"},
        "model": {"source": "m"},
        "datasets": [{"name": "d", "source": "s"}],
        "gpusPerNode": 1,
    }
    return LocalRunSpec.model_validate(basic | sections)


def plan(device: Device | None = GPUS["H100"], rows: RowStatistics = ROWS, **sections: Any) -> MemoryPlan:
    return plan_memory(run(**sections), LLAMA_8B, rows, device)


FULL = {"adapter": {"type": "None"}}
NF4 = {"quantization": {"type": "NF4"}}


def test_lora_parameters_are_peft_s_count() -> None:
    """41,943,040 at rank 16 on all linear layers of Llama-3-8B, as `print_trainable_parameters` prints."""
    assert count_parameters(run(), LLAMA_8B).trainable == 41_943_040


def test_named_targets_and_saved_modules_count() -> None:
    lora = {"rank": 8, "targetModules": {"type": "Names", "names": ["q_proj", "v_proj"]}}
    assert count_parameters(run(adapter={"lora": lora}), LLAMA_8B).trainable == 3_407_872
    saved = count_parameters(run(adapter={"lora": lora | {"modulesToSave": ["embed_tokens", "lm_head"]}}), LLAMA_8B)
    assert saved.trainable == 3_407_872 + 2 * 128256 * 4096


def test_full_weights_take_sixteen_bytes_per_parameter() -> None:
    """fp32 masters, gradients and two moments. Source: Rajbhandari et al., ZeRO (arXiv:1910.02054), section 3.1."""
    made = plan(**FULL)
    assert made.weights_bytes + made.gradients_bytes + made.optimizer_bytes == 16 * LLAMA_8B.total_parameters
    assert made.trainable_parameters == made.total_parameters == LLAMA_8B.total_parameters


def test_lora_holds_the_base_in_two_bytes_and_nf4_in_about_half_a_byte() -> None:
    lora, nf4 = plan(), plan(**NF4)
    adapter = 4 * 41_943_040
    assert lora.weights_bytes == 2 * LLAMA_8B.total_parameters + adapter
    assert 4 * GIB < nf4.weights_bytes - adapter < 6 * GIB, "bitsandbytes reports 5.4 GB for this model: embeddings stay in bf16"
    assert nf4.dtypes == {"frozen": "nf4", "trained": "float32", "compute": "bfloat16"}


@pytest.mark.parametrize(("optimizer", "each"), [("AdamW", 8), ("PagedAdamW32bit", 8), ("AdamW8bit", 2), ("SGD", 0)])
def test_optimizer_state(optimizer: str, each: int) -> None:
    assert plan(training={"optimizer": optimizer}).optimizer_bytes == each * 41_943_040


def test_checkpointing_keeps_one_vector_per_layer() -> None:
    kept, recomputed = (activation_bytes(LLAMA_8B, 1000, 2, checkpointing) for checkpointing in (False, True))
    assert recomputed < kept / 3
    assert activation_bytes(LLAMA_8B, 2000, 2, True) == pytest.approx(2 * recomputed, abs=1)


def test_checkpointing_is_chosen_only_where_a_row_does_not_fit_without() -> None:
    assert not plan().gradient_checkpointing
    assert plan(GPUS["L4"], training={"maxLength": 8192}, **NF4, rows=RowStatistics(100, 100_000, 8192)).gradient_checkpointing
    assert plan(training={"gradientCheckpointing": "Enabled"}).gradient_checkpointing
    assert not plan(GPUS["L4"], training={"gradientCheckpointing": "Disabled"}).gradient_checkpointing


def test_the_micro_batch_fits_divides_the_batch_and_keeps_its_size() -> None:
    for name, gpu in GPUS.items():
        made = plan(gpu, **NF4, gpusPerNode=2, training={"globalBatchSize": 48})
        assert made.per_device_batch_size * made.gradient_accumulation_steps * 2 == 48, name
        assert made.total_bytes <= gpu.memory_bytes, name
    bigger, smaller = plan(GPUS["H200"]), plan(GPUS["A100-40GB"])
    assert bigger.per_device_batch_size > smaller.per_device_batch_size


def test_a_micro_batch_of_the_users_own_stays() -> None:
    made = plan(training={"perDeviceBatchSize": 4})
    assert (made.per_device_batch_size, made.gradient_accumulation_steps) == (4, 4)


def test_a_batch_that_the_gpus_cannot_share_is_refused_before_one_is_taken() -> None:
    with pytest.raises(StageError, match="multiple of the 8 GPUs"):
        plan(None, gpusPerNode=8, training={"globalBatchSize": 4})


def test_what_does_not_fit_says_where_it_would() -> None:
    made = plan(GPUS["L4"], rows=RowStatistics(100, 50_000, 512), training={"globalBatchSize": 1})
    assert made.warnings == []
    made = plan(GPUS["L4"], training={"globalBatchSize": 1, "gradientCheckpointing": "Disabled"})
    assert "L40S" in made.warnings[0]
    assert "it fits B200" in plan(**FULL).warnings[0]
    assert "use LoRA" in plan(Device("cpu", 4 * GIB)).warnings[0]


def test_short_rows_take_less_than_the_longest_allowed() -> None:
    short = plan(rows=RowStatistics(100, 1000, 10), training={"perDeviceBatchSize": 4})
    assert short.activations_bytes < plan(training={"perDeviceBatchSize": 4}).activations_bytes / 100


RATES = {
    "full": (AdapterType.NONE, 1e9, 10_000, 1e-5),
    "lora": (AdapterType.LORA, 8e9, 10_000, 2e-4),
    "above 10 B": (AdapterType.LORA, 13e9, 10_000, 1.4e-4),
    "above 30 B": (AdapterType.LORA, 70e9, 10_000, 1e-4),
    "much data": (AdapterType.LORA, 8e9, 200_000, 2.4e-4),
    "little data": (AdapterType.LORA, 8e9, 999, 1.6e-4),
    "large and little": (AdapterType.NONE, 70e9, 500, 4e-6),
}


@pytest.mark.parametrize("name", RATES)
def test_advised_learning_rates(name: str) -> None:
    adapter, parameters, rows, want = RATES[name]
    assert advised_learning_rate(adapter_of(Adapter(type=adapter)), int(parameters), rows) == pytest.approx(want)


def test_a_learning_rate_of_the_users_own_stays() -> None:
    assert plan(training={"learningRate": 0.5}).learning_rate == 0.5


@pytest.mark.parametrize(
    ("training", "want"),
    [
        ({"epochs": 1, "globalBatchSize": 16}, 625),
        ({"epochs": 2, "globalBatchSize": 30}, 668),
        ({"epochs": 0.5, "globalBatchSize": 16}, 313),
        ({"globalBatchSize": 16}, 1875),
        ({"maxSteps": 7}, 7),
        ({"epochs": 1, "packing": "Documents", "maxLength": 2048}, 153),
    ],
)
def test_steps(training: dict[str, Any], want: int) -> None:
    assert count_steps(run(training=training), ROWS) == want


def test_time_is_flops_over_what_the_device_does() -> None:
    made = plan(GPUS["H100"], training={"epochs": 1}, **FULL)
    assert made.training_seconds == pytest.approx(6 * 8.03e9 * 5e6 / (989e12 * 0.35), rel=0.01)
    assert plan(Device("cpu", 64 * GIB)).training_seconds is None


def dtypes(run: LocalRunSpec, device: Device) -> dict[str, str]:
    return shown_dtypes(run, choose_dtypes(run, device))


def test_types_by_device() -> None:
    assert dtypes(run(), GPUS["H100"]) == {"frozen": "bfloat16", "trained": "float32", "compute": "bfloat16"}
    assert dtypes(run(), Device("cuda", GIB, None, has_bfloat16=False))["compute"] == "float16"
    assert dtypes(run(), Device("cpu", GIB))["frozen"] == "float32"
    assert dtypes(run(**FULL), GPUS["H100"]) == {"trained": "float32", "compute": "bfloat16"}
    assert dtypes(run(model={"source": "m", "dtype": "Float32"}), GPUS["H100"])["frozen"] == "float32"


def test_a_device_not_seen_yet_is_assumed_small_and_said() -> None:
    made = plan(None)
    assert "assumed" in (made.planned_for or "")
    assert made.warnings == []
    assert made.total_bytes <= ASSUMED_GPU.memory_bytes
    assert plan(None, gpusPerNode=0).training_seconds is None


VOCABULARY = {"vocab_size": 100}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "state_size": 16}, (64, 128, 2, 1)),  # Mamba
        ({"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16}, (64, 256, 2, 8)),  # Mamba 2
        ({"hidden_size": 64, "num_attention_heads": 4, "layers_block_type": ["mamba", "moe", "attention"]}, (64, 256, 3, 4)),  # Nemotron-H
        (
            {"hidden_size": 64, "intermediate_size": [96, 128], "num_hidden_layers": 2, "num_attention_heads": 4},
            (64, 128, 2, 4),
        ),  # Gemma 3n
        ({"d_model": 64, "n_heads": 4, "n_layers": 2}, (64, 256, 2, 4)),  # MPT
        ({"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96}, (64, 96, 2, 4)),  # XGLM
        ({"emb_dim": 64, "n_heads": 4, "n_layers": 2}, (64, 256, 2, 4)),  # XLM
    ],
)
def test_sizes_are_read_by_the_names_that_families_give_them(config: dict[str, Any], sizes: tuple[int, ...]) -> None:
    shape = read_shape(VOCABULARY | config, 1, "float32")
    assert (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, shape.num_attention_heads) == sizes
    assert shape.head_dim >= 1


def test_shapes_are_read_from_configs_of_several_families() -> None:
    gpt2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    shape = read_shape(gpt2, 124_439_808, "float32")
    assert (shape.hidden_size, shape.intermediate_size, shape.head_dim, shape.num_key_value_heads) == (768, 3072, 64, 12)
    nested = {"text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}}
    assert read_shape(nested, 1, "float32").hidden_size == 8
    with pytest.raises(StageError, match="num_hidden_layers"):
        read_shape({"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 10}, 1, "float32")
