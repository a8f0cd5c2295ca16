"""Prepare against the real thing: transformers' rendering and ids, and llama.cpp's own tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import LocalRunSpec, Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.errors import StageError
from finetune_trainer.llama import home
from finetune_trainer.prepare.chat_template import ChatTemplate
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage
from transformers import AutoTokenizer

from tests.chat_templates import FAMILIES
from tests.tiny_models import TEXTS, bpe_model, sentencepiece_model, write_json

SYSTEM = {"role": "system", "content": "be kind & <brief>"}
ASKED = {"role": "user", "content": "how many files?  \n é 😀"}
ANSWERED = {"role": "assistant", "content": " all of them\n", "reasoning_content": "they are listed"}
MORE = [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes", "tool_calls": None}]
TOOLS = [{"type": "function", "function": {"name": "count", "description": "ä <files>", "parameters": {}}}]


@pytest.fixture(scope="module")
def llama_home() -> Path:
    """llama.cpp's tree: built once for the machine, named by FINETUNE_LLAMA_HOME. Without it the proof cannot be tried: an error."""
    return home.llama_home().root


@pytest.mark.parametrize("family", FAMILIES)
def test_rendering_and_ids_equal_transformers(family: str, tmp_path: Path) -> None:
    chosen = FAMILIES[family]
    folder = bpe_model(tmp_path, template=chosen.text, control=chosen.control)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", config | chosen.special)
    theirs, ours = AutoTokenizer.from_pretrained(folder), TextTokenizer(folder / "tokenizer.json", folder)
    template = ChatTemplate(chosen.text, ours.named)
    chats: list[list[dict[str, Any]]] = [[ASKED, ANSWERED], [ASKED, ANSWERED, *MORE]]
    chats += [[SYSTEM, *chat] for chat in chats] if chosen.takes_system else []
    for chat in chats:
        for tools in (None, TOOLS):
            for messages, prompt in ((chat, False), (chat[:-1], True)):
                want = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
                assert template.render(messages, tools, add_generation_prompt=prompt) == want
                ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=False)
                assert ours.encode([want])[0].ids == list(ids)


def make_job(folder: Path, base: Path, gguf: bool, root: Path | None = None, rows: int = 120, **more: Any) -> LocalRunSpec:
    """Chats over the sentences of the tests, and some of plain text."""
    chats = [
        {"messages": [{"role": "user", "content": f"{TEXTS[i % 5]} {i}"}, {"role": "assistant", "content": f"{TEXTS[(i + 1) % 5]} é {i}"}]}
        for i in range(rows)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    spec = {
        "storage": {"root": str(root or folder / "out"), "prefix": folder.name},
        "model": {"source": str(base)},
        "datasets": [{"name": "chats", "source": str(folder / "chats.jsonl")}],
        "export": {"gguf": ["F16"]} if gguf else {},
    }
    return LocalRunSpec.model_validate(spec | more)


def prepare(run: LocalRunSpec) -> Prepared:
    progress = Progress()
    try:
        run_stage(Stage.PREPARE, run, "pod", progress)
    finally:
        progress.close()
    return load_prepared(JobStorage(run.storage, "reader"), run)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_model(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage for all: conversions are cached by content, and each costs half a minute."""
    return tmp_path_factory.mktemp("storage")


def test_a_sentencepiece_model_is_converted_once_and_proven_against_llama_cpp(
    tmp_path: Path, base: Path, cache_root: Path, llama_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(make_job(tmp_path, base, gguf=True, root=cache_root))
    theirs = AutoTokenizer.from_pretrained(base)
    for row in prepared.held_out_rows("test"):
        assert row.prompt == theirs.apply_chat_template(row.messages, tokenize=False, add_generation_prompt=True)
        assert row.prompt_ids == theirs.apply_chat_template(row.messages, add_generation_prompt=True, return_dict=False)
        assert theirs.decode(row.answer_ids) == f"{row.answer}<|im_end|>"
    assert (prepared.folder / "tokenizer.json").exists()
    # A second job on this storage converts nothing: it would fail without an interpreter.
    monkeypatch.setattr("finetune_trainer.prepare.tokenizer._convert", None)
    monkeypatch.setattr("finetune_trainer.prepare.llama_proof._convert", None)
    again = make_job(tmp_path, base, gguf=True, root=cache_root, preparation={"split": {"seed": 7}})
    prepare(again.model_copy(update={"storage": again.storage.model_copy(update={"prefix": "again"})}))


@pytest.fixture
def convert_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion of tokenizer.model in this process, where transformers is imported already: the test above shows the real one."""

    def convert(model_folder: Path, target: Path) -> None:
        AutoTokenizer.from_pretrained(model_folder).backend_tokenizer.save(str(target / "tokenizer.json"))

    monkeypatch.setattr("finetune_trainer.prepare.tokenizer._convert", convert)


def changed(base: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the base whose tokenizer_config.json has other members; None takes one out."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | changes
    write_json(folder / "tokenizer_config.json", {name: value for name, value in config.items() if value is not None})
    return folder


@pytest.mark.usefixtures("convert_here")
def test_a_tokenizer_saved_again_by_transformers_is_caught(tmp_path: Path, base: Path, cache_root: Path, llama_home: Path) -> None:
    """transformers 5 drops tokenizer.model and add_bos_token; the converter then knows no such tokenizer, or makes another of it."""
    resaved = tmp_path / "resaved"
    shutil.copytree(base, resaved)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (resaved / name).unlink()
    AutoTokenizer.from_pretrained(base).save_pretrained(resaved)
    with pytest.raises(StageError) as refused:
        prepare(make_job(tmp_path, resaved, gguf=True, root=cache_root))
    assert refused.value.reason in ("TokenizerMismatch", "UnsupportedByLlamaCpp", "StopTokenMismatch")


@pytest.mark.usefixtures("convert_here")
def test_settings_that_llama_cpp_reads_otherwise_are_caught_with_row_and_position(
    tmp_path: Path, base: Path, cache_root: Path, llama_home: Path
) -> None:
    """Without add_bos_token and add_prefix_space the GGUF takes both as true, and every chat differs."""
    silent = changed(base, tmp_path / "silent", add_bos_token=None, add_prefix_space=None)
    run = make_job(tmp_path, silent, gguf=True, root=cache_root)
    with pytest.raises(StageError) as refused:
        prepare(run)
    assert refused.value.reason == "TokenizerMismatch"
    assert "data set chats, file chats.jsonl, line 1" in refused.value.message
    assert "position" in refused.value.message
    assert "quick brown" not in refused.value.message


@pytest.mark.usefixtures("convert_here")
def test_an_eos_that_the_gguf_does_not_carry_is_caught(tmp_path: Path, base: Path, cache_root: Path, llama_home: Path) -> None:
    """Without tokenizer.json the converter takes eos from config.json, whatever the tokenizer says."""
    other = tmp_path / "other"
    shutil.copytree(base, other)
    write_json(other / "config.json", json.loads((other / "config.json").read_text()) | {"eos_token_id": 2})
    with pytest.raises(StageError) as refused:
        prepare(make_job(tmp_path, other, gguf=True, root=cache_root))
    assert refused.value.reason == "StopTokenMismatch"
    assert "the GGUF would carry </s> (2) as eos, the tokenizer's is <|im_end|> (4)" in refused.value.message


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_by_the_converters_words(
    tmp_path: Path, cache_root: Path, llama_home: Path
) -> None:
    unknown = bpe_model(tmp_path / "base")
    with pytest.raises(StageError) as refused:
        prepare(make_job(tmp_path, unknown, gguf=True, root=cache_root))
    assert refused.value.reason == "UnsupportedByLlamaCpp"
    assert "BPE pre-tokenizer was not recognized" in refused.value.message
