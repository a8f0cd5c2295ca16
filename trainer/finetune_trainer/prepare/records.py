"""The records of a data set's files, read as a stream: memory does not grow with the data."""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from finetune_api.outcome import Reason
from finetune_api.section import digest_of

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.json_shapes import other_shape
from finetune_trainer.prepare.json_text import MAX_DEPTH, RepeatedMember, is_too_deep, members_once
from finetune_trainer.storage import hash_file

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIXES = (".jsonl", ".json", ".parquet")
_MAX_ROW_BYTES = 64 << 20
_CHUNK_CHARS = 1 << 20
_PARQUET_BATCH_ROWS = 256
_PARQUET_BATCH_BYTES = 16 << 20
_DEPTH_WORDS = f"an object that is not nested so deep (more than {MAX_DEPTH} levels)"
_NUMBER_WORDS = f"numbers of at most {sys.get_int_max_str_digits()} digits; write longer ones as text"


@dataclass(frozen=True)
class Location:
    """Where a row came from, in words that quote nothing of it."""

    dataset: str
    file: str
    row: int
    """Counted from 1 over the files of one split."""
    line: int | None = None

    @property
    def place(self) -> str:
        """Where in the data set."""
        return f"file {self.file}, " + (f"line {self.line}" if self.line is not None else f"row {self.row}")

    def __str__(self) -> str:
        return f"data set {self.dataset}, {self.place}"


@dataclass(frozen=True)
class Located:
    location: Location
    record: dict[str, Any]
    bytes_read: int
    """Bytes of the split's files read so far, for progress."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split of one data set, in order."""

    dataset: str
    split: str
    files: list[Path]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def records(self) -> Iterator[Located]:
        """Every record with its place. Errors: StageError(InvalidDataset) at the first that does not parse."""
        row, read_before = 0, 0
        for path in self.files:
            refuse_other_content(path, self.dataset)
            for line, record, position in _READERS[path.suffix](path, self.dataset):
                row += 1
                location = Location(self.dataset, path.name, row, line)
                if not isinstance(record, dict):
                    raise invalid(location, "a JSON object")
                if is_too_deep(record):
                    raise invalid(location, _DEPTH_WORDS)
                yield Located(location, record, read_before + position)
            read_before += path.stat().st_size

    def digest(self) -> str:
        """SHA-256 over the files' contents, whatever they are called."""
        return digest_of([hash_file(path) for path in self.files])


def invalid(location: Location, expected: str) -> StageError:
    return StageError(Reason.INVALID_DATASET, f"{location}: expected {expected}")


_Numbered = Iterator[tuple[int | None, Any, int]]

_OTHER_CONTENT = (
    (b"\x1f\x8b", "gzip-compressed; unpack it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it (zstd -d)"),
    (b"BZh", "bzip2-compressed; unpack it (bunzip2)"),
    (b"\xfd7zXZ", "xz-compressed; unpack it (unxz)"),
    (b"PK\x03\x04", "a zip archive; unpack it (unzip)"),
    (b"ARROW1", "an Arrow file; write it as Parquet (datasets: to_parquet)"),
    (b"\xff\xfe", "text in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "text in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the data; fetch it (git lfs pull)"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer and not the data; fetch it (git lfs pull)"),
    (b"<!doctype html", "an HTML page and not the data; download the raw file"),
    (b"<html", "an HTML page and not the data; download the raw file"),
)
"""How files begin that are often found under a data file's name, and what to do about them."""
COMPRESSED = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}


def refuse_other_content(path: Path, dataset: str) -> None:
    """Errors: StageError(InvalidDataset) where a file's first bytes say that it is something else than its name does."""
    with path.open("rb") as file:
        start = file.read(256)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, words in _OTHER_CONTENT:
        if start.startswith(prefix) or text.startswith(prefix):
            raise StageError(Reason.INVALID_DATASET, f"data set {dataset}, file {path.name} is {words}")
    if start.startswith(b"PAR1") and path.suffix != ".parquet":
        raise StageError(Reason.INVALID_DATASET, f"data set {dataset}, file {path.name} is a Parquet file; name it .parquet")


def _expected_by(error: ValueError | RecursionError) -> str:
    """What the decoder would have read in place of JSON that is whole."""
    if isinstance(error, RepeatedMember):
        return "an object that names each member once"
    return _DEPTH_WORDS if isinstance(error, RecursionError) else _NUMBER_WORDS


_DECODER = json.JSONDecoder(object_pairs_hook=members_once)


def _read_jsonl(path: Path, dataset: str) -> _Numbered:
    position = 0
    with path.open("rb") as file:
        for number in range(1, 1 << 62):
            line = file.readline(_MAX_ROW_BYTES + 1)
            if not line:
                return
            position += len(line)
            location = Location(dataset, path.name, number, number)
            if len(line) > _MAX_ROW_BYTES:
                raise invalid(location, f"a line of at most {_MAX_ROW_BYTES >> 20} MiB")
            if line.strip():
                yield number, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, location), position


def _parse(line: bytes, location: Location) -> Any:
    try:
        text = line.decode().rstrip()
    except UnicodeDecodeError as error:
        raise invalid(location, "text in UTF-8") from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise invalid(location, f"one whole JSON object on the line (broken at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise invalid(location, _expected_by(error)) from error
    if isinstance(value, list):
        raise invalid(location, "a JSON object; a file that is one array is read under a name that ends in .json")
    return value


def _read_json(path: Path, dataset: str) -> _Numbered:
    """An array of objects, parsed one by one; a file of JSON lines under this name is read as such."""
    with path.open("rb") as head:
        start = head.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        with path.open("rb") as raw:
            for value in _ArrayReader(path, dataset, io.TextIOWrapper(raw, encoding="utf-8-sig")).values():
                yield None, value, raw.tell()
        return
    yield from _read_lines(path, dataset)


def _read_lines(path: Path, dataset: str) -> _Numbered:
    """Errors: StageError(InvalidDataset) for a file of another shape, as a whole, before its first line is."""
    if words := other_shape(path, _MAX_ROW_BYTES):
        expected = "one object on each line" if path.suffix == ".jsonl" else "an array of objects, or one object on each line"
        raise StageError(Reason.INVALID_DATASET, f"data set {dataset}, file {path.name}: {words}; expected {expected}")
    yield from _read_jsonl(path, dataset)


_BLANK = re.compile(r"[ \t\r\n]*")
_CUT_SHORT_CHARS = 16
"""What ends within a literal or an escape is refused at most so far before its end."""


class _ArrayReader:
    """Reads a JSON array value by value through a buffer. A position moves through it: cutting each value off would copy the rest of a
    chunk for every row."""

    def __init__(self, path: Path, dataset: str, file: TextIO) -> None:
        self._path = path
        self._dataset = dataset
        self._file = file
        self._row = 1
        self._line, self._column = 1, 1  # where the buffer begins in the file
        self.buffer = ""
        self.position = 0

    def values(self) -> Iterator[Any]:
        """Errors: StageError(InvalidDataset) for what is no array, or for anything after it."""
        self._expect("[", "an array")
        if self._next() != "]":
            while True:
                yield self.value()
                self._row += 1
                if self._next() == "]":
                    break
                self._expect(",", "a comma or ] after an object")
        self.position += 1
        if self._next():
            raise self._broken("nothing after the array's ]; write one array, or one object on each line")

    def value(self) -> Any:
        """The value at the position; the buffer grows until it is whole."""
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
                # A number at the buffer's end may go on in the next chunk; an object may not.
                if end < len(self.buffer) or isinstance(value, dict):
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    self.position = error.pos
                    raise self._broken("an array of whole JSON objects") from error
            except (ValueError, RecursionError) as error:
                raise self._broken(_expected_by(error)) from error
            self._drop_read()
            if len(self.buffer) > _MAX_ROW_BYTES or not self._more(max(_CHUNK_CHARS, len(self.buffer))):
                raise self._broken("an array of whole JSON objects")

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - _CUT_SHORT_CHARS

    def _next(self) -> str:
        """The character at which white space ends; "" at the file's end."""
        while True:
            found = _BLANK.match(self.buffer, self.position)
            assert found is not None
            self.position = found.end()
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            self._drop_read()
            if not self._more(_CHUNK_CHARS):
                return ""

    def _expect(self, char: str, words: str) -> None:
        found = self._next()
        if not found and char == ",":
            raise self._broken("an array that ends with ]")
        if found != char:
            raise self._broken(words)
        self.position += 1

    def _drop_read(self) -> None:
        """Forgets what lies before the position."""
        self._line, self._column = self._place()
        self.buffer, self.position = self.buffer[self.position :], 0

    def _more(self, chars: int) -> bool:
        try:
            more = self._file.read(chars)
        except UnicodeDecodeError as error:
            raise self._broken("text in UTF-8") from error
        self.buffer += more
        return bool(more)

    def _place(self) -> tuple[int, int]:
        lines = self.buffer.count("\n", 0, self.position)
        if not lines:
            return self._line, self._column + self.position
        return self._line + lines, self.position - self.buffer.rindex("\n", 0, self.position)

    def _broken(self, expected: str) -> StageError:
        line, column = self._place()
        return invalid(Location(self._dataset, self._path.name, self._row), f"{expected} (broken at line {line}, column {column})")


def _read_parquet(path: Path, dataset: str) -> _Numbered:
    import pyarrow
    import pyarrow.parquet

    seen = 0
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        _refuse_repeated_columns(file.schema_arrow, Location(dataset, path.name, 1))
        total, size = max(1, file.metadata.num_rows), path.stat().st_size
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
            for record in _rows_of(batch, path, dataset, seen):
                seen += 1
                yield None, {name: _without_fillers(value) for name, value in record.items()}, size * seen // total
    except RecursionError as error:
        raise invalid(Location(dataset, path.name, seen + 1), _DEPTH_WORDS) from error
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the storage's: damage in the file has no number
        raise invalid(Location(dataset, path.name, seen + 1), "a whole Parquet file; write or fetch it again") from error


def _rows_of(batch: pyarrow.RecordBatch, path: Path, dataset: str, before: int) -> list[dict[str, Any]]:
    """Errors: StageError(InvalidDataset) for a value that is there and cannot be told in Python: text that is not UTF-8, a time beyond
    its calendar or of an unknown zone."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError, KeyError) as error:
        for column, values in zip(batch.schema, batch.columns, strict=True):
            index = _first_unreadable(values)
            if index is not None:
                location = Location(dataset, path.name, before + index + 1)
                raise invalid(location, f"a value of type {column.type} that can be read, in column {column.name!r}") from error
        raise
    return rows


def _first_unreadable(values: pyarrow.Array) -> int | None:
    for index, value in enumerate(values):
        try:
            value.as_py()
        except (ValueError, OverflowError, KeyError):
            return index
    return None


def _refuse_repeated_columns(fields: Iterable[pyarrow.Field], location: Location) -> None:
    """Errors: StageError(InvalidDataset) where two columns, or two members of a struct, have one name: one of them would be lost."""
    import pyarrow

    names = Counter(field.name for field in fields)
    repeated = sorted(name for name, number in names.items() if number > 1)
    if repeated:
        raise invalid(location, f"each column once, and {repeated[0]!r} is there {names[repeated[0]]} times; rename or drop all but one")
    for field in fields:
        inner = field.type
        while pyarrow.types.is_list(inner) or pyarrow.types.is_large_list(inner) or pyarrow.types.is_fixed_size_list(inner):
            inner = inner.value_type
        if pyarrow.types.is_struct(inner):
            _refuse_repeated_columns(list(inner), location)


def _batch_rows(metadata: pyarrow.parquet.FileMetaData) -> int:
    """So few rows that long ones do not fill the memory."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(_PARQUET_BATCH_ROWS, int(_PARQUET_BATCH_BYTES / max(1.0, longest))))


def _without_fillers(value: Any) -> Any:
    """A struct without null members: Parquet gives every struct of a column the members of all, null where a row had none."""
    if isinstance(value, dict):
        return {name: _without_fillers(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_fillers(member) for member in value]
    return value


_READERS = {".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet}
