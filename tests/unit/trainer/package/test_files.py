"""The files around the weights: what may differ from the base's, and what a GGUF must carry."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.answer import DatasetReport
from finetune_api.sections.export import GGUFType
from finetune_api.sections.model import Dtype
from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import GGUFFacts, read_gguf
from finetune_trainer.llama.model_files import check_model_files, write_model_files
from finetune_trainer.model_shape import ModelShape
from finetune_trainer.package.card import hub_name, write_checksums
from finetune_trainer.package.rendering import check_facts
from finetune_trainer.prepared import Prepared, PreparedFile, PreparedModel, SpecialTokens
from finetune_trainer.storage import folder_digest, hash_folder

from tests.tiny_models import CHATML_WITH_EOS, sentencepiece_model

OWN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def make_prepared(root: Path, source: str = "Model", **tokens: Any) -> Prepared:
    base = sentencepiece_model(root / "base")
    files = hash_folder(base)
    shape = ModelShape.model_construct()
    model = PreparedModel.model_construct(
        source=str(base),
        revision="r",
        digest=folder_digest(files),
        files=files,
        architecture="LlamaForCausalLM",
        model_type="llama",
        shape=shape,
    )
    file = PreparedFile.model_construct(
        model=model,
        tokens=SpecialTokens(**({"eos_token": "<|im_end|>", "eos_id": 4, "eos_ids": [4], "pad_id": 0} | tokens)),
        chat_template_source=source,
        sets=[],
        dataset=DatasetReport(digest="d", rows_in=0),
        max_length=64,
    )
    folder = root / "prepare"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(OWN_TEMPLATE if source != "Model" else CHATML_WITH_EOS)
    return Prepared(folder, base, file)


def test_files_are_the_bases_byte_for_byte(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path)
    write_model_files(prepared, tmp_path / "out", unties=False)
    check_model_files(prepared, tmp_path / "out")
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (prepared.model_folder / name).read_bytes()


def test_an_own_template_with_another_end_and_an_untied_head_are_edits_that_pass(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path, "Named", eos_token="</s>", eos_id=2, eos_ids=[2, 4], eos_changed=True)
    write_model_files(prepared, tmp_path / "out", unties=True)
    check_model_files(prepared, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["eos_token_id"] == 2
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [2, 4]
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["chat_template"] == OWN_TEMPLATE


@pytest.mark.parametrize(
    ("said", "written"), [({}, {"dtype"}), ({"dtype": "bfloat16"}, {"dtype"}), ({"torch_dtype": "bfloat16"}, {"torch_dtype"})]
)
def test_the_configuration_names_the_type_of_the_merged_weights(tmp_path: Path, said: dict[str, str], written: set[str]) -> None:
    prepared = make_prepared(tmp_path)
    edit_json(prepared.model_folder / "config.json", **said)
    files = hash_folder(prepared.model_folder)
    prepared = replace(prepared, file=prepared.file.model_copy(update={"model": prepared.model.model_copy(update={"files": files})}))
    write_model_files(prepared, tmp_path / "merged", unties=False, dtype=Dtype.FLOAT16)
    check_model_files(prepared, tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert {name: config.get(name) for name in ("dtype", "torch_dtype") if name in config} == dict.fromkeys(written, "float16")


def test_a_configuration_that_names_the_type_already_stays_byte_for_byte(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path)
    edit_json(prepared.model_folder / "config.json", dtype="bfloat16")
    write_model_files(prepared, tmp_path / "merged", unties=False, dtype=Dtype.BFLOAT16)
    assert (tmp_path / "merged/config.json").read_bytes() == (prepared.model_folder / "config.json").read_bytes()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS: dict[str, Any] = {
    "tokenizer.model lost, as transformers 5 loses it": ("tokenizer.model", lambda out: (out / "tokenizer.model").unlink()),
    "add_bos_token turned": ("tokenizer_config.json", lambda out: edit_json(out / "tokenizer_config.json", add_bos_token=True)),
    "a tokenizer.json added": ("tokenizer.json", lambda out: (out / "tokenizer.json").write_text("{}")),
    "a byte of tokenizer.model changed": ("tokenizer.model", lambda out: (out / "tokenizer.model").write_bytes(b"x")),
    "another template": ("chat_template.jinja", lambda out: (out / "chat_template.jinja").write_text("other")),
    "a configuration member changed": ("config.json", lambda out: edit_json(out / "config.json", rms_norm_eps=1e-5)),
    "tokenizer.model cut short": ("tokenizer.model", lambda out: truncate(out / "tokenizer.model")),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_the_file_it_is_in(tmp_path: Path, fault: str) -> None:
    prepared = make_prepared(tmp_path, "Named")
    write_model_files(prepared, tmp_path / "out", unties=False)
    name, plant = FAULTS[fault]
    plant(tmp_path / "out")
    with pytest.raises(StageError, match="ParityFailed") as refusal:
        check_model_files(prepared, tmp_path / "out")
    assert name in refusal.value.message


@pytest.mark.parametrize(
    ("eos", "template", "found"),
    [
        (2, CHATML_WITH_EOS, "token 2 as eos"),
        (None, CHATML_WITH_EOS, "token None as eos"),
        (4, "other", "another chat template"),
        (4, None, "template"),
    ],
)
def test_a_gguf_with_another_end_or_template_is_caught(tmp_path: Path, eos: int | None, template: str | None, found: str) -> None:
    with pytest.raises(StageError, match="ParityFailed") as refusal:
        check_facts(make_prepared(tmp_path), "Q8_0", GGUFFacts(eos, template, []))
    assert found in refusal.value.message


def test_a_gguf_that_carries_what_was_trained_passes(tmp_path: Path) -> None:
    check_facts(make_prepared(tmp_path), "Q8_0", GGUFFacts(4, CHATML_WITH_EOS, []))


@pytest.mark.parametrize(
    ("form", "fallbacks"),
    [(GGUFType.F16, 0), (GGUFType.Q8_0, 1), (GGUFType.Q4_K_M, 2)],
)
def test_tensors_whose_rows_do_not_fit_the_blocks_are_counted(form: GGUFType, fallbacks: int) -> None:
    kinds = [
        ("a", 256, 2, "Q4_K"),
        ("b", 96, 2, "Q5_0"),
        ("c", 40, 2, "F16"),
        ("norm", 40, 1, "F32"),
        ("router", 40, 2, "F32"),
        ("d", 512, 2, "Q8_0"),
    ]
    assert GGUFFacts(4, None, kinds).fallback_tensors(form) == fallbacks


def write_gguf(path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_eos_token_id(4)
    writer.add_chat_template(CHATML_WITH_EOS)
    writer.add_tensor("a.weight", np.ones((3, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_is_read_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf")
    assert read_gguf(tmp_path / "x.gguf") == GGUFFacts(4, CHATML_WITH_EOS, [("a.weight", 64, 2, "F32")], "llama", 0)


@pytest.mark.parametrize("keep", [0, 3, 100, 400, 0.9])
def test_a_truncated_gguf_is_caught(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data) if 0 < keep < 1 else keep)])
    with pytest.raises(StageError, match="CorruptArtifact"):
        read_gguf(path)


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_bytes(b"")
    write_checksums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  sub/a\n"
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True).returncode == 0


def test_no_machine_path_gets_into_a_card() -> None:
    assert hub_name("hf://org/name") == "org/name"
    assert hub_name("pvc://claim/base") == "pvc://claim/base"
    assert hub_name("/work/secret/base") == "base"


@pytest.mark.parametrize("module", ["finetune_trainer.evaluate.stage", "finetune_trainer.package.stage"])
def test_a_stage_starts_without_torch(module: str) -> None:
    """package needs torch for its reference only, evaluate not at all where a GGUF is served."""
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
