"""The package stage on a tiny Llama: what it leaves, and what it refuses to leave."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import gguf
import numpy as np
import peft
import pytest
import torch
import transformers
from finetune_api.outcome import ExitCode
from finetune_api.run import Stage
from finetune_api.sections.export import GGUFType
from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import Source, convert, quantize, read_gguf
from finetune_trainer.llama.home import llama_home
from finetune_trainer.llama.model import GGUFModel
from finetune_trainer.mergeable import read_config
from finetune_trainer.package import reference, rendering, stage
from finetune_trainer.package.adapter import read_updates
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.package.merge import merge, plan_merge
from finetune_trainer.package.merge_check import MergeOracle
from finetune_trainer.package.positions import AnswerRow
from finetune_trainer.package.tensors import TensorReader
from finetune_trainer.prepared import load_prepared
from safetensors.torch import load_file, save_file

from tests.trainer import packaged
from tests.trainer.packaged import PackagedJob

# --------------------------------------------------------------------------------------------------------------- what it leaves


def test_every_artifact_is_there_hashed_and_proven() -> None:
    job = packaged.packaged_job()
    manifest, folder = job.storage.finished(Stage.PACKAGE)
    result = manifest.result
    assert [artifact.name for artifact in result.artifacts] == ["adapter", "merged", "Q8_0", "F16"]
    assert [(report.format, report.verdict) for report in result.parity] == [("Merged", "Passed"), ("Q8_0", "Passed"), ("F16", "Passed")]
    assert all(report.kept_of_tune and report.kept_of_tune > 0 for report in result.parity)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder).returncode == 0
    for artifact in result.artifacts:
        path = Path(artifact.uri.removeprefix("file://"))
        assert path.exists()
        if artifact.format == "GGUF":
            assert artifact.bytes == path.stat().st_size
    assert json.loads((folder / "parity.json").read_text())["positions"] >= 100
    assert not list(folder.glob("**/*.log"))
    assert not list(folder.glob("**/.work"))
    assert result.parity[0].dtype == "Float16"  # the base is float32, which servers cast to 16 bits
    assert json.loads((folder / "merged/config.json").read_text())["dtype"] == "float16"
    assert "merged weights are Float16" in result.message
    assert result.message[1:] in (folder / "README.md").read_text()


def test_every_gguf_is_rounded_once_from_the_exact_sums() -> None:
    job = packaged.packaged_job()
    base = transformers.AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, str(packaged.adapter())).merge_and_unload().state_dict()
    exact = merged["model.layers.0.mlp.down_proj.weight"].numpy()  # a tensor whose rows the converter leaves in their order
    for form, rounded in (("F16", exact.astype(np.float16)), ("Q8_0", gguf.quants.quantize(exact, gguf.GGMLQuantizationType.Q8_0))):
        tensors = gguf.GGUFReader(job.folder(Stage.PACKAGE) / f"gguf/tiny-{form}.gguf").tensors
        found = next(tensor.data for tensor in tensors if tensor.name == "blk.0.ffn_down.weight")
        assert np.mean(found.view(np.uint8).ravel() != rounded.view(np.uint8).ravel()) < 1e-3, form


def test_no_path_of_the_machine_is_published() -> None:
    folder = packaged.packaged_job().folder(Stage.PACKAGE)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md", ".jinja", ""):
            assert str(packaged.scratch()) not in path.read_text(), path.name


def test_adapter_and_merged_model_load_unmodified_and_say_the_same() -> None:
    job = packaged.packaged_job()
    folder = job.folder(Stage.PACKAGE)
    ids = torch.arange(5, 25)[None]
    base = transformers.AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    with torch.inference_mode():
        tuned = peft.PeftModel.from_pretrained(base, str(folder / "adapter"))(ids).logits
        merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)(ids).logits
    assert torch.allclose(tuned, merged, atol=2e-2)  # rounded to float16


def test_the_base_is_cached_by_content_and_not_published() -> None:
    job = packaged.packaged_job()
    cached = sorted(path.name for path in (job.storage.root / "cache/base-gguf").glob("*/*.gguf"))
    assert cached == ["base-F16.gguf", "base-Q8_0.gguf"]
    assert not list(job.folder(Stage.PACKAGE).rglob("base*"))


def test_full_weights_are_packaged_as_they_were_trained(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    tensors = load_file(packaged.base() / "model.safetensors")
    moved = {name: weight + 0.02 * torch.randn_like(weight) if weight.ndim > 1 else weight for name, weight in tensors.items()}
    save_file(moved, trained / "model.safetensors", {"format": "pt"})
    (trained / "config.json").write_bytes((packaged.base() / "config.json").read_bytes())
    job = PackagedJob(tmp_path / "job", trained, adapter={"type": "None"}, export={"mergedDtype": "Float32"})
    result = job.stage(Stage.PACKAGE)
    assert [artifact.name for artifact in result.artifacts] == ["merged"]
    assert [(report.format, report.verdict) for report in result.parity] == [("Merged", "Passed")]
    assert result.parity[0].mean_kl < 1e-9
    published = job.folder(Stage.PACKAGE) / "merged"
    published_weights, trained_weights = load_file(published / "model.safetensors"), load_file(trained / "model.safetensors")
    assert published_weights.keys() == trained_weights.keys()
    assert all(torch.equal(weight, trained_weights[name]) for name, weight in published_weights.items())
    assert (published / "tokenizer.model").exists()


# -------------------------------------------------------------------------------------------------------- merges against PEFT's own


def small_llama(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**(sizes | {"num_key_value_heads": 2, "tie_word_embeddings": False} | changes))
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def small_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        folder
    )
    return folder


def tune(base: Path, target: Path, **settings: Any) -> Path:
    """A PEFT adapter of random weights, saved as the train stage saves one."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings))
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    target.mkdir()
    state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target / "adapter_model.safetensors")
    tuned.peft_config["default"].save_pretrained(target)
    return target


def merge_into(base_folder: Path, adapter: Path, target: Path, oracle_base: Path | None = None) -> Path:
    config = read_config(adapter)
    scale = config.alpha / config.rank
    with (
        ModelTensors(base_folder) as base,
        ModelTensors(oracle_base or base_folder) as pristine,
        TensorReader(adapter / "adapter_model.safetensors") as weights,
    ):
        plan = plan_merge(base, read_updates(weights, config, base.shapes, None))
        merge(base, plan, scale, target, MergeOracle(pristine, scale, 2).check, lambda share: None)
        settings = base.config | ({"tie_word_embeddings": False} if plan.unties else {})
    (target / "config.json").write_text(json.dumps(settings))
    return target


MERGES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "all linear layers": (small_llama, {}),
    "named layers": (small_llama, {"target_modules": ["q_proj", "down_proj"]}),
    "saved embedding and head": (small_llama, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, both saved and kept tied": (
        lambda folder: small_llama(folder, tie_word_embeddings=True),
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "tied, embedding saved and kept tied": (
        lambda folder: small_llama(folder, tie_word_embeddings=True),
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied, embedding saved alone": (lambda folder: small_llama(folder, tie_word_embeddings=True), {"modules_to_save": ["embed_tokens"]}),
    "update of the embedding": (small_llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "update of the head": (small_llama, {"target_modules": ["q_proj", "lm_head"]}),
    "weights the other way round": (small_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "biases beside the weights": (lambda folder: small_llama(folder, attention_bias=True), {}),
}


@pytest.mark.parametrize("case", MERGES)
def test_merged_equals_the_adapter_on_its_base(tmp_path: Path, case: str) -> None:
    make, settings = MERGES[case]
    base = make(tmp_path / "base")
    adapter = tune(base, tmp_path / "adapter", **settings)
    merged = merge_into(base, adapter, tmp_path / "merged")
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = model(ids).logits.clone()
        tuned = peft.PeftModel.from_pretrained(model, str(adapter))(ids).logits
        found = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    assert not torch.allclose(before, tuned, atol=1e-2)
    assert torch.allclose(found, tuned, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "name"), [({"use_dora": True}, "DoRA"), ({"use_rslora": True}, "rsLoRA"), ({"init_lora_weights": "pissa"}, "PiSSA")]
)
def test_variants_that_peft_writes_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    base = small_llama(tmp_path / "base")
    with pytest.raises(StageError, match=f"UnsupportedAdapterVariant.*{name}"):
        merge_into(base, tune(base, tmp_path / "adapter", **settings), tmp_path / "merged")


# ------------------------------------------------------------------------------------------------------------------- reference


def test_rows_of_the_reference_do_not_see_each_other() -> None:
    draw = np.random.default_rng(0)
    rows = [AnswerRow(draw.integers(5, 60, size).tolist(), [size // 2, size - 1]) for size in (40, 7, 300, 23, 150, 90)]
    together = list(reference.model_logits(packaged.base(), rows))
    alone = [next(reference.model_logits(packaged.base(), [row])) for row in rows]
    assert [found.shape for found in together] == [found.shape for found in alone]
    assert max(np.abs(one - other).max() for one, other in zip(together, alone, strict=True)) < 1e-4


# -------------------------------------------------------------------------------------------------------------- planted faults


def trained_job(tmp_path: Path, **sections: Any) -> PackagedJob:
    return PackagedJob(tmp_path / "job", packaged.adapter(), **sections)


def refuse(job: PackagedJob, reason: str = "ParityFailed") -> StageError:
    """The stage's refusal; nothing was published."""
    with pytest.raises(StageError) as refusal:
        job.stage(Stage.PACKAGE)
    assert refusal.value.reason == reason, refusal.value.message
    assert job.storage.manifest(Stage.PACKAGE) is None
    return refusal.value


def swap_adapter(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    """Merge and GGUF are made of another adapter of the same shape than was trained."""

    class Swapped(stage.Package):
        adapter = other

    planned, source = stage.planned, stage.gguf_source
    swapped = lambda package: Swapped(package.run, package.workspace, package.prepared, package.trained)  # noqa: E731
    monkeypatch.setattr(stage, "planned", lambda package, *rest: planned(swapped(package), *rest))
    monkeypatch.setattr(stage, "gguf_source", lambda package: source(swapped(package)))


def test_a_swapped_adapter_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_adapter(monkeypatch, packaged.adapter(shuffled=True))
    assert re.search(r"Merged: mean KL \d", refuse(trained_job(tmp_path)).message)


def test_an_adapter_swapped_on_the_way_to_gguf_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = stage.planned
    swap_adapter(monkeypatch, packaged.adapter(shuffled=True))
    monkeypatch.setattr(stage, "planned", planned)
    assert "GGUF: before it is rounded" in refuse(trained_job(tmp_path, export={"gguf": ["Q8_0"]})).message


def test_a_slightly_wrong_alpha_on_the_way_to_gguf_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stage.gguf_source

    def faulty(package: Any) -> Source:
        made = source(package)
        return dataclasses.replace(made, through=(*made.through[:-1], str(float(made.through[-1]) * 1.01)))

    monkeypatch.setattr(stage, "gguf_source", faulty)
    assert "GGUF: before it is rounded" in refuse(trained_job(tmp_path, export={"gguf": ["Q8_0"]})).message


def test_a_gguf_made_of_the_rounded_merge_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "gguf_source", lambda package: Source(package.merged, "tiny"))
    export = {"gguf": ["Q8_0"], "mergedDtype": "BFloat16"}
    assert "GGUF: before it is rounded" in refuse(trained_job(tmp_path, export=export)).message


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    almost_full = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: almost_full)
    refusal = refuse(trained_job(tmp_path, export={"gguf": ["Q8_0"]}), "StorageError")
    assert refusal.exit_code == ExitCode.STORAGE
    assert "MB are free" in refusal.message


def test_a_merge_with_a_slightly_wrong_alpha_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "merge", lambda base, plan, scale, *rest: merge(base, plan, scale * 1.01, *rest))
    refusal = refuse(trained_job(tmp_path))
    assert refusal.exit_code == ExitCode.PARITY_FAILED
    assert "Merged" in refusal.message


def test_a_merge_into_the_four_bit_base_is_caught(tmp_path: Path) -> None:
    base = small_llama(tmp_path / "base", hidden_size=64, intermediate_size=128)
    adapter = tune(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    for name, weight in tensors.items():
        if "proj" in name:
            tensors[name] = bitsandbytes.functional.dequantize_4bit(*bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4"))
    (tmp_path / "four-bit").mkdir()
    save_file(tensors, tmp_path / "four-bit/model.safetensors", {"format": "pt"})
    (tmp_path / "four-bit/config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(StageError, match=r"ParityFailed.*proj"):
        merge_into(tmp_path / "four-bit", adapter, tmp_path / "merged", oracle_base=base)


def test_an_adapter_of_another_alpha_than_asked_is_caught(tmp_path: Path) -> None:
    job = trained_job(tmp_path, adapter={"type": "LoRA", "lora": {"rank": packaged.RANK, "alpha": packaged.ALPHA * 1.01}})
    assert "alpha" in refuse(job).message


def resave_tokenizer(base: Path, target: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(target)


def test_a_tokenizer_saved_again_by_transformers_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = stage.write_model_files

    def write_and_save_again(prepared: Any, target: Path, *rest: Any) -> None:
        write(prepared, target, *rest)
        resave_tokenizer(prepared.model_folder, target)

    monkeypatch.setattr(stage, "write_model_files", write_and_save_again)
    assert "tokenizer" in refuse(trained_job(tmp_path)).message


def test_a_job_whose_export_is_too_far_off_publishes_nothing_and_says_how_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shake(package: Any, dtype: Any) -> None:
        make_merged(package, dtype)
        weights = load_file(package.merged / "model.safetensors")
        save_file({name: 1.05 * weight for name, weight in weights.items()}, package.merged / "model.safetensors", {"format": "pt"})

    make_merged = stage.make_merged
    monkeypatch.setattr(stage, "make_merged", shake)
    refusal = refuse(trained_job(tmp_path))
    assert re.search(r"Merged: mean KL 0\.\d+ nats \(at most \S+; correct rounding of this model loses \S+\)", refusal.message)
    assert refusal.result is not None
    assert refusal.result.parity[0].verdict == "Failed"


def test_qlora_reports_how_far_its_four_bit_base_was(tmp_path: Path) -> None:
    job = trained_job(tmp_path, quantization={"type": "NF4"}, export={"gguf": [], "merged": "Omit"})
    result = job.stage(Stage.PACKAGE)
    assert result.quantization_gap is not None
    assert 1e-6 < result.quantization_gap < 1
    assert [artifact.name for artifact in result.artifacts] == ["adapter"]


# ------------------------------------------------------------------------------------------------------- what the server would do


def faulty_gguf(tmp_path: Path, plant: Callable[[Path], None]) -> Path:
    """A GGUF of the published merge after a fault was planted in its files."""
    merged = packaged.packaged_job().folder(Stage.PACKAGE) / "merged"
    folder = tmp_path / "faulty"
    folder.mkdir()
    for path in merged.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    plant(folder)
    exact = convert(llama_home(), Source(folder, "faulty"), tmp_path / "exact.gguf")
    return quantize(llama_home(), exact, tmp_path / "out", "faulty", [GGUFType.F16])[GGUFType.F16]


def test_what_the_server_renders_is_what_was_trained(tmp_path: Path) -> None:
    job = packaged.packaged_job()
    prepared = load_prepared(job.storage, job.run)
    rows = rendering.rendered_rows(prepared)
    gguf = job.folder(Stage.PACKAGE) / "gguf/tiny-F16.gguf"
    assert len(rows) == len(packaged.SUBJECTS)
    rendering.check_rendering(llama_home(), "F16", gguf, rows, tmp_path / "server.log")
    changed = rendering.Rendered(rows[0].where, rows[0].messages, rows[0].text + " ", rows[0].ids)
    with pytest.raises(StageError, match=r"ParityFailed.*another text"):
        rendering.check_rendering(llama_home(), "F16", gguf, [changed], tmp_path / "server.log")
    changed = rendering.Rendered(rows[0].where, rows[0].messages, rows[0].text, [*rows[0].ids[:-1], 7])
    with pytest.raises(StageError, match=r"ParityFailed.*tokenises"):
        rendering.check_rendering(llama_home(), "F16", gguf, [changed], tmp_path / "server.log")


def test_a_server_of_a_tokenizer_saved_again_gives_itself_away(tmp_path: Path) -> None:
    job = packaged.packaged_job()
    prepared = load_prepared(job.storage, job.run)

    def save_again(folder: Path) -> None:
        for name in ("tokenizer.model", "tokenizer_config.json"):
            (folder / name).unlink()
        config = json.loads((job.base / "tokenizer_config.json").read_text())
        (folder / "tokenizer.model").write_bytes((job.base / "tokenizer.model").read_bytes())
        # What transformers 5 leaves out of the file that it saves; the converter then takes the defaults of the class.
        (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("add_")}))

    gguf = faulty_gguf(tmp_path, save_again)
    with pytest.raises(StageError, match="ParityFailed"):
        rendering.check_rendering(llama_home(), "F16", gguf, rendering.rendered_rows(prepared), tmp_path / "server.log")


def test_another_template_and_another_end_in_the_gguf_are_caught(tmp_path: Path) -> None:
    job = packaged.packaged_job()
    prepared = load_prepared(job.storage, job.run)

    def plant(folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = config["chat_template"].replace("assistant", "model")
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template, "eos_token": "</s>"}))
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"eos_token_id": 2}))

    gguf = faulty_gguf(tmp_path, plant)
    facts = read_gguf(gguf)
    with pytest.raises(StageError, match=r"ParityFailed.*as eos"):
        rendering.check_facts(prepared, "F16", facts)
    with pytest.raises(StageError, match=r"ParityFailed.*chat template"):
        rendering.check_facts(prepared, "F16", type(facts)(prepared.tokens.eos_id, facts.chat_template, []))
    with pytest.raises(StageError, match=r"ParityFailed.*another text"):
        rendering.check_rendering(llama_home(), "F16", gguf, rendering.rendered_rows(prepared), tmp_path / "server.log")


def test_a_gguf_that_was_cut_short_is_caught(tmp_path: Path) -> None:
    whole = (packaged.packaged_job().folder(Stage.PACKAGE) / "gguf/tiny-Q8_0.gguf").read_bytes()
    for share in (0.2, 0.7, 0.999):
        (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(StageError, match="CorruptArtifact"):
            read_gguf(tmp_path / "cut.gguf")
        with pytest.raises(StageError, match="GGUFInvalid"):
            GGUFModel(tmp_path / "cut.gguf", 256)
