"""Files of data sets: which hold a split, what is read of them, and where a broken one is broken."""

from __future__ import annotations

import io
import json
import os
import random
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


def test_the_rest_of_a_chunk_is_not_copied_for_each_row_of_an_array(tmp_path: Path) -> None:
    """Copied, it made an array of a few thousand rows per chunk 9 times slower."""
    array = records._ArrayReader(tmp_path / "a.json", "d", io.StringIO('[{"a": 1}, {"a": 2}]'))
    values = array.values()
    assert next(values) == {"a": 1}
    chunk = array.buffer
    assert next(values) == {"a": 2}
    assert array.buffer is chunk


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


def test_members_that_parquet_adds_to_a_struct_are_no_members(tmp_path: Path) -> None:
    """In a Parquet file each struct of a column has the members of all, null where a row has none."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"calls": [{"arguments": {"town": "0"}}], "note": None}, {"calls": [{"arguments": {"box": 1}, "id": "c"}], "note": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows


def test_long_rows_of_a_parquet_file_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "".join(random.Random(i).choices("abcdefgh", k=20_000))} for i in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    monkeypatch.setattr(records, "_PARQUET_BATCH_BYTES", 100_000)
    assert 1 <= records._batch_rows(pyarrow.parquet.ParquetFile(tmp_path / "a.parquet").metadata) <= 10
    assert read(tmp_path / "a.parquet") == rows


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a broken line": (
        "a.jsonl",
        b'{"text": "x"}\n\n{"text": "secret\n',
        "line 3: expected one whole JSON object on the line (broken at column 10)",
    ),
    "a line that stops": (
        "a.jsonl",
        b'{"text": [\n{"text": "secret"}\n',
        "line 1: expected one whole JSON object on the line (broken at column 11)",
    ),
    "two objects on a line": (
        "a.jsonl",
        b'{"text": "x"}{"text": "secret"}\n',
        "line 1: expected one whole JSON object on the line (broken at column 14)",
    ),
    "a member twice": ("a.jsonl", b'{"text": "x", "text": "secret"}\n', "line 1: expected an object that names each member once"),
    "a member twice, in an array": (
        "a.json",
        b'[{"text": "x", "text": "secret"}]',
        "row 1: expected an object that names each member once",
    ),
    "an array named as lines": ("a.jsonl", b'[{"text": "secret"}]\n', "line 1: expected a JSON object; a file that is one array"),
    "a second array": (
        "a.json",
        b'[{"text": "x"}]\n[{"text": "secret"}]',
        "row 2: expected nothing after the array's ]; write one array, or one object on each line (broken at line 2, column 1)",
    ),
    "garbage after the array": ("a.json", b'[{"text": "x"}] secret', "row 2: expected nothing after the array's ]"),
    "a comma missing": (
        "a.json",
        b'[{"text": "x"}\n {"text": "secret"}]',
        "row 2: expected a comma or ] after an object (broken at line 2, column 2)",
    ),
    "a comma too many": (
        "a.json",
        b'[{"text": "x"},, {"text": "secret"}]',
        "row 2: expected an array of whole JSON objects (broken at line 1, column 16)",
    ),
    "a comma at the end": ("a.json", b'[{"text": "x"},\n]', "row 2: expected an array of whole JSON objects (broken at line 2, column 1)"),
    "a broken object in an array": (
        "a.json",
        b'[{"text": "x"},\n {"text" "secret"}' + b', {"text": "secret"}' * 20 + b"]",
        "row 2: expected an array of whole JSON objects (broken at line 2, column 10)",
    ),
    "rows below a member": (
        "a.json",
        b'{\n "data": [\n  {"text": "secret"}\n ]\n}',
        "holds its rows under 'data'; write that array by itself (jq '.data')",
    ),
    "rows below a later member": (
        "a.json",
        b'{\n "version": 1,\n "rows": [\n  {"text": "secret"}\n ]\n}',
        "holds its rows under 'rows'; write that array by itself",
    ),
    "one row over several lines": (
        "a.json",
        b'{\n "messages": [\n  {"role": "user", "content": "secret"}\n ]\n}',
        "one JSON object over several lines, which is no list of rows",
    ),
    "one object over several lines": ("a.json", b'{\n "text": "secret"\n}', "one JSON object over several lines, which is no list of rows"),
    "objects over several lines": (
        "a.json",
        b'{\n "text": "secret"\n}\n{\n "text": "secret"\n}\n',
        "a.json: several JSON values, each over several lines; write each on a line of its own (jq -c .); expected an array",
    ),
    "objects over several lines, named as lines": (
        "a.jsonl",
        b'{\n "text": "secret"\n}\n{\n "text": "secret"\n}\n',
        "a.jsonl: several JSON values, each over several lines; write each on a line of its own (jq -c .); expected one object",
    ),
    "an array over several lines, named as lines": (
        "a.jsonl",
        b'[\n {"text": "secret"}\n]',
        "one JSON array, which is read under a name that",
    ),
    "columns": (
        "a.json",
        b'{"prompt": ["secret", "b"], "completion": ["c", "d"]}',
        "one JSON object, which holds columns, a list for each; write rows",
    ),
    "columns over several lines": (
        "a.json",
        b'{\n "prompt": ["secret"],\n "completion": ["c"]\n}',
        "one JSON object over several lines, which holds columns, a list for each; write rows",
    ),
    "columns of conversations": ("a.jsonl", b'{"messages": [[{"role": "user", "content": "secret"}]]}', "holds columns, a list for each"),
    "columns by index": (
        "a.json",
        b'{"text": {"0": "secret", "1": "b"}}',
        "one JSON object, which holds columns by index; write rows, pandas",
    ),
    "rows by index": ("a.json", b'{"0": {"text": "secret"}, "1": {"text": "b"}}', "holds its rows under a key each; write the rows alone"),
    "rows by name, over several lines": (
        "a.json",
        b'{\n "secret": {"text": "a"},\n "b": {"text": "b"}\n}',
        "holds its rows under a key each",
    ),
    "rows below the one member": ("a.json", b'{"data": [{"text": "secret"}]}', "one JSON object, which holds its rows under 'data'"),
    "a broken line named otherwise": (
        "a.json",
        b'{"text": "secret\n{"text": "x"}\n',
        "line 1: expected one whole JSON object on the line (broken at column 10)",
    ),
    "gzip": ("a.jsonl", b"\x1f\x8b\x08secret", "file a.jsonl is gzip-compressed; unpack it"),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfdsecret", "file a.jsonl is zstd-compressed; unpack it"),
    "zip": ("a.json", b"PK\x03\x04secret", "file a.json is a zip archive; unpack it"),
    "a Git LFS pointer": (
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
        "is a Git LFS pointer and not the data",
    ),
    "a Git LFS pointer for Parquet": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
        "is a Git LFS pointer",
    ),
    "an HTML page": ("a.jsonl", b"\n<!DOCTYPE html><html>secret", "is an HTML page and not the data"),
    "UTF-16": ("a.jsonl", '{"text": "secret"}'.encode("utf-16"), "is text in UTF-16"),
    "Parquet under another name": ("a.json", b"PAR1secret", "is a Parquet file; name it .parquet"),
    "a line that is no object": ("a.jsonl", b'["secret"]\n', "line 1: expected a JSON object"),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', "line 1: expected text in UTF-8"),
    "nested without end": ("a.jsonl", b"[" * 200_000, "line 1: expected an object that is not nested so deep"),
    "a number without end": ("a.jsonl", b'{"n": ' + b"7" * 5000 + b"}\n", "line 1: expected numbers of at most 4300 digits"),
    "a number without end, in an array": (
        "a.json",
        b'[{"text": "x"},\n {"n": ' + b"7" * 5000 + b"}]",
        "row 2: expected numbers of at most 4300 digits; write longer ones as text (broken at line 2, column 2)",
    ),
    "a number without end, as lines named otherwise": (
        "a.json",
        b'{"n": ' + b"7" * 5000 + b'}\n{"text": "x"}\n',
        "line 1: expected numbers of at most 4300 digits",
    ),
    "an array cut short": (
        "a.json",
        b'[{"text": "x"}, {"text": "sec',
        "row 2: expected an array of whole JSON objects (broken at line 1, column 17)",
    ),
    "an array that does not end": ("a.json", b'[{"text": "x"}', "row 2: expected an array that ends with ]"),
    "an array of numbers": ("a.json", b"[1, 2]", "row 1: expected a JSON object"),
    "an array not in UTF-8": ("a.json", b'[{"text": "\xff"}]', "row 1: expected text in UTF-8"),
    "a Parquet file that is none": ("a.parquet", b"PAR1 secret", "expected a whole Parquet file"),
}


ONE_ROW: dict[str, dict[str, Any]] = {
    "text": {"text": "x"},
    "a conversation": {"messages": [{"role": "user", "content": "x"}]},
    "a conversation in two": {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]},
    "a text with a list": {"text": "x", "tags": ["a"], "parts": [{"b": 1}], "about": {"c": 1}},
    "nothing": {},
}


@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("name", ONE_ROW)
def test_one_row_is_a_row_and_no_other_shape(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text(json.dumps(ONE_ROW[name]) + "\n\n")
    assert read(tmp_path / file) == [ONE_ROW[name]]


@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
def test_rows_in_lines_are_not_asked_for_another_shape(tmp_path: Path, file: str) -> None:
    """The first of them alone would pass for columns."""
    (tmp_path / file).write_text('{"a": ["x"]}\n{"a": ["y"]}\n')
    assert len(read(tmp_path / file)) == 2


def test_a_file_too_large_for_one_object_is_read_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_ROW_BYTES", 10)
    (tmp_path / "a.json").write_text('{\n "text": "secret"\n}')
    assert "line 1: expected one whole JSON object on the line" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("depth", [257, 500, 700, 900, 100_000])
@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
def test_what_nests_deeper_than_rows_are_walked_is_refused_in_the_same_words(tmp_path: Path, file: str, depth: int) -> None:
    row = b'{"text": "x", "n": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    (tmp_path / file).write_bytes(row + b"\n" if file == "a.jsonl" else b"[" + row + b"]")
    assert "1: expected an object that is not nested so deep (more than 256 levels)" in refusal(tmp_path / file)


def test_what_nests_as_deep_as_rows_are_walked_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x", "n": ' + b"[" * 255 + b"]" * 255 + b"}\n")
    assert len(read(tmp_path / "a.jsonl")) == 1


def parquet(path: Path) -> int:
    """Writes a file of 4,000 rows in several pages; its size."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "".join(random.Random(i).choices("abcdefgh", k=50))} for i in range(4000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, data_page_size=4096, row_group_size=1000)
    return path.stat().st_size


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_parquet_file_with_a_hole_is_refused_by_name(tmp_path: Path, share: float) -> None:
    """As an interrupted download or a sparse copy leaves it: the footer is whole, and pages in the middle are zeros."""
    path = tmp_path / "a.parquet"
    size = parquet(path)
    with path.open("r+b") as file:
        file.seek(int(size * share))
        file.write(bytes(6000))
    message = refusal(path)
    assert "data set d, file a.parquet, row " in message
    assert "expected a whole Parquet file" in message


def test_an_error_of_the_storage_is_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    parquet(tmp_path / "a.parquet")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", fail)
    with pytest.raises(OSError, match="Input/output"):
        read(tmp_path / "a.parquet")


UNREADABLE = {"string": b"\xff\xfe", "timestamp[us, tz=Nowhere/X]": 1, "duration[s]": 2**62}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_value_of_a_parquet_file_that_python_cannot_tell_is_refused_by_row_and_column(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {
        "string": pyarrow.binary(),
        "timestamp[us, tz=Nowhere/X]": pyarrow.timestamp("us", tz="Nowhere/X"),
        "duration[s]": pyarrow.duration("s"),
    }
    column = pyarrow.array([None] * 300 + [UNREADABLE[kind]], types[kind])
    if kind == "string":
        column = pyarrow.Array.from_buffers(pyarrow.string(), 301, column.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 301, "more": column}), tmp_path / "a.parquet")
    assert f"a.parquet, row 301: expected a value of type {kind} that can be read, in column 'more'" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("depth", ["column", "member of a struct", "member of a struct in a list"])
def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path, depth: str) -> None:
    """As a member that a JSON object has twice: the first would be lost."""
    import pyarrow
    import pyarrow.parquet

    texts = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    table = pyarrow.table(texts, names=["text", "text"])
    if depth != "column":
        struct = pyarrow.StructArray.from_arrays(texts, names=["text", "text"])
        column = struct if depth == "member of a struct" else pyarrow.ListArray.from_arrays([0, 1], struct)
        table = pyarrow.table([column], names=["messages"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "file a.parquet, row 1: expected each column once, and 'text' is there 2 times" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("name", [name for name, (file, _, words) in BROKEN.items() if file == "a.json" and "row" in words])
def test_the_place_is_the_same_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int) -> None:
    monkeypatch.setattr(records, "_CHUNK_CHARS", chunk)
    file, data, words = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    assert words in refusal(tmp_path / file)


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


OTHERS: dict[str, tuple[list[str], str]] = {
    "another name": (["alpaca_cleaned.json", "README.md"], "it has alpaca_cleaned.json; set split: alpaca_cleaned"),
    "shards of another name": (["data/full-00000-of-00002.parquet", "data/full-00001-of-00002.parquet"], "set split: full"),
    "a folder of another name": (["en/a.jsonl", "en/b.jsonl"], "set split: en"),
    "too deep": (["a/b/c/d.jsonl"], "it has a/b/c/d.jsonl; name the file train.jsonl, or its folder train"),
    "many": ([f"part{i}.jsonl" for i in range(9)], "it has part0.jsonl, part1.jsonl, part2.jsonl, part3.jsonl, part4.jsonl and 4 more; put those that belong together into a folder train, or set split to one of part0, part1"),
    "parts of one split": (["train_1.jsonl", "train_2.jsonl"], "it has train_1.jsonl, train_2.jsonl; put those that belong together into a folder train, or set split to one of train_1, train_2"),
    "compressed": (["train.jsonl.gz"], "train.jsonl.gz is compressed (gzip): unpack it"),
    "of another kind": (["train.csv", "train_more.jsonl"], "train.csv is of another kind: write it as one of these"),
    "nothing that is read": (["notes.txt"], "it has notes.txt; check source, split and testSplit"),
    "nothing at all": ([], "it has no files; check source, split and testSplit"),
    "save_to_disk, with splits": (["dataset_dict.json", "train/data-00000-of-00001.arrow", "train/state.json", "train/dataset_info.json"], "save_to_disk, which is not read: write Parquet"),
    "save_to_disk, without": (["data-00000-of-00001.arrow", "state.json", "dataset_info.json"], "save_to_disk, which is not read: write Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_split_that_no_file_holds_is_refused_with_what_is_there_and_what_to_do(tmp_path: Path, name: str) -> None:
    names, words = OTHERS[name]
    folder = tmp_path / "data"
    folder.mkdir()
    for file in names:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    with pytest.raises(StageError) as refused:
        located(folder, tmp_path)
    assert refused.value.reason == "DatasetNotFound"
    assert "no jsonl, json or parquet file for split train" in refused.value.message
    assert words in refused.value.message


SHARDS: dict[str, tuple[list[str], str]] = {
    "one in the middle": (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "lacks train-00001-of-00003.parquet,"),
    "the last": (["data/train-00000-of-00002.jsonl"], "lacks data/train-00001-of-00002.jsonl,"),
    "counted from one": (["train-1-of-3.json", "train-3-of-3.json"], "lacks train-2-of-3.json,"),
    "within a folder": (["train/part-00001-of-00002.parquet"], "lacks train/part-00000-of-00002.parquet,"),
    "many": (
        ["train-00000-of-00008.jsonl"],
        "lacks train-00001-of-00008.jsonl, train-00002-of-00008.jsonl, train-00003-of-00008.jsonl, "
        "train-00004-of-00008.jsonl, train-00005-of-00008.jsonl and 2 more,",
    ),
    "one of another kind": (["train-00000-of-00002.parquet", "train-00001-of-00002.jsonl"], "lacks train-00000-of-00002.jsonl,"),
}


def made(folder: Path, names: list[str]) -> Path:
    for file in names:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    return folder


@pytest.mark.parametrize("name", SHARDS)
def test_a_split_whose_files_count_more_than_there_are_is_refused(tmp_path: Path, name: str) -> None:
    names, words = SHARDS[name]
    with pytest.raises(StageError) as refused:
        located(made(tmp_path / "data", names), tmp_path)
    assert refused.value.reason == "DatasetNotFound"
    assert words in refused.value.message


@pytest.mark.parametrize("first", [0, 1])
def test_shards_may_be_counted_from_one(tmp_path: Path, first: int) -> None:
    names = [f"train-{first + i:05}-of-00003-{'abc'[i]}.parquet" for i in range(3)]
    found = located(made(tmp_path / "data", names), tmp_path)
    assert [path.name for path in found.train.files] == names
    assert found.warnings == []


UNREAD: dict[str, tuple[list[str], list[str]]] = {
    "other kinds in a folder": (["train/a.jsonl", "train/b.jsonl.gz", "train/c.csv"], ["train/b.jsonl.gz", "train/c.csv"]),
    "another format": (["train.jsonl", "train.json", "train.parquet"], ["train.json", "train.parquet"]),
    "another format below data": (["train.jsonl", "data/train-00000-of-00001.parquet"], ["data/train-00000-of-00001.parquet"]),
    "deeper": (["train/c.jsonl", "train/a/b.jsonl"], ["train/a/b.jsonl"]),
    "compressed beside": (["train.jsonl", "train.jsonl.zst"], ["train.jsonl.zst"]),
    "no suffix": (["train.jsonl", "train/.part"], []),
    "other splits": (["train.jsonl", "test.json", "retrain.json", "train_2.jsonl", "notes/train.json"], []),
    "files about it": (["train/a.jsonl", "train/README.md", "train/_SUCCESS", "train/.a.jsonl.crc", "train/dataset_info.json"], []),
}


@pytest.mark.parametrize("name", UNREAD)
def test_files_of_a_split_that_are_not_read_are_named_in_a_warning(tmp_path: Path, name: str) -> None:
    names, unread = UNREAD[name]
    warnings = located(made(tmp_path / "data", [*names, "exam.jsonl"]), tmp_path, testSplit="exam").warnings
    if not unread:
        assert warnings == []
    else:
        [warning] = warnings
        assert f"data set d: files of split train that are not read: {', '.join(unread)}; rows that" in warning


def test_what_both_splits_read_is_read(tmp_path: Path) -> None:
    assert located(made(tmp_path / "data", ["all.jsonl"]), tmp_path, split="all", testSplit="all").warnings == []


def test_a_single_file_that_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(StageError, match=r"rows\.jsonl\.gz is compressed \(gzip\), which is not read; unpack it"):
        located(tmp_path / "rows.jsonl.gz", tmp_path)


class OnClaim:
    """A claim, mounted in this folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "claim"
        (self.root / "data").mkdir(parents=True)
        (folder / "outside.jsonl").write_text("{}")

    def locate(self, source: str) -> DatasetFiles:
        run = LocalRunSpec.model_validate(
            {
                "storage": {"root": str(self.root.parent / "out"), "prefix": "job"},
                "model": {"source": "x"},
                "datasets": [{"name": "d", "source": source}],
                "claims": {"c": str(self.root)},
            }
        )
        return locate(run.datasets[0], run, JobStorage(run.storage, "w"))


@pytest.mark.parametrize(("target", "reason"), [("../../outside.jsonl", "UnsafePath"), ("nowhere.jsonl", "DatasetNotFound")])
def test_a_folders_file_that_is_a_link_must_lead_to_a_file_on_its_claim(tmp_path: Path, target: str, reason: str) -> None:
    claim = OnClaim(tmp_path)
    (claim.root / "data/train.jsonl").symlink_to(target)
    with pytest.raises(StageError, match=r"train\.jsonl is a link") as refused:
        claim.locate("pvc://c/data")
    assert refused.value.reason == reason


@pytest.mark.parametrize("inside", [True, False], ids=["on its claim", "outside"])
@pytest.mark.parametrize(
    ("link", "beside"), [("train", None), ("data", None), ("data/train", None), ("train/more", "train/a.jsonl"), ("train", "train.jsonl")]
)
def test_a_link_to_a_folder_of_the_split_is_named_and_not_followed(tmp_path: Path, link: str, beside: str | None, inside: bool) -> None:
    claim = OnClaim(tmp_path)
    elsewhere = (claim.root if inside else tmp_path) / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train.jsonl").write_text("{}")
    for path in (beside, link):
        (claim.root / "data" / (path or "")).parent.mkdir(exist_ok=True)
    if beside:
        (claim.root / "data" / beside).write_text("{}")
    (claim.root / "data" / link).symlink_to(elsewhere)
    with pytest.raises(
        StageError, match=f"data set d: {link} is a link to a folder, which is not followed; put the folder itself"
    ) as refused:
        claim.locate("pvc://c/data")
    assert refused.value.reason == "DatasetNotFound"


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "data", ["train.jsonl", "train/a.jsonl"])
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("data/train"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        located(tmp_path / "data", tmp_path)


def test_a_link_to_a_folder_of_something_else_does_not_matter(tmp_path: Path) -> None:
    claim = OnClaim(tmp_path)
    (claim.root / "data/train.jsonl").write_text("{}")
    (claim.root / "data/old").symlink_to(claim.root)
    assert claim.locate("pvc://c/data").warnings == []


def test_a_link_within_the_claim_is_followed(tmp_path: Path) -> None:
    claim = OnClaim(tmp_path)
    (claim.root / "blob").write_text("{}")
    (claim.root / "data/train.jsonl").symlink_to("../blob")
    assert [path.name for path in claim.locate("pvc://c/data").train.files] == ["train.jsonl"]


def test_one_file_has_no_test_split(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    with pytest.raises(StageError, match="testSplit needs a folder"):
        located(path, tmp_path, testSplit="test")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(StageError, match="ends in one of"):
        located(tmp_path / "a.csv", tmp_path)
