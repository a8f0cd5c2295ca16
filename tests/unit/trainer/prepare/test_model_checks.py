"""Facts of the model against data and settings, compared before a GPU is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.outcome import Reason
from finetune_trainer.architecture import Architecture, Layer, Parameter
from finetune_trainer.errors import StageError
from finetune_trainer.prepare import base_model, look, stopping
from finetune_trainer.storage import hash_file
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from tests.tiny_models import bpe_model
from tests.unit.trainer.prepare.conftest import Told
from tests.unit.trainer.prepare.test_stage import Job, edit, question, write_rows

EVERYTHING = {"preparation": {"split": {"train": 1, "validation": 0, "test": 0}}}
Tell = Callable[[Architecture], None]


@pytest.fixture(autouse=True)
def probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "probe_template", lambda text, tokens: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return bpe_model(tmp_path / "base")


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    return lambda built: monkeypatch.setattr(look, "Inspection", lambda folder: Told(built))


def vocabulary(base: Path) -> int:
    return int(json.loads((base / "config.json").read_bytes())["vocab_size"])


def made(base: Path, *more: Layer, rows: int | None = None) -> Architecture:
    name = "model.embed_tokens.weight"
    rows = rows or vocabulary(base)
    parameters = [
        Parameter(name=name, shape=[rows, 16], tensor=name),
        Parameter(name="model.layers.0.self_attn.q_proj.weight", shape=[16, 16], tensor="model.layers.0.self_attn.q_proj.weight"),
    ]
    layers = [
        Layer(path="model.embed_tokens", kind="Embedding", inputs=rows, outputs=16),
        Layer(path="model.layers.0.self_attn.q_proj", kind="Linear", inputs=16, outputs=16),
        Layer(path="lm_head", kind="Linear", inputs=16, outputs=rows),
        *more,
    ]
    return Architecture(parameters=parameters, layers=layers, embedding="model.embed_tokens", head="lm_head", tied=True)


def job(folder: Path, base: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Job:
    source = write_rows(folder / "d.jsonl", rows or [question(i) for i in range(12)])
    return Job(folder, base, {"name": "d", "source": source}, **(EVERYTHING | sections))


def test_code_of_its_own_is_not_asked_of_an_architecture_that_transformers_has(tmp_path: Path, base: Path, tell: Tell) -> None:
    edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})(base)
    tell(made(base))
    _, prepared = job(tmp_path, base).prepare()
    assert prepared.model.shape.built == made(base)


@pytest.mark.parametrize(
    ("auto_map", "reason"), [({"AutoModel": "x.Y"}, "RemoteCodeRefused"), (None, "UnsupportedArchitecture")], ids=["with code", "without"]
)
def test_an_architecture_that_transformers_lacks_is_refused(
    auto_map: Any, reason: str, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit("config.json", auto_map=auto_map)(base)
    unknown = StageError(Reason.UNSUPPORTED_ARCHITECTURE, "not recognized")
    monkeypatch.setattr(look, "Inspection", lambda folder: Told(unknown))
    assert job(tmp_path, base).refused().reason == reason


@pytest.mark.parametrize("rows", [399, 512])
def test_stored_rows_unlike_the_configurations_are_refused(rows: int, tmp_path: Path, base: Path, tell: Tell) -> None:
    tell(made(base, rows=rows))
    refused = job(tmp_path, base).refused()
    assert refused.reason == "InvalidModel"
    stored = [vocabulary(base), 16]
    assert f"model.embed_tokens.weight is stored as {stored}, and config.json makes it [{rows}, 16] (vocab_size)" in refused.message


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"targetModules": {"type": "Names", "names": ["lm_head"]}}, "adapter.lora.targetModules.names: lm_head is the output head"),
        ({"targetModules": {"type": "Names", "names": ["self_attn"]}}, "self_attn is no linear layer"),
        ({"targetModules": {"type": "Names", "names": ["q_prj"]}}, "no module q_prj"),
        ({"modulesToSave": ["haed"]}, "adapter.lora.modulesToSave: the model has no module haed"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused_before_a_gpu_is_taken(
    lora: dict[str, Any], words: str, tmp_path: Path, base: Path, tell: Tell
) -> None:
    tell(made(base))
    assert words in job(tmp_path, base, adapter={"type": "LoRA", "lora": lora}).refused().message


def test_the_plan_counts_what_is_trained_and_layers_left_out_are_told(tmp_path: Path, base: Path, tell: Tell) -> None:
    tell(made(base, Layer(path="model.layers.0.mlp.gate_proj", kind="Linear", inputs=16, outputs=32, reserved=True)))
    result, prepared = job(tmp_path, base, adapter={"type": "LoRA", "lora": {"rank": 4}}).prepare()
    assert result.plan is not None
    assert result.plan.trainable_parameters == 4 * 32
    assert any("mlp.gate_proj" in warning for warning in result.warnings)
    assert prepared.model.shape.total_parameters == vocabulary(base) * 16 + 256


def test_the_architecture_is_looked_at_once_for_each_storage(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    monkeypatch.setattr(look, "Inspection", lambda folder: looks.append(folder) or Told(made(base)))
    for prefix in ("a", "b"):
        job(tmp_path, base, prefix=prefix).prepare()
    assert looks == [base]


def test_a_padding_token_beyond_the_embedding_is_replaced_and_told(tmp_path: Path, base: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("[PAD]", special=True)])
    tokenizer.save(str(base / "tokenizer.json"))
    edit("tokenizer_config.json", pad_token="[PAD]")(base)
    result, prepared = job(tmp_path, base).prepare()
    assert prepared.tokens.pad_id == prepared.tokens.eos_id < vocabulary(base)
    assert any("padding token has the id" in warning for warning in result.warnings)


LONG = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the quick brown fox " * 30}]}] * 2


def learned(base: Path, tell: Tell, reserved: int = 0, beside: bool = False) -> None:
    edit("config.json", max_position_embeddings=64)(base)
    tell(made(base, Layer(path="model.wpe", kind="Embedding", inputs=64 + reserved, outputs=16, beside=beside)))


@pytest.mark.parametrize("reserved", [0, 2])
def test_rows_beyond_the_positions_are_refused_with_the_field(reserved: int, tmp_path: Path, base: Path, tell: Tell) -> None:
    learned(base, tell, reserved)
    refused = job(tmp_path, base, LONG).refused()
    assert refused.reason == "RowTooLong"
    assert "training.maxLength: a row of set train has" in refused.message
    assert "set training.maxLength to 64" in refused.message


def test_rows_beyond_a_table_of_fixed_size_are_refused(tmp_path: Path, base: Path) -> None:
    edit("config.json", model_type="gptj", n_positions=64)(base)
    assert job(tmp_path, base, LONG).refused().reason == "RowTooLong"


@pytest.mark.parametrize("split", [{"train": 0.5, "validation": 0, "test": 0.5}, {"train": 0.5, "validation": 0.5, "test": 0}])
def test_rows_that_are_only_evaluated_count_too(split: dict[str, float], tmp_path: Path, base: Path, tell: Tell) -> None:
    learned(base, tell)
    rows = [question(i) for i in range(40)] + [
        {"messages": [*LONG[0]["messages"][:1], {**LONG[0]["messages"][1], "content": f"{i} " * 60}]} for i in range(40)
    ]
    assert job(tmp_path, base, rows, preparation={"split": split}).refused().reason == "RowTooLong"


def test_short_rows_and_cut_ones_fit(tmp_path: Path, base: Path, tell: Tell) -> None:
    learned(base, tell)
    job(tmp_path, base, prefix="short").prepare()
    result, _ = job(tmp_path, base, LONG, prefix="cut", training={"maxLength": 64}).prepare()
    assert result.dataset is not None
    assert result.dataset.truncated > 0


def test_positions_of_a_vision_tower_bound_no_text(tmp_path: Path, base: Path, tell: Tell) -> None:
    learned(base, tell, beside=True)
    job(tmp_path, base, LONG).prepare()


def as_hub_cache(base: Path, root: Path) -> Path:
    """The snapshot folder of a hub's cache: links into blobs/."""
    snapshot = root / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in base.iterdir():
        shutil.copyfile(path, root / "blobs" / hash_file(path))
        (snapshot / path.name).symlink_to(os.path.relpath(root / "blobs" / hash_file(path), snapshot))
    return snapshot


@pytest.mark.parametrize("scheme", ["pvc://hub/models--org--base/snapshots/0a1b2c", None], ids=["claim", "path"])
def test_a_snapshot_of_a_hub_cache_is_a_model_for_every_stage(scheme: str | None, tmp_path: Path, base: Path) -> None:
    snapshot = as_hub_cache(base, tmp_path / "hub" / "models--org--base")
    _, prepared = job(tmp_path, Path("x"), model={"source": scheme or str(snapshot)}, claims={"hub": str(tmp_path / "hub")}).prepare()
    prepared.verify_model()
    assert [record.path for record in prepared.model.files] == sorted(path.name for path in base.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_claim_is_refused(name: str, tmp_path: Path, base: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(base / name, outside)
    (base / name).symlink_to(outside)
    refused = job(tmp_path, Path("x"), model={"source": "pvc://models/base"}, claims={"models": str(tmp_path / "base" / "..")})
    refused.run.claims["models"] = str(base.parent)  # the claim that holds it: nothing leads out of it
    refused.prepare()
    inner = tmp_path / "claim" / "base"
    shutil.copytree(base, inner, symlinks=True)
    error = job(
        tmp_path, Path("x"), prefix="out", model={"source": "pvc://models/base"}, claims={"models": str(tmp_path / "claim")}
    ).refused()
    assert error.reason == "UnsafePath"
    assert name in error.message


def test_weights_that_no_stage_reads_are_told_and_not_recorded(tmp_path: Path, base: Path) -> None:
    save_file(
        {name: values.astype("float16") for name, values in load_file(base / "model.safetensors").items()}, base / "model.fp16.safetensors"
    )
    result, prepared = job(tmp_path, base).prepare()
    assert [record.path for record in prepared.model.files if record.path.endswith(".safetensors")] == ["model.safetensors"]
    assert any("model.fp16.safetensors beside it is not" in warning for warning in result.warnings)


def test_a_hub_is_not_asked_for_weights_that_nobody_reads() -> None:
    names = [
        "config.json",
        "model.safetensors",
        "model.fp16.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "x.py",
    ]
    assert base_model._wanted(names) == ["config.json", "model.safetensors"]
    assert base_model._wanted(names[3:]) == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
