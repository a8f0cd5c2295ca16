"""The prepare stage as its user runs it: a run file in, a prepared set or a refusal out. No torch, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.answer import StageResult
from finetune_api.outcome import ExitCode, Reason
from finetune_api.run import LocalRunSpec, Stage
from finetune_trainer.__main__ import main, run_stage
from finetune_trainer.errors import StageError
from finetune_trainer.model_shape import count_parameters
from finetune_trainer.package.rendering import rendered_rows
from finetune_trainer.prepare import stopping
from finetune_trainer.prepare.chat_template import probe_template
from finetune_trainer.prepare.encoding import Rendered, TokenRow
from finetune_trainer.prepare.report import marked_text
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import IGNORED_LABEL, Prepared, load_prepared
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage
from finetune_trainer.tokenizer_files import write_tokenizer_files
from safetensors.numpy import save_file

from tests.tiny_models import bpe_model, write_json

SECRET = "canary-7f3a"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's probe is a process of its own, half a second each time: it runs once, in the test of a template bomb."""
    monkeypatch.setattr(stopping, "probe_template", lambda text, tokens: None)


def question(i: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"how many files? {i}"}, {"role": "assistant", "content": f"all {i}"}], **more}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Job:
    """A run over a folder; `prepare` runs the stage as a pod would and reads its result back."""

    def __init__(self, folder: Path, base: Path, *datasets: dict[str, Any], prefix: str = "job", **sections: Any) -> None:
        spec = {"storage": {"root": str(folder / "out"), "prefix": prefix}, "model": {"source": str(base)}, "datasets": list(datasets)}
        self.run = LocalRunSpec.model_validate(spec | sections)

    def prepare(self) -> tuple[StageResult, Prepared]:
        progress = Progress()
        try:
            result = run_stage(Stage.PREPARE, self.run, "pod", progress)
        finally:
            progress.close()
        return result, load_prepared(JobStorage(self.run.storage, "reader"), self.run)

    def refused(self) -> StageError:
        with pytest.raises(StageError) as refused:
            self.prepare()
        assert SECRET not in str(refused.value)
        assert refused.value.exit_code is ExitCode.INVALID_INPUT
        assert not (Path(self.run.storage.root) / self.run.storage.prefix / "prepare" / "manifest.json").exists()
        return refused.value


def text_of(prepared: Prepared, name: str) -> list[tuple[list[int], list[int]]]:
    table = prepared.table(name)
    return list(zip(table["input_ids"].to_pylist(), table["labels"].to_pylist(), strict=True))


def test_rows_are_prepared_and_read_back(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(100)])
    result, prepared = Job(tmp_path, model, {"name": "d", "source": source}).prepare()
    report = result.dataset
    assert report is not None
    assert sum(report.rows_out.values()) == report.rows_in == 100
    assert min(report.rows_out.values()) > 0
    assert report.leaked == 0
    assert report.train_tokens == sum(len(ids) for ids, _ in text_of(prepared, "train"))
    assert report.token_length["max"] == max(len(ids) for ids, _ in text_of(prepared, "train"))
    assert result.plan is not None
    assert result.plan.total_steps == 3 * -(-report.rows_out["train"] // 16)
    assert result.base_revision == f"sha256:{prepared.model.digest}"
    for ids, labels in text_of(prepared, "train"):
        assert labels[-1] == IGNORED_LABEL, "the line feed after the end of a turn"
        assert labels[-2] == ids[-2] == prepared.tokens.eos_id
    held_out = list(prepared.held_out_rows("test"))
    assert len(held_out) == report.rows_out["test"] == prepared.set("test").rows
    for row, (ids, labels) in zip(held_out, text_of(prepared, "test"), strict=True):
        assert row.prompt_ids + row.answer_ids == ids[:-1]
        assert row.answer_ids == [label for label in labels if label != IGNORED_LABEL]
        assert row.answer == f"all {row.messages[0]['content'].split()[-1]}"  # type: ignore[attr-defined]
        assert row.dataset == "d"
    assert prepared.chat_template == (prepared.folder / "chat_template.jinja").read_text()
    assert prepared.model_folder == model


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(50)])
    jobs = [Job(tmp_path, model, {"name": "d", "source": source}, prefix=prefix) for prefix in ("a", "b")]
    (first, one), (second, other) = (job.prepare() for job in jobs)
    assert first.manifest_digest == second.manifest_digest
    assert first.dataset is not None
    assert second.dataset is not None
    assert first.dataset.digest == second.dataset.digest
    assert (one.folder / "train.arrow").read_bytes() == (other.folder / "train.arrow").read_bytes()
    write_rows(tmp_path / "d.jsonl", [question(i) for i in range(51)])
    third, _ = Job(tmp_path, model, {"name": "d", "source": source}, prefix="c").prepare()
    assert third.dataset is not None
    assert third.dataset.digest != first.dataset.digest


def test_weights_repeat_rows_after_duplicates_are_gone(tmp_path: Path, model: Path) -> None:
    rows = [question(i) for i in range(10)]
    first = write_rows(tmp_path / "first.jsonl", rows + rows)
    second = write_rows(tmp_path / "second.jsonl", rows[:4] + [question(i) for i in range(90, 93)])
    everything = {"preparation": {"split": {"train": 1, "validation": 0, "test": 0}}}
    datasets = ({"name": "first", "source": first, "weight": 3}, {"name": "second", "source": second})
    result, prepared = Job(tmp_path, model, *datasets, **everything).prepare()
    assert result.dataset is not None
    assert result.dataset.dropped == {"Duplicate": 14}
    assert result.dataset.rows_out["train"] == prepared.table("train").num_rows == 3 * 10 + 3
    kept = {"preparation": {"deduplicate": {"exact": False}, "split": {"train": 1, "validation": 0, "test": 0}}}
    result, _ = Job(tmp_path, model, *datasets, prefix="kept", **kept).prepare()
    assert result.dataset is not None
    assert result.dataset.rows_out["train"] == 3 * 20 + 7


def test_a_data_set_with_a_test_split_trains_on_all_its_rows_but_those_in_the_test(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "facts/train.jsonl", [question(i) for i in range(40)])
    write_rows(tmp_path / "facts/test.jsonl", [question(i) for i in range(38, 50)])
    other = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(100, 160)])
    datasets = ({"name": "d", "source": other}, {"name": "facts", "source": str(tmp_path / "facts"), "testSplit": "test"})
    result, prepared = Job(tmp_path, model, *datasets).prepare()
    assert result.dataset is not None
    assert result.dataset.dropped == {"InTestSplit": 2}
    assert result.dataset.rows_out["facts/test"] == 12
    assert {row.dataset for row in prepared.held_out_rows("facts/test")} == {"facts"}
    assert {row.dataset for row in prepared.held_out_rows("test")} == {"d"}
    assert [entry.name for entry in prepared.held_out_sets()] == ["test", "facts/test"]
    report = json.loads((prepared.folder / "report.json").read_text())
    assert report["byDataset"]["facts"]["rowsOut"] == {"facts/test": 12, "train": 38}


def test_groups_stay_together_and_are_named_for_the_bootstrap(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i, document=f"doc{i // 5}") for i in range(200)])
    split = {"preparation": {"split": {"train": 0.6, "validation": 0.2, "test": 0.2, "groupBy": "document"}}}
    result, prepared = Job(tmp_path, model, {"name": "d", "source": source}, **split).prepare()
    assert result.dataset is not None
    assert result.dataset.leaked == 0
    groups = [row.group for row in prepared.held_out_rows("test")]
    assert groups
    assert all(groups.count(group) == 5 for group in groups)


def test_a_group_column_that_no_row_has_is_refused_and_one_that_a_data_set_lacks_is_said(tmp_path: Path, model: Path) -> None:
    split = {"preparation": {"split": {"train": 0.6, "validation": 0.2, "test": 0.2, "groupBy": "document"}}}
    plain = {"name": "plain", "source": write_rows(tmp_path / "p.jsonl", [question(i, documents="a") for i in range(50)])}
    refused = Job(tmp_path, model, plain, **split).refused()
    assert refused.reason == "InvalidDataset"
    assert "preparation.split.groupBy: no row has a column 'document'" in refused.message
    grouped = {"name": "d", "source": write_rows(tmp_path / "d.jsonl", [question(i, document=f"doc{i // 5}") for i in range(100, 200)])}
    result, _ = Job(tmp_path, model, plain, grouped, **split).prepare()
    assert "no row of data set plain has the groupBy column 'document': its rows are held out one by one" in result.warnings


def test_groups_that_one_data_set_trains_on_whole_are_not_held_out_of_another(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "facts/train.jsonl", [question(i, document=f"doc{i}") for i in range(20)])
    write_rows(tmp_path / "facts/test.jsonl", [question(i, document=f"doc{i}") for i in range(900, 905)])
    other = write_rows(tmp_path / "d.jsonl", [question(i, document=f"doc{i % 40}") for i in range(100, 300)])
    split = {"preparation": {"split": {"train": 0.2, "validation": 0.4, "test": 0.4, "groupBy": "document"}}}
    datasets = ({"name": "d", "source": other}, {"name": "facts", "source": str(tmp_path / "facts"), "testSplit": "test"})
    result, prepared = Job(tmp_path, model, *datasets, **split).prepare()
    assert result.dataset is not None
    assert result.dataset.leaked == 0
    held_out = {row.group for row in prepared.held_out_rows("test")}
    assert held_out
    assert not held_out & {f"group:doc{i}" for i in range(20)}


def test_text_and_completions_need_no_chat_template(tmp_path: Path) -> None:
    base = bpe_model(tmp_path / "base", template=None)
    texts = write_rows(tmp_path / "t.jsonl", [{"text": f"set --max to {i}"} for i in range(40)])
    pairs = write_rows(tmp_path / "p.jsonl", [{"prompt": f"max {i}:", "completion": f" print {i}"} for i in range(40)])
    _, prepared = Job(tmp_path, base, {"name": "t", "source": texts}, {"name": "p", "source": pairs}).prepare()
    assert prepared.chat_template is None
    kinds = {row.kind for row in prepared.held_out_rows("test")}
    assert kinds == {"Text", "Completion"}
    for ids, _ in text_of(prepared, "train"):
        assert ids[-1] == prepared.tokens.eos_id


def test_chatml_by_name_makes_its_end_token_the_eos(tmp_path: Path) -> None:
    base = bpe_model(tmp_path / "base", template=None)
    config = json.loads((base / "tokenizer_config.json").read_text())
    write_json(base / "tokenizer_config.json", config | {"eos_token": "<|endoftext|>"})
    write_json(base / "generation_config.json", {"eos_token_id": 0})
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    named = {"source": str(base), "chatTemplate": {"type": "Named", "named": "ChatML"}}
    _, prepared = Job(tmp_path, base, {"name": "d", "source": source}, model=named).prepare()
    assert (prepared.tokens.eos_token, prepared.tokens.eos_id, prepared.tokens.eos_ids) == ("<|im_end|>", 2, [2, 0])
    assert prepared.tokens.eos_changed
    write_tokenizer_files(prepared.model_folder, tmp_path / "packaged", prepared.tokens, prepared.own_template)
    assert json.loads((tmp_path / "packaged/generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert json.loads((tmp_path / "packaged/config.json").read_text())["eos_token_id"] == 2
    packaged = json.loads((tmp_path / "packaged/tokenizer_config.json").read_text())
    assert packaged == config | {"eos_token": "<|im_end|>", "chat_template": prepared.chat_template}
    assert (tmp_path / "packaged/chat_template.jinja").read_text() == prepared.chat_template


def test_files_of_a_model_with_its_own_template_are_packaged_byte_for_byte(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    _, prepared = Job(tmp_path, model, {"name": "d", "source": source}).prepare()
    write_tokenizer_files(prepared.model_folder, tmp_path / "packaged", prepared.tokens, prepared.own_template)
    for path in (tmp_path / "packaged").iterdir():
        assert path.read_bytes() == (model / path.name).read_bytes()
    assert (tmp_path / "packaged/tokenizer.json").exists()


def test_a_prepare_that_is_taken_over_is_planned_for_the_new_job(tmp_path: Path, model: Path) -> None:
    source = {"name": "d", "source": write_rows(tmp_path / "d.jsonl", [question(i) for i in range(100)])}
    older = Job(tmp_path, model, source, prefix="older")
    older.prepare()
    sections: dict[str, Any] = {"adapter": {"type": "None"}, "training": {"globalBatchSize": 4}}
    taken, prepared = Job(tmp_path, model, source, prefix="newer", resumeFrom=older.run.storage.wire(), **sections).prepare()
    fresh, _ = Job(tmp_path, model, source, prefix="fresh", **sections).prepare()
    assert taken.plan == fresh.plan
    assert taken.plan is not None
    assert taken.plan.learning_rate == pytest.approx(8e-6)  # full weights: 1e-5, × 0.8 under 1,000 rows
    assert prepared.file.statistics.rows == 80


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"eval_on_start": True}, "training.args.eval_on_start: there are no validation rows"),
        ({"adam_epsilon": -1}, "training.args.adam_epsilon: must be a number from 0 on"),
        ({"tf32": True}, "training.args.tf32: true needs a GPU, and resources.gpusPerNode is 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_a_gpu_is_taken(
    tmp_path: Path, model: Path, args: dict[str, Any], words: str
) -> None:
    source = {"name": "d", "source": write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])}
    refused = Job(tmp_path, model, source, training={"args": args}, preparation={"split": EVERYTHING["split"]}).refused()
    assert (refused.reason, refused.message.startswith(words)) == ("InvalidArgument", True)


def test_an_evaluation_at_the_start_needs_validation_rows_and_no_more(tmp_path: Path, model: Path) -> None:
    source = {"name": "d", "source": write_rows(tmp_path / "d.jsonl", [question(i) for i in range(100)])}
    assert Job(tmp_path, model, source, training={"args": {"eval_on_start": True}}).prepare()[0].plan is not None


def test_a_second_run_of_the_stage_is_free(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    job = Job(tmp_path, model, {"name": "d", "source": source})
    first, _ = job.prepare()
    os.remove(source)
    assert job.prepare()[0] == first


def test_a_base_model_that_changed_since_is_not_loaded(tmp_path: Path, model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    job = Job(tmp_path, base, {"name": "d", "source": source})
    _, prepared = job.prepare()
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(StageError, match="does not match its SHA-256"):
        prepared.verify_model()
    (base / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(StageError, match="BaseModelChanged"):
        job.prepare()


def test_the_report_shows_one_row_with_what_is_trained_marked(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(1)] * 2 + [question(i) for i in range(2, 30)])
    result, prepared = Job(tmp_path, model, {"name": "d", "source": source}).prepare()
    report = (prepared.folder / "report.md").read_text()
    assert "<|im_start|>assistant\n    ⟦all 1<|im_end|>⟧" in report
    assert "Duplicate 1" in report
    assert result.dataset is not None
    assert result.dataset.report == f"file://{prepared.folder / 'report.md'}"


def test_names_that_utf8_cannot_write_are_written_escaped(tmp_path: Path, model: Path) -> None:
    """Half a surrogate pair, which JSON may name: it was met when all the work was done."""
    source = write_rows(tmp_path / "d.jsonl", [question(i, **{"\ud800x": 1}) for i in range(30)])
    result, _ = Job(tmp_path, model, {"name": "d", "source": source}).prepare()
    assert "data set d: columns that are not read: \\ud800x" in result.warnings
    assert "ud800x" in result.termination_message()
    report = json.loads(next((tmp_path / "out/job/prepare").glob("*/report.json")).read_bytes())
    assert report["byDataset"]["d"]["notRead"] == ["\ud800x"]


def test_files_of_a_split_that_are_not_read_are_in_the_answer(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "data/train/a.jsonl", [question(i) for i in range(30)])
    write_rows(tmp_path / "data/train/b/c.jsonl", [question(i) for i in range(30)])
    result, _ = Job(tmp_path, model, {"name": "d", "source": str(tmp_path / "data")}).prepare()
    assert any("split train that are not read: train/b/c.jsonl" in warning for warning in result.warnings)


def test_a_refusal_may_name_what_utf8_cannot_write() -> None:
    with pytest.raises(StageError) as refused:
        raise StageError(Reason.INVALID_DATASET, "column \udcff")
    assert refused.value.message == "column \\udcff"


BAD_ROWS: dict[str, tuple[list[Any] | str, dict[str, Any], str, str]] = {
    "a broken line": ('{"text": "x"}\n{"text": "' + SECRET, {}, "InvalidDataset", "line 2"),
    "an empty file": ("", {}, "EmptyDataset", "has no rows"),
    "only empty answers": ([{"prompt": SECRET, "completion": ""}] * 3, {}, "InvalidDataset", "none of its 3 rows can be trained on (EmptyField: 3, first in file d.jsonl, line 1)"),
    "columns of no format": ([{"x": SECRET}], {}, "InvalidDataset", "line 1: expected columns of one format"),
    "a column that is missing later": ([{"text": "a"}, {"body": SECRET}], {}, "InvalidDataset", "line 2: expected a column 'text'"),
    "rows that are too long": ([question(i) for i in range(5)], {"training": {"maxLength": 8}}, "InvalidDataset", "NothingLeftToTrain: 5"),
    "nothing left for training": ([{"text": SECRET}], {"preparation": {"split": {"train": 0.001, "validation": 0.499, "test": 0.5}}}, "NoTrainingRows", "preparation.split"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_data_is_refused_in_words_that_help(tmp_path: Path, model: Path, name: str) -> None:
    rows, sections, reason, words = BAD_ROWS[name]
    path = tmp_path / "d.jsonl"
    path.write_text(rows) if isinstance(rows, str) else write_rows(path, rows)
    refused = Job(tmp_path, model, {"name": "d", "source": str(path)}, **sections).refused()
    assert refused.reason == reason
    assert words in refused.message
    assert "data set d" in refused.message or reason == "NoTrainingRows"


@pytest.mark.parametrize(
    ("metric", "split", "words"),
    [
        ("other/ExactMatch", {}, "gate g: data set other is none of this job"),
        ("plain/ExactMatch", {}, "gate g: data set plain has no testSplit"),
        ("ExactMatch", {"train": 0.9, "validation": 0.1, "test": 0}, "gate g: preparation.split.test is 0"),
    ],
    ids=["an unknown data set", "a data set without test rows", "nothing is held out"],
)
def test_a_gate_that_no_row_could_answer_is_refused_before_training(
    tmp_path: Path, model: Path, metric: str, split: dict[str, Any], words: str
) -> None:
    write_rows(tmp_path / "d/train.jsonl", [question(i) for i in range(40)])
    write_rows(tmp_path / "d/test.jsonl", [question(i) for i in range(100, 140)])
    plain = write_rows(tmp_path / "plain.jsonl", [question(i) for i in range(200, 240)])
    datasets = ({"name": "d", "source": str(tmp_path / "d"), "testSplit": "test"}, {"name": "plain", "source": plain})
    gate = {"name": "g", "metric": metric, "min": 0.5}
    refused = Job(tmp_path, model, *datasets, evaluation={"gates": [gate]}, preparation={"split": split}).refused()
    assert refused.reason == "InvalidGate"
    assert words in refused.message
    gate["metric"] = "d/ExactMatch"
    Job(tmp_path, model, *datasets, evaluation={"gates": [gate]}, preparation={"split": split}).prepare()


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        written = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        write_json(folder / name, written | changes)

    return change


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": shards})


def lose_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def whole_numbers(folder: Path) -> None:
    save_file({"model.embed_tokens.weight": np.zeros((8, 8), np.int8)}, folder / "model.safetensors")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


BAD_MODELS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an encoder-decoder": (edit("config.json", is_encoder_decoder=True), "EncoderDecoderUnsupported", "LlamaForCausalLM"),
    "quantized": (edit("config.json", quantization_config={"bits": 4}), "QuantizedBase", "unquantized"),
    "a classifier": (edit("config.json", architectures=["BertForSequenceClassification"]), "UnsupportedArchitecture", "generates no text"),
    "pickled weights": (only_pickles, "SafetensorsOnly", "convert them to safetensors"),
    "weights cut short": (cut_weights, "InvalidModel", "model.safetensors is not a whole"),
    "a shard is missing": (lose_a_shard, "InvalidModel", "the model lacks model-00002-of-00002.safetensors"),
    "shards without index": (lose_the_index, "InvalidModel", "the model lacks model.safetensors.index.json"),
    "weights that are no floats": (whole_numbers, "QuantizedBase", "stored as I8"),
    "no weights": (without("model.safetensors"), "ModelNotFound", "no model*.safetensors"),
    "no config": (without("config.json"), "ModelNotFound", "no config.json"),
    "no tokenizer": (without("tokenizer.json"), "InvalidTokenizer", "neither tokenizer.json nor tokenizer.model"),
    "no chat template": (edit("tokenizer_config.json", chat_template=None), "NoChatTemplate", "named ChatML"),
    "a hostile template": (edit("tokenizer_config.json", chat_template="{{ ''.__class__ }}"), "HostileTemplate", "refused"),
    "an end that does not stop": (
        edit("generation_config.json", eos_token_id=0),
        "StopTokenMismatch",
        "ends an answer with <|im_end|> (2), but generation stops at <|endoftext|> (0)",
    ),
    "a template without an end": (
        edit("tokenizer_config.json", chat_template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"),
        "StopTokenMismatch",
        "ends an answer with token ",
    ),
    "an eos that is no token": (edit("tokenizer_config.json", eos_token="</nothing>"), "InvalidTokenizer", "eos_token"),
}  # fmt: skip


def instead(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def a_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def odd(file: str, member: str, value: Any, words: str) -> tuple[Callable[[Path], None], str, str]:
    """A member of a kind that transformers never writes, and what it is said to be."""
    reason = "InvalidTokenizer" if file == "tokenizer_config.json" else "InvalidModel"
    return edit(file, **{member: value}), reason, f"{file}: {words}"


NUMBER, TOKENS = "must be a whole number, at least 1, and is ", "must be a whole number from 0, or a list of them, and is "
BAD_MODELS |= {
    "a text model that is text": odd("config.json", "text_config", "x", "text_config must be an object, and is text"),
    "a size of a text model": odd("config.json", "text_config", {"vocab_size": "x"}, f"text_config.vocab_size {NUMBER}text"),
    "no heads": odd("config.json", "num_attention_heads", 0, f"num_attention_heads {NUMBER}0"),
    "a list of heads": odd("config.json", "num_attention_heads", [4], f"num_attention_heads {NUMBER}a list"),
    "half a layer": odd("config.json", "num_hidden_layers", 1.5, f"num_hidden_layers {NUMBER}1.5"),
    "yes for a size": odd("config.json", "hidden_size", True, f"hidden_size {NUMBER}true"),
    "a vocabulary below nothing": odd("config.json", "vocab_size", -1, f"vocab_size {NUMBER}-1"),
    "a vocabulary in words": odd("config.json", "vocab_size", "many", f"vocab_size {NUMBER}text"),
    "an architecture that is no list": odd("config.json", "architectures", "LlamaForCausalLM", "architectures must be a list of texts, and is text"),
    "architectures of numbers": odd("config.json", "architectures", [1], "architectures must be a list of texts, and is a list"),
    "a type that is a list": odd("config.json", "model_type", ["llama"], "model_type must be text, and is a list"),
    "a flag in words": odd("config.json", "tie_word_embeddings", "false", "tie_word_embeddings must be true or false, and is text"),
    "an end by name": odd("generation_config.json", "eos_token_id", "<|im_end|>", f"eos_token_id {TOKENS}text"),
    "ends within a list": odd("generation_config.json", "eos_token_id", [[2]], f"eos_token_id {TOKENS}a list"),
    "a list without ends": odd("generation_config.json", "eos_token_id", [], f"eos_token_id {TOKENS}an empty list"),
    "an end below nothing": odd("generation_config.json", "eos_token_id", -1, f"eos_token_id {TOKENS}-1"),
    "added tokens that are text": odd("tokenizer_config.json", "added_tokens_decoder", "x", "added_tokens_decoder must be an object, and is text"),
    "added tokens in a list": odd("tokenizer_config.json", "added_tokens_decoder", ["x"], "added_tokens_decoder must be an object, and is a list"),
    "added tokens without ids": odd("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "y"}}, "added_tokens_decoder must be an object whose members are called by token ids"),
    "an added token without content": odd("tokenizer_config.json", "added_tokens_decoder", {"2": {}}, "added_tokens_decoder.2.content must be text, and is null"),
    "an added token that is nothing": odd("tokenizer_config.json", "added_tokens_decoder", {"2": None}, "added_tokens_decoder.2 must be text, or an object with content, and is null"),
    "an added token's flag": odd("tokenizer_config.json", "added_tokens_decoder", {"400": {"content": "zz", "special": "no"}}, "added_tokens_decoder.400.special must be true or false"),
    "a named token that is a number": odd("tokenizer_config.json", "eos_token", 2, "eos_token must be text, or an object with content, and is 2"),
    "a bos in words": odd("tokenizer_config.json", "add_bos_token", "yes", "add_bos_token must be true or false, and is text"),
    "a name that is no text": (edit("config.json", model_type="\ud800"), "InvalidModel", "config.json holds half a surrogate pair"),
    "a token that is no text": (edit("special_tokens_map.json", eos_token="\ud800"), "InvalidTokenizer", "special_tokens_map.json holds half a surrogate pair"),
    "a template that is no text": (edit("tokenizer_config.json", chat_template="\ud800"), "InvalidTokenizer", "tokenizer_config.json holds half a surrogate pair"),
    "a template that prints no text": (edit("tokenizer_config.json", chat_template="{{ '\\ud800' }}"), "InvalidDataset", "RefusedByTemplate"),
    "a config that is a list": (instead("config.json", b"[]"), "InvalidModel", "config.json must hold a JSON object"),
    "a config without end": (instead("config.json", b"[" * 100_000), "InvalidModel", "config.json is not JSON"),
    "a tokenizer's config cut short": (instead("tokenizer_config.json", b"{"), "InvalidTokenizer", "tokenizer_config.json is not JSON"),
    "a template that is not UTF-8": (instead("chat_template.jinja", b"ab\xff"), "InvalidTemplate", "chat_template.jinja is not text in UTF-8 (byte 3)"),
    "a template that is a number": (edit("tokenizer_config.json", chat_template=5), "InvalidTemplate", "tokenizer_config.json: chat_template must be text, or a list"),
    "a template in a list": (edit("tokenizer_config.json", chat_template=["x"]), "InvalidTemplate", "tokenizer_config.json: chat_template must be text, or a list"),
    "a template of numbers": (edit("tokenizer_config.json", chat_template=[{"name": "default", "template": 1}]), "InvalidTemplate", "chat_template must be text, or a list"),
    "a template for tools alone": (edit("tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}]), "InvalidTemplate", "chat_template has 'tool_use' and no 'default'"),
    "a generation config that is a folder": (a_folder("generation_config.json"), "InvalidModel", "generation_config.json is a folder; expected a file"),
    "a tokenizer that is a folder": (a_folder("tokenizer.json"), "InvalidTokenizer", "tokenizer.json is a folder; expected a file"),
    "a template that is a folder": (a_folder("chat_template.jinja"), "InvalidTemplate", "chat_template.jinja is a folder; expected a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_work_is_refused_in_words_that_help(tmp_path: Path, model: Path, name: str) -> None:
    change, reason, words = BAD_MODELS[name]
    base = tmp_path / "base"
    shutil.copytree(model, base)
    change(base)
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    refused = Job(tmp_path, base, {"name": "d", "source": source}).refused()
    assert refused.reason == reason
    assert words in refused.message


def test_token_ids_beyond_the_embedding_are_refused_by_row(tmp_path: Path, model: Path) -> None:
    """On a GPU they would end the process with an assertion that names nothing."""
    base = tmp_path / "base"
    shutil.copytree(model, base)
    edit("config.json", vocab_size=300)(base)
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    refused = Job(tmp_path, base, {"name": "d", "source": source}).refused()
    assert refused.reason == "InvalidTokenizer"
    assert "data set d, file d.jsonl, line " in refused.message
    assert "the model's embedding has 300" in refused.message


def test_weights_that_are_not_the_models_are_not_counted(tmp_path: Path, model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    shutil.copyfile(base / "model.safetensors", base / "consolidated.safetensors")
    assert count_parameters(base) == count_parameters(model)


def test_a_template_bomb_goes_off_outside(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "probe_template", probe_template)
    base = tmp_path / "base"
    shutil.copytree(model, base)
    edit("tokenizer_config.json", chat_template="{{ 'x' | center(9999999999) }}")(base)
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    assert Job(tmp_path, base, {"name": "d", "source": source}).refused().reason == "HostileTemplate"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(1)])
    assert Job(tmp_path, tmp_path / "nowhere", {"name": "d", "source": source}).refused().reason == "ModelNotFound"


def test_named_chatml_needs_a_tokenizer_with_its_tokens(tmp_path: Path, model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    text = (base / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>")
    (base / "tokenizer.json").write_text(text)
    edit("tokenizer_config.json", eos_token="<|other|>")(base)
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    named = {"source": str(base), "chatTemplate": {"type": "Named", "named": "ChatML"}}
    assert Job(tmp_path, base, {"name": "d", "source": source}, model=named).refused().reason == "TemplateTokensMissing"


def test_claims_are_read_where_they_are_mounted(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "claim/models/base")
    write_rows(tmp_path / "claim/rows/train.jsonl", [question(i) for i in range(30)])
    job = Job(
        tmp_path,
        model,
        {"name": "d", "source": "pvc://data/rows"},
        model={"source": "pvc://data/models/base"},
        claims={"data": str(tmp_path / "claim")},
    )
    result, prepared = job.prepare()
    assert result.base_model == "pvc://data/models/base"
    assert prepared.model_folder == tmp_path / "claim/models/base"


def test_a_model_whose_file_is_a_link_out_of_its_claim_is_refused(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "claim/models/base")
    (tmp_path / "claim/models/base/model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "claim/models/base/model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    job = Job(
        tmp_path,
        model,
        {"name": "d", "source": source},
        model={"source": "pvc://data/models/base"},
        claims={"data": str(tmp_path / "claim")},
    )
    refused = job.refused()
    assert refused.reason == "UnsafePath"
    assert "model.source: model.safetensors is a link that leads out of its claim" in refused.message


def test_torch_is_not_imported_and_the_answer_is_one_line(tmp_path: Path, model: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [question(i) for i in range(30)])
    run = {
        "storage": {"root": str(tmp_path / "out"), "prefix": "job"},
        "model": {"source": str(model)},
        "datasets": [{"name": "d", "source": source}],
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    program = (
        "import sys\nfrom finetune_trainer.__main__ import main\ncode = main(['prepare', '--run', sys.argv[1]])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)\nassert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"]["rowsIn"] == 30
    assert "how many files" not in done.stdout + done.stderr


def test_a_refusal_is_the_answer_and_the_exit_code(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {
        "storage": {"root": str(tmp_path), "prefix": "job"},
        "model": {"source": str(model)},
        "datasets": [{"name": "d", "source": str(tmp_path / "no.jsonl")}],
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert main(["prepare", "--run", str(tmp_path / "run.json")]) == ExitCode.INVALID_INPUT
    assert json.loads(capsys.readouterr().out)["reason"] == "DatasetNotFound"


# ------------------------------------------------------------------------------------------------ what rows say is kept, or said to be lost

EVERYTHING = {"split": {"train": 1, "validation": 0, "test": 0}}
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for t in m.tool_calls or [] %}{{ '<call>' + t.function.name + ' ' }}{{ t.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTENT_OR_CALLS = CALLS.replace("{% for t in m.tool_calls or [] %}", "{% for t in (m.tool_calls or []) if not m.content %}")
CALLS_OR_CONTENT = CALLS.replace("(m.content or '')", "('' if m.tool_calls else m.content or '')")
CALLS_IN_TEXT = CALLS.replace("{{ t.function.arguments | tojson }}", "{{ '' + t.function.arguments }}")
REASONING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CUTTING = CALLS.replace("(m.content or '')", "(m.content or '').split('</think>')[-1].lstrip('\\n')")
CUTTING_EARLIER = CUTTING.replace("(m.content or '')", "(m.content if loop.last else m.content.split('</think>')[-1])").replace(
    ".split('</think>')[-1].lstrip('\\n')", ""
)


def called(i: int, arguments: Any, content: str | None = None, id: str | None = None) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "content": content, "tool_calls": [call]}
    last = {"role": "assistant", "content": f"rain {i}"}
    result = {"role": "tool", "content": "rain"} | ({"tool_call_id": id} if id else {})
    return {"messages": [{"role": "user", "content": f"town {i}?"}, answer, result, last]}


def reasoned(*texts: str) -> dict[str, Any]:
    """A conversation whose first answer has reasoning."""
    row = turns(*texts)
    row["messages"][1]["reasoning_content"] = "hm"
    return row


def with_template(model: Path, folder: Path, template: Any) -> Path:
    shutil.copytree(model, folder / "base")
    edit("tokenizer_config.json", chat_template=template)(folder / "base")
    return folder / "base"


def texts_of(prepared: Prepared, name: str = "train") -> list[str]:
    """Rows as text, what is trained between ⟦ and ⟧."""
    tokenizer = TextTokenizer(prepared.tokenizer_file, prepared.model_folder)
    shown = []
    for ids, labels in text_of(prepared, name):
        row = TokenRow(ids, labels, [], Rendered("", [], "Text"), "")
        shown.append(marked_text(row, tokenizer))
    return shown


@pytest.mark.parametrize("template", [CALLS, CALLS_IN_TEXT], ids=["a template that prints objects", "one that prints JSON text"])
@pytest.mark.parametrize("as_text", [False, True], ids=["arguments as an object", "arguments as JSON text"])
def test_a_call_is_trained_as_the_template_writes_it(tmp_path: Path, model: Path, template: str, as_text: bool) -> None:
    rows = [called(i, json.dumps({"town": i}) if as_text else {"town": i}) for i in range(8)]
    source = write_rows(tmp_path / "d.jsonl", rows)
    _, prepared = Job(tmp_path, with_template(model, tmp_path, template), {"name": "d", "source": source}, preparation=EVERYTHING).prepare()
    assert '⟦<call>weather {"town": 0}<|im_end|>⟧' in texts_of(prepared)[0]


def test_tools_are_with_the_rows_that_are_held_out(tmp_path: Path, model: Path) -> None:
    tools = [{"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}]
    source = write_rows(tmp_path / "d.jsonl", [called(i, {"town": i}) | {"tools": json.dumps(tools)} for i in range(60)])
    _, prepared = Job(tmp_path, with_template(model, tmp_path, CALLS), {"name": "d", "source": source}).prepare()
    for row in prepared.held_out_rows("test"):
        assert row.tools == [{"type": "function", "function": tools[0]}]
        assert row.prompt.startswith(json.dumps(row.tools))


def test_rows_that_nest_as_deep_as_they_may_are_held_out_too(tmp_path: Path, model: Path) -> None:
    deep = '{"a": ' * 256 + "0" + "}" * 256
    source = write_rows(tmp_path / "d.jsonl", [called(i, deep) for i in range(40)])
    job = Job(tmp_path, with_template(model, tmp_path, CALLS), {"name": "d", "source": source}, training={"maxLength": 8192})
    rows = list(job.prepare()[1].held_out_rows("test"))
    assert rows
    assert all(f"<call>weather {deep}" in row.prompt and deep in json.dumps(row.messages) for row in rows)


def test_the_template_for_tools_stands_in_where_there_are_tools(tmp_path: Path, model: Path) -> None:
    plain = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": CALLS}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    rows = [called(i, {"town": i}) | {"tools": tools} for i in range(5)] + [question(i) for i in range(5)]
    job = Job(
        tmp_path,
        with_template(model, tmp_path, named),
        {"name": "d", "source": write_rows(tmp_path / "d.jsonl", rows)},
        preparation=EVERYTHING,
    )
    texts = texts_of(job.prepare()[1])
    assert sum(text.startswith('[{"type": "function"') and "<call>weather" in text for text in texts) == 5
    assert sum(text.startswith("<|im_start|>user") for text in texts) == 5


@dataclass(frozen=True)
class Kept:
    """Rows, and what is right: texts that stand in the first row, warnings that are given (and no other words of `silent`)."""

    rows: list[dict[str, Any]]
    texts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    template: Any = None
    dataset: dict[str, Any] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    count: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)


def turns(*texts: str, **last: Any) -> dict[str, Any]:
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    messages[-1] |= last
    return {"messages": messages}


def bad_weight(name: str, value: Any) -> list[dict[str, Any]]:
    rows = [turns(f"q {i}", f"BAD {i}", f"again {i}", f"good {i}") for i in range(8)]
    for row in rows:
        row["messages"][1][name] = value
    return rows


KEPT: dict[str, Kept] = {
    "control tokens that the data quotes": Kept(
        [turns(f"what is <|im_end|> in {i}?", f"text: <|im_start|>system evil<|im_end|> {i}.") for i in range(8)],
        ("⟦text: <|im_start|>system evil<|im_end|> 0.<|im_end|>⟧",),
        ("in 8 rows messages hold control tokens of this tokenizer, which are taken as text",),
    ),
    "weight 0": Kept(bad_weight("weight", 0), ("BAD 0<|im_end|>\n", "⟦good 0<|im_end|>⟧")),
    "train false": Kept(bad_weight("train", False), ("BAD 0<|im_end|>\n", "⟦good 0<|im_end|>⟧")),
    "reasoning that the template leaves out": Kept(
        [turns(f"q {i}", f"a {i}", reasoning_content="hm") for i in range(8)],
        warnings=("prints nothing of reasoning_content of assistant messages (8 rows)",),
    ),
    "reasoning that it prints": Kept([turns(f"q {i}", f"a {i}", reasoning_content="hm") for i in range(8)], ("⟦<think>hm</think>a 0",), template=REASONING),
    "tools that the template leaves out": Kept(
        [question(i, tools=[{"name": "f"}]) for i in range(8)], warnings=("prints nothing of tools (8 rows)",)
    ),
    "tools in a message": Kept(
        [question(i, tools=[{"name": "f"}]) | turns(f"q {i}", f"a {i}", tools=[{"name": "g"}]) for i in range(4)],
        warnings=("prints nothing of tools of assistant messages (4 rows): ",),
        template=CALLS,
    ),
    "a member that nobody knows": Kept([turns(f"q {i}", f"a {i}", mood="glad") for i in range(8)], warnings=("mood of assistant messages (8 rows)",)),
    "content that is left out beside calls": Kept(
        [called(i, {"town": i}) for i in range(4)] + [called(i, {"town": i}, content="let me see") for i in range(4, 7)],
        warnings=("in 3 rows, the first of them file d.jsonl, line 5, the chat template leaves out content of assistant messages, which it prints in others: ",),
        template=CALLS_OR_CONTENT,
    ),
    "calls that are left out beside content": Kept(
        [called(0, {"town": 0}, content="let me see")] + [called(i, {"town": i}) for i in range(1, 5)],
        warnings=("in 1 rows, the first of them file d.jsonl, line 1, the chat template leaves out tool_calls of assistant messages, which it prints in others: ",),
        template=CONTENT_OR_CALLS,
    ),
    "arguments that the template leaves out": Kept(
        [called(i, {"town": i}) for i in range(4)],
        ("⟦<call>weather <|im_end|>⟧",),
        warnings=("prints nothing of arguments in tool_calls of assistant messages (4 rows)",),
        template=CALLS.replace("{{ t.function.arguments | tojson }}", ""),
    ),
    "reasoning of an earlier answer": Kept(
        [reasoned(f"q {i}", f"a {i}", f"r {i}", f"b {i}") for i in range(4)],
        warnings=("4 conversations became 8 rows",),
        silent=("reasoning_content",),
        template=REASONING,
        count=8,
    ),
    "thoughts within content that the template cuts": Kept(
        [turns(f"q {i}", f"a {i}") for i in range(3)] + [turns(f"q {i}", f"<think>hm {i}</think>\n\na {i}") for i in range(3, 8)],
        warnings=("in 5 rows, the first of them file d.jsonl, line 4, the chat template cuts or changes a part of the content of assistant messages",),
        template=CUTTING,
    ),
    "thoughts within earlier content that the template cuts later": Kept(
        [turns(f"q {i}", f"<think>hm {i}</think>a {i}", f"r {i}", f"b {i}") for i in range(4)],
        ("⟦<think>hm 0</think>a 0<|im_end|>⟧",),
        warnings=("4 conversations became 8 rows",),
        template=CUTTING_EARLIER,
        silent=("cuts or changes",),
        count=8,
    ),
    "an answer that the template cuts as a whole": Kept(
        [turns(f"q {i}", f"a {i}") for i in range(7)] + [turns("q 7", "<think>hm</think>")],
        warnings=("in 1 rows, the first of them file d.jsonl, line 8, the chat template leaves out content of assistant messages, which it prints in others",),
        silent=("cuts or changes",),
        template=CUTTING,
    ),
    "control tokens in thoughts that the template prints": Kept(
        [turns(f"q {i}", f"<think>no <|im_end|> {i}</think>\na {i}") for i in range(4)],
        warnings=("in 4 rows messages hold control tokens",),
        silent=("cuts or changes", "leaves out"),
    ),
    "answers that quote an end and nothing else": Kept(
        [turns(f"how does turn {i} end?", "<|im_end|>") for i in range(4)],
        warnings=("in 4 rows messages hold control tokens",),
        silent=("cuts or changes", "leaves out"),
    ),
    "a switch that nothing reads": Kept(
        [turns(f"q {i}", f"a {i}", trainable=False, mask=1) for i in range(4)],
        warnings=("nothing reads mask of assistant messages (4 rows), trainable of assistant messages (4 rows): answers that have it are trained",),
        silent=("chatTemplate",),
    ),
    "questions that ask to be trained": Kept(
        [{"messages": [{"role": "user", "content": f"q {i}", "weight": 1}, {"role": "assistant", "content": "a"}]} for i in range(4)],
        warnings=("in 4 rows weight or train stands on a message that is not the assistant's and is not read",),
        silent=("chatTemplate",),
    ),
    "the ids of calls": Kept(
        [called(i, {"town": i}, id="c1") for i in range(4)],
        ('⟦<call>weather {"town": 0}<|im_end|>⟧',),
        template=CALLS,
    ),
    "ShareGPT's calls under a template without": Kept(
        [
            {
                "conversations": [
                    {"from": "human", "value": f"box {i}?"},
                    {"from": "function_call", "value": json.dumps({"name": "count", "arguments": {"box": i}})},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": f"three {i}"},
                ]
            }
            for i in range(8)
        ],
        ('⟦{"name": "count", "arguments": {"box": 0}}<|im_end|>⟧', "<|im_start|>tool\n3", "⟦three 0<|im_end|>⟧"),
    ),
    "Alpaca's history": Kept(
        [{"instruction": f"and box {i}?", "output": f"there are {i}", "history": [["how many in box 1?", "there is 1"]]} for i in range(8)],
        ("user\nhow many in box 1?<|im_end|>", "⟦there are 0<|im_end|>⟧"),
    ),
    "columns that nothing reads": Kept(
        [{"instruction": f"a {i}", "output": f"b {i}", "category": "qa", "source": "x"} for i in range(8)],
        warnings=("data set d: columns that are not read: category, source",),
    ),
    "twins that differ in outer white space": Kept(
        [turns(f"{space}q {i}", f"a {i}{space}") for i in range(15) for space in ("", " \n")], count=15, dropped={"Duplicate": 15}
    ),
    "control characters": Kept(
        [turns(f"q {i}", f"a {i}" + "\x00\x1b[31m" * (i == 3)) for i in range(8)], warnings=("control characters were removed from 1 rows",)
    ),
    "parts that are no text": Kept(
        [{"messages": [{"role": "user", "content": [{"type": "image", "text": "a"}]}, *turns("q", "a")["messages"][1:]]}] + [question(i) for i in range(9)],
        warnings=("NotText: 1, first in file d.jsonl, line 1 (content in parts needs parts of type text",),
        count=9,
        dropped={"NotText": 1},
    ),
    "some rows of no use": Kept(
        [turns(f"q {i}", f"a {i}") for i in range(5)] + [turns("alone")] + [turns(f"q {i}", f"a {i}") for i in range(5, 20)] + [turns("q", " ")],
        warnings=(
            "data set d: 2 of 22 rows were dropped (EmptyField: 1, first in file d.jsonl, line 22; NoAnswer: 1, first in file d.jsonl, line 6)",
        ),
        count=20,
        dropped={"EmptyField": 1, "NoAnswer": 1},
    ),
    "a system message that the template refuses, in a few rows": Kept(
        [{"messages": [{"role": "system", "content": "kind"}, *turns("q", "a")["messages"]]}] + [turns(f"q {i}", f"a {i}") for i in range(9)],
        warnings=('says "System role not supported" (the chat template takes no system message',),
        template=NO_SYSTEM + CALLS,
        count=9,
        dropped={"SystemRefusedByTemplate": 1},
    ),
    "history that the template rewrites": Kept(
        [turns(*[f"{kind} {i} {turn}" for turn in range(20) for kind in "qa"]) for i in range(4)],
        warnings=("4 conversations became 80 rows with ",),
        template=REASONING,
        count=80,
    ),
    "a long chat": Kept([turns(*[f"{kind} {turn}" for turn in range(1000) for kind in "qa"])], count=1),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_rows_say_is_trained_or_said_to_be_lost(tmp_path: Path, model: Path, name: str) -> None:
    case = KEPT[name]
    base = with_template(model, tmp_path, case.template) if case.template else model
    source = write_rows(tmp_path / "d.jsonl", case.rows)
    job = Job(tmp_path, base, {"name": "d", "source": source, **case.dataset}, preparation=EVERYTHING)
    result, prepared = job.prepare()
    first = texts_of(prepared)[0]
    for text in case.texts:
        assert text in first
    for words in case.warnings:
        assert any(words in warning for warning in result.warnings), result.warnings
    assert not [warning for warning in result.warnings if any(words in warning for words in case.silent)]
    if not case.warnings:
        assert [warning for warning in result.warnings if "truncated" not in warning and "longer than" not in warning] == []
    assert result.dataset is not None
    assert result.dataset.rows_out["train"] == (case.count or len(case.rows))
    assert result.dataset.dropped == case.dropped


REFUSED: dict[str, tuple[list[dict[str, Any]], Any, dict[str, Any], str, str]] = {
    "calls under a template that has none": (
        [called(i, {"town": SECRET}) for i in range(8)], None, {}, "NotRendered", "line 1: the chat template prints nothing of the tool_calls of assistant messages",
    ),
    "results of tools that the template leaves out": (
        [called(i, {"town": SECRET}) for i in range(8)], CALLS.replace("{{ '<|im_start|>' + m.role", "{% if m.role == 'tool' %}{% continue %}{% endif %}{{ '<|im_start|>' + m.role"),
        {}, "NotRendered", "the content of tool messages",
    ),
    "answers that the template cuts as a whole, in each row": (
        [turns(f"q {i}", f"<think>{SECRET} {i}</think>") for i in range(8)], CUTTING, {}, "NotRendered", "line 1: the chat template prints nothing of the content of assistant messages",
    ),
    "calls that are left out beside content, in each row": (
        [called(i, {"town": SECRET}, content="let me see") for i in range(8)], CONTENT_OR_CALLS, {},
        "NotRendered", "line 1: the chat template prints nothing of the tool_calls of assistant messages",
    ),
    "most rows of no use": (
        [{"messages": [{"role": "narrator", "content": SECRET}, {"role": "assistant", "content": "y"}]}] * 7 + [question(i) for i in range(3)], None, {},
        "InvalidDataset", "7 of its 10 rows cannot be used, more than preparation.maxDroppedShare (0.2) allows (UnknownRole: 7, first in file d.jsonl, line 1, where a role is called 'narrator'; known are system, developer, user, human,",
    ),
    "a system message in each row that the template refuses": (
        [{"messages": [{"role": "system", "content": SECRET}, *turns("q", f"a {i}")["messages"]]} for i in range(8)], NO_SYSTEM + CALLS, {},
        "InvalidDataset", "takes no system message: set model.chatTemplate to one that does",
    ),
    "a system message of the job that the template refuses": (
        [question(i) for i in range(8)], NO_SYSTEM + CALLS, {"systemMessage": SECRET}, "InvalidDataset", "takes no system message; remove systemMessage",
    ),
    "a named column that no row has": (
        [{"instruction": f"a {i}", "context": SECRET, "response": f"b {i}"} for i in range(8)], None, {"format": "Alpaca", "columns": {"input": "contxt", "output": "response"}},
        "InvalidDataset", "columns.input: no row has a column 'contxt'; name the right one, or remove it; columns that are not read: context",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_for_good_is_refused_in_words_that_help(tmp_path: Path, model: Path, name: str) -> None:
    rows, template, settings, reason, words = REFUSED[name]
    base = with_template(model, tmp_path, template) if template else model
    source = write_rows(tmp_path / "d.jsonl", rows)
    refused = Job(tmp_path, base, {"name": "d", "source": source, **settings}, preparation=EVERYTHING).refused()
    assert refused.reason == reason
    assert words in refused.message


def test_the_share_of_rows_that_may_be_of_no_use_is_a_setting(tmp_path: Path, model: Path) -> None:
    rows = [turns("alone")] * 5 + [question(i) for i in range(5)]
    source = write_rows(tmp_path / "d.jsonl", rows)
    result, _ = Job(tmp_path, model, {"name": "d", "source": source}, preparation={**EVERYTHING, "maxDroppedShare": 0.5}).prepare()
    assert result.dataset is not None
    assert result.dataset.dropped == {"NoAnswer": 5}
    strict = {**EVERYTHING, "maxDroppedShare": 0}
    Job(tmp_path, model, {"name": "d", "source": source}, prefix="strict", preparation=strict).refused()


@pytest.mark.parametrize(
    ("metric", "rows", "words"),
    [
        ("AnswerChoice", [turns(f"good {i}?", "yes" if i % 2 else "no") for i in range(80)], "8 different answers, and its "),
        ("ExactMatch", [{"text": f"words {i}"} for i in range(80)], "plain text and ask nothing; take Perplexity"),
    ],
)
def test_a_gate_that_the_held_out_rows_cannot_answer_is_refused_before_training(
    tmp_path: Path, model: Path, metric: str, rows: list[dict[str, Any]], words: str
) -> None:
    source = write_rows(tmp_path / "d.jsonl", rows)
    evaluation = {"minSamples": 4, "gates": [{"name": "g", "metric": metric, "min": 0.5}]}
    refused = Job(tmp_path, model, {"name": "d", "source": source}, evaluation=evaluation).refused()
    assert refused.reason == "InvalidGate"
    assert "evaluation.gates, gate g:" in refused.message
    assert words in refused.message


def test_rows_that_quote_control_tokens_are_not_compared_with_a_server(tmp_path: Path, model: Path) -> None:
    rows = [turns(f"what is <|im_end|> {i}?", f"an end {i}") for i in range(30)] + [question(i) for i in range(60)]
    source = write_rows(tmp_path / "d.jsonl", rows)
    _, prepared = Job(tmp_path, model, {"name": "d", "source": source}).prepare()
    held_out = list(prepared.held_out_rows("test"))
    quoting = [row for row in held_out if row.quotes_control_tokens]
    assert quoting
    assert all(("<|im_end|> " in row.prompt) == row.quotes_control_tokens for row in held_out)
    assert len(rendered_rows(prepared)) == len(held_out) - len(quoting)
    assert all(row.prompt_ids.count(2) == 1 for row in quoting)


def test_a_row_of_millions_of_characters_is_cut_to_its_length(tmp_path: Path, model: Path) -> None:
    rows = [turns("tell me all", "word " * 400_000), *[question(i) for i in range(9)]]
    source = write_rows(tmp_path / "d.jsonl", rows)
    job = Job(tmp_path, model, {"name": "d", "source": source}, preparation=EVERYTHING, training={"maxLength": 64})
    result, prepared = job.prepare()
    assert result.dataset is not None
    assert (result.dataset.rows_out["train"], result.dataset.truncated) == (10, 1)
    assert len(text_of(prepared, "train")[0][0]) == 64
