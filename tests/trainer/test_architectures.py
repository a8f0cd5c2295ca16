"""Architectures whose checkpoint, modules and adapters are called differently: counted, refused and merged as transformers builds them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from finetune_api.run import LocalRunSpec, Stage
from finetune_api.sections.adapter import LoRA
from finetune_trainer.__main__ import run_stage
from finetune_trainer.adapters.lora import LoRAAdapter
from finetune_trainer.errors import StageError
from finetune_trainer.inspection import Inspection, inspect
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage
from finetune_trainer.weight_files import stored_tensors
from safetensors.torch import load_file, save_file

from tests.tiny_models import bpe_model

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
    "num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def build(name: str, vocabulary: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    if name == "Gemma3ForConditionalGeneration":
        text = transformers.Gemma3TextConfig(**(SIZES | {"vocab_size": vocabulary, "head_dim": 8})).to_dict()
        return kind(transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=4))
    return kind(kind.config_class(**({"vocab_size": vocabulary} | changes)))


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": SIZES,
    "Qwen2MoeForCausalLM": SIZES | EXPERTS,
    "Qwen3MoeForCausalLM": SIZES | EXPERTS,
    "MixtralForCausalLM": SIZES | EXPERTS,
    "DeepseekV3ForCausalLM": SIZES | LATENT,
    "Gemma2ForCausalLM": SIZES | {"head_dim": 8},
    "Gemma3ForConditionalGeneration": {},
    "Phi3ForCausalLM": SIZES,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": SIZES,
    "BloomForCausalLM": {"hidden_size": 32, "n_head": 4, "n_layer": 2},
    "OPTForCausalLM": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "FalconForCausalLM": SIZES,
    "Lfm2ForCausalLM": SIZES,
    "GptOssForCausalLM": SIZES | EXPERTS,
    "GraniteMoeForCausalLM": SIZES | EXPERTS,
    "Mamba2ForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "MambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "FalconMambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "JambaForCausalLM": SIZES | {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "FalconH1ForCausalLM": SIZES | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}
BARRED = {
    "Mamba2ForCausalLM": ["mixer.out_proj"],
    "MambaForCausalLM": ["mixer.out_proj"],
    "FalconMambaForCausalLM": ["mixer.out_proj"],
    "FalconH1ForCausalLM": ["mamba.out_proj"],
}
UNCALLED = {name: {"dt_proj"} for name in ("MambaForCausalLM", "FalconMambaForCausalLM", "JambaForCausalLM")}
"""Their weight is read past the layer, so an update beside it gets no gradient."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_recorded_is_what_peft_trains_and_what_merges(name: str, tmp_path: Path) -> None:
    model = build(name, 96, **ARCHITECTURES[name])
    model.save_pretrained(tmp_path)
    built, stored = inspect(tmp_path), stored_tensors(tmp_path)
    assert built.total == sum(parameter.numel() for parameter in model.parameters())
    assert [name for name in built.passed_over() if name.endswith("out_proj")] == BARRED.get(name, [])
    assert any(layer.barred for layer in built.layers) == (name in BARRED)
    assert {layer.path.rpartition(".")[2] for layer in built.layers if layer.uncalled} == UNCALLED.get(name, set())
    for saved in ([], ["lm_head"]):
        lora = LoRAAdapter(LoRA(rank=4, modules_to_save=saved))
        lora.refuse_unmergeable(built)
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        tuned = peft.get_peft_model(base, lora.make(base, "base", built))
        assert built.count(lora.settings) == sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
        lora.refuse_unmergeable_tensors(tuned, stored, built)
        tuned(input_ids=torch.arange(5, 15).reshape(1, -1), labels=torch.arange(5, 15).reshape(1, -1)).loss.backward()
        assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)


def test_parts_of_fused_experts_are_refused_by_name(tmp_path: Path) -> None:
    build("MixtralForCausalLM", 96, **ARCHITECTURES["MixtralForCausalLM"]).save_pretrained(tmp_path)
    built = inspect(tmp_path)
    with pytest.raises(StageError, match=r"targetModules.names: the model has no module w1"):
        built.refuse_unmergeable(LoRA.model_validate({"targetModules": {"type": "Names", "names": ["w1"]}}))
    with pytest.raises(StageError, match=r"modulesToSave: .*experts.* is no single tensor of the checkpoint"):
        built.refuse_unmergeable(LoRA(modules_to_save=["experts"]))


def untuned(folder: Path) -> tuple[Any, Any]:
    """A Llama: as inspected, and as it is."""
    build("LlamaForCausalLM", 96, **SIZES).save_pretrained(folder)
    return inspect(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("saved", [["layers"], ["model"], ["mlp", "self_attn"], ["proj"]])
def test_modules_to_save_that_peft_refuses_are_refused_before(saved: list[str], tmp_path: Path) -> None:
    built, base = untuned(tmp_path)
    with pytest.raises((ValueError, TypeError)):
        peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", modules_to_save=saved))
    with pytest.raises(StageError, match=r"adapter.lora.modulesToSave: "):
        built.refuse_unmergeable(LoRA(modules_to_save=saved))


@pytest.mark.parametrize("saved", [["mlp"], ["norm"], ["layers.0.mlp"]])
def test_modules_to_save_are_counted_as_peft_trains_them(saved: list[str], tmp_path: Path) -> None:
    (built, base), lora = untuned(tmp_path), LoRAAdapter(LoRA(rank=4, modules_to_save=saved))
    lora.refuse_unmergeable(built)
    tuned = peft.get_peft_model(base, lora.make(base, "base", built))
    assert built.count(lora.settings) == sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    lora.refuse_unmergeable_tensors(tuned, stored_tensors(tmp_path), built)


def test_the_child_tells_the_same_and_what_transformers_lacks_is_refused(tmp_path: Path) -> None:
    build("GPT2LMHeadModel", 96, **GPT2).save_pretrained(tmp_path)
    with closing(Inspection(tmp_path)) as look:
        assert look.result() == inspect(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes()) | {"model_type": "of_next_year", "auto_map": {"AutoConfig": "x.Y"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with closing(Inspection(tmp_path)) as look, pytest.raises(StageError) as error:
        look.result()
    assert error.value.reason == "UnsupportedArchitecture"


# ------------------------------------------------------------------------------------------------------------- through all stages


class Job:
    def __init__(self, folder: Path, name: str, adapter: dict[str, Any], prefix_removed: str = "", **changes: Any) -> None:
        self.base = bpe_model(folder / "base")
        vocabulary = json.loads((self.base / "config.json").read_bytes())["vocab_size"]
        (self.base / "model.safetensors").unlink()
        generation = (self.base / "generation_config.json").read_bytes()
        build(name, vocabulary, **changes).save_pretrained(self.base)
        (self.base / "generation_config.json").write_bytes(generation)
        if prefix_removed:
            tensors = load_file(self.base / "model.safetensors")
            renamed = {tensor.removeprefix(prefix_removed): values for tensor, values in tensors.items()}
            save_file(renamed, self.base / "model.safetensors", {"format": "pt"})
        rows = [
            {"messages": [{"role": "user", "content": f"how many in {i}?"}, {"role": "assistant", "content": f"there are {i}"}]}
            for i in range(24)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.run = LocalRunSpec.model_validate(
            {
                "storage": {"root": str(folder / "out"), "prefix": "job"},
                "model": {"source": str(self.base)},
                "datasets": [{"name": "d", "source": str(folder / "rows.jsonl")}],
                "adapter": adapter,
                "training": {"maxSteps": 2, "globalBatchSize": 4, "perDeviceBatchSize": 2, "maxLength": 96, "learningRate": 1e-2},
                "export": {"gguf": []},
            }
        )

    def go(self, *stages: Stage) -> list[Any]:
        return [run_stage(stage, self.run, "pod", Progress()) for stage in stages]

    def merged(self) -> set[str]:
        folder = JobStorage(self.run.storage, "reader").finished(Stage.PACKAGE)[1] / "merged"
        return set(stored_tensors(folder))


LORA = {"type": "LoRA", "lora": {"rank": 4, "alpha": 8}}


def test_convolutions_that_cannot_keep_flattened_rows_apart_get_padded_ones(tmp_path: Path) -> None:
    job = Job(tmp_path, "Lfm2ForCausalLM", LORA, **(SIZES | {"layer_types": ["conv", "full_attention"]}))
    _, trained = job.go(Stage.PREPARE, Stage.TRAIN)
    assert any("rows are padded instead" in warning for warning in trained.warnings)


@pytest.mark.parametrize(
    ("name", "adapter", "prefix_removed"),
    [
        ("GPT2LMHeadModel", LORA, "transformer."),
        ("GPT2LMHeadModel", {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "modulesToSave": ["wte"]}}, "transformer."),
        ("BloomForCausalLM", LORA, "transformer."),
        ("MixtralForCausalLM", LORA, ""),
        ("MixtralForCausalLM", {"type": "None"}, ""),
        ("DeepseekV3ForCausalLM", LORA, ""),
        ("GPTNeoXForCausalLM", {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "modulesToSave": ["lm_head"]}}, ""),
    ],
    ids=["GPT-2 of the hub", "its embedding saved", "BLOOM of the hub", "Mixtral", "all of Mixtral", "DeepSeek-V3", "a NeoX head"],
)
def test_it_is_trained_merged_and_proven(name: str, adapter: dict[str, Any], prefix_removed: str, tmp_path: Path) -> None:
    job = Job(tmp_path, name, adapter, prefix_removed, **ARCHITECTURES[name])
    prepared, trained, packaged = job.go(Stage.PREPARE, Stage.TRAIN, Stage.PACKAGE)
    assert prepared.plan.trainable_parameters == trained.plan.trainable_parameters
    assert packaged.parity[0].top1 > 0.99
    own_head = {"lm_head.weight"} if "wte" in str(adapter) else set()
    assert job.merged() == set(stored_tensors(job.base)) | own_head
