"""Files of data sets: which hold a split, what is read of them, and where a broken one is broken."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import LocalRunSpec
from finetune_trainer.errors import StageError
from finetune_trainer.prepare import records
from finetune_trainer.prepare.dataset_files import DatasetFiles, find_split, locate
from finetune_trainer.prepare.records import SplitFiles
from finetune_trainer.storage import JobStorage

ROWS = [{"text": f"row {i} é"} for i in range(50)]


def read(path: Path) -> list[dict[str, Any]]:
    return [located.record for located in SplitFiles("d", "train", [path]).records()]


def refusal(path: Path) -> str:
    with pytest.raises(StageError) as refused:
        read(path)
    assert refused.value.reason == "InvalidDataset"
    return refused.value.message


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert read(path) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_json_array_is_read_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, chunk: int
) -> None:
    monkeypatch.setattr(records, "_CHUNK_CHARS", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert read(path) == ROWS


def test_the_rest_of_a_chunk_is_not_copied_for_each_row_of_an_array() -> None:
    """Copied, it made an array of a few thousand rows per chunk 9 times slower."""
    chunk, place = '[{"a": 1}, {"a": 2}]', records.Location("d", "a.json", 1)
    value, kept, position = records._next_value(json.JSONDecoder(), chunk, 1, io.StringIO(), place)
    assert (value, kept is chunk, position) == ({"a": 1}, True, 9)
    kept, position = records._skip_separator(chunk, position, io.StringIO(), place)
    assert (kept is chunk, position) == (True, 11)


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert read(path) == ROWS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    located = list(SplitFiles("d", "train", [path]).records())
    assert [row.record for row in located] == ROWS
    assert located[-1].location.row == 50


def test_rows_are_counted_over_the_files_of_a_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    located = list(SplitFiles("d", "train", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).records())
    assert [(row.location.row, row.location.line) for row in located] == [(1, 1), (2, 2), (3, 1), (4, 2)]
    assert located[-1].bytes_read == SplitFiles("d", "train", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).size_bytes


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a broken line": (
        "a.jsonl",
        b'{"text": "x"}\n\n{"text": "secret\n',
        "line 3: expected one whole JSON object on the line (broken at column",
    ),
    "a line that is no object": ("a.jsonl", b'["secret"]\n', "line 1: expected a JSON object"),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', "line 1: expected text in UTF-8"),
    "nested without end": ("a.jsonl", b"[" * 200_000, "line 1: expected one whole JSON object"),
    "an array cut short": ("a.json", b'[{"text": "x"}, {"text": "sec', "row 2: expected an array of whole JSON objects"),
    "an array that does not end": ("a.json", b'[{"text": "x"}', "row 2: expected an array that ends with ]"),
    "an array of numbers": ("a.json", b"[1, 2]", "row 1: expected a JSON object"),
    "an array not in UTF-8": ("a.json", b'[{"text": "\xff"}]', "row 1: expected text in UTF-8"),
    "a Parquet file that is none": ("a.parquet", b"PAR1 secret", "expected a whole Parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_file_and_line_and_without_its_text(tmp_path: Path, name: str) -> None:
    file, data, words = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    message = refusal(tmp_path / file)
    assert words in message
    assert f"data set d, file {file}" in message
    assert "secret" not in message


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_ROW_BYTES", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 200 + '"}\n')
    assert "a line of at most" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"]),
        (
            ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet"],
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ),
        (["data/train-00000-of-00001-0a1b.parquet", "README.md"], ["data/train-00000-of-00001-0a1b.parquet"]),
        (["train/b.json", "train/a.json"], ["train/a.json", "train/b.json"]),
        (["train.parquet", "train.jsonl"], ["train.jsonl"]),
        (["train_extra.jsonl", "retrain.jsonl", "train.csv", "trainXjsonl"], []),
    ],
)
def test_the_files_of_a_split(names: list[str], want: list[str]) -> None:
    assert find_split(names, "train") == want


def located(source: Path, tmp_path: Path, **settings: Any) -> DatasetFiles:
    run = LocalRunSpec.model_validate(
        {
            "storage": {"root": str(tmp_path / "out"), "prefix": "job"},
            "model": {"source": "x"},
            "datasets": [{"name": "d", "source": str(source), **settings}],
        }
    )
    return locate(run.datasets[0], run, JobStorage(run.storage, "w"))


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "exam"):
        (tmp_path / f"{split}.jsonl").write_text("{}")
    found = located(tmp_path, tmp_path, testSplit="exam")
    assert [path.name for path in found.train.files] == ["train.jsonl"]
    assert found.test is not None
    assert [path.name for path in found.test.files] == ["exam.jsonl"]


@pytest.mark.parametrize(
    ("make", "settings", "reason", "words"),
    [
        ((), {}, "DatasetNotFound", "train.jsonl"),
        (("train.jsonl",), {"testSplit": "test"}, "DatasetNotFound", "test.jsonl"),
        (None, {}, "DatasetNotFound", "check the path"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, make: Any, settings: dict[str, Any], reason: str, words: str) -> None:
    folder = tmp_path / "data"
    if make is not None:
        folder.mkdir()
        for name in make:
            (folder / name).write_text("{}")
    with pytest.raises(StageError) as refused:
        located(folder, tmp_path, **settings)
    assert refused.value.reason == reason
    assert words in refused.value.message


def test_one_file_has_no_test_split(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    with pytest.raises(StageError, match="testSplit needs a folder"):
        located(path, tmp_path, testSplit="test")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(StageError, match="ends in one of"):
        located(tmp_path / "a.csv", tmp_path)
