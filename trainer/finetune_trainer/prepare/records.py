"""The records of a data set's files, read as a stream: memory does not grow with the data."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from finetune_api.outcome import Reason
from finetune_api.section import digest_of

from finetune_trainer.errors import StageError
from finetune_trainer.storage import hash_file

SUFFIXES = (".jsonl", ".json", ".parquet")
_MAX_ROW_BYTES = 64 << 20
_CHUNK_CHARS = 1 << 20
_PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True)
class Location:
    """Where a row came from, in words that quote nothing of it."""

    dataset: str
    file: str
    row: int
    """Counted from 1 over the files of one split."""
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line is not None else f"row {self.row}"
        return f"data set {self.dataset}, file {self.file}, {place}"


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
            for line, record, position in _READERS[path.suffix](path, self.dataset):
                row += 1
                location = Location(self.dataset, path.name, row, line)
                if not isinstance(record, dict):
                    raise invalid(location, "a JSON object")
                yield Located(location, record, read_before + position)
            read_before += path.stat().st_size

    def digest(self) -> str:
        """SHA-256 over the files' contents, whatever they are called."""
        return digest_of([hash_file(path) for path in self.files])


def invalid(location: Location, expected: str) -> StageError:
    return StageError(Reason.INVALID_DATASET, f"{location}: expected {expected}")


_Numbered = Iterator[tuple[int | None, Any, int]]


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
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise invalid(location, "text in UTF-8") from error
    except (ValueError, RecursionError) as error:
        column = f" (broken at column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise invalid(location, f"one whole JSON object on the line{column}") from error


def _read_json(path: Path, dataset: str) -> _Numbered:
    """An array of objects, parsed one by one; a file of JSON lines under this name is read as such."""
    with path.open("rb") as head:
        start = head.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(path, dataset)
        return
    decoder = json.JSONDecoder()
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig")
        buffer, position = _more(file, _CHUNK_CHARS, Location(dataset, path.name, 1)).lstrip()[1:], 0
        for row in range(1, 1 << 62):
            location = Location(dataset, path.name, row)
            buffer, position = _skip_separator(buffer, position, file, location)
            if buffer[position] == "]":
                return
            value, buffer, position = _next_value(decoder, buffer, position, file, location)
            yield None, value, raw.tell()


def _more(file: TextIO, chars: int, location: Location) -> str:
    try:
        return file.read(chars)
    except UnicodeDecodeError as error:
        raise invalid(location, "text in UTF-8") from error


_SEPARATOR = re.compile(r"[ \t\r\n,]*")
# Below, a position moves through the buffer: cutting each value off would copy the rest of a chunk for every row.


def _skip_separator(buffer: str, position: int, file: TextIO, location: Location) -> tuple[str, int]:
    """The buffer and the position in it after white space and the comma between two objects."""
    while True:
        found = _SEPARATOR.match(buffer, position)
        assert found is not None
        if found.end() < len(buffer):
            return buffer, found.end()
        buffer, position = _more(file, _CHUNK_CHARS, location), 0
        if not buffer:
            raise invalid(location, "an array that ends with ]")


def _next_value(decoder: json.JSONDecoder, buffer: str, position: int, file: TextIO, location: Location) -> tuple[Any, str, int]:
    """The value at a position of `buffer`, which grows until the value is whole; the buffer and the position after it."""
    while True:
        try:
            value, end = decoder.raw_decode(buffer, position)
            # A number at the buffer's end may go on in the next chunk; an object may not.
            if end < len(buffer) or isinstance(value, dict):
                return value, buffer, end
        except RecursionError as error:
            raise invalid(location, "an object that is not nested so deep") from error
        except ValueError:
            pass
        buffer, position = buffer[position:], 0
        more = _more(file, max(_CHUNK_CHARS, len(buffer)), location)
        if not more or len(buffer) > _MAX_ROW_BYTES:
            raise invalid(location, "an array of whole JSON objects")
        buffer += more


def _read_parquet(path: Path, dataset: str) -> _Numbered:
    import pyarrow
    import pyarrow.parquet

    location = Location(dataset, path.name, 1)
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        total, seen, size = max(1, file.metadata.num_rows), 0, path.stat().st_size
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            for record in batch.to_pylist():
                seen += 1
                yield None, record, size * seen // total
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise invalid(location, "a whole Parquet file") from error


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
