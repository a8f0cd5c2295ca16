"""Prepared rows to storage: Arrow IPC files that later stages map into memory, and held-out rows as JSON lines."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
from finetune_api.sections.evaluation import ANSWER_CHOICES

from finetune_trainer.prepare.encoding import TokenRow
from finetune_trainer.prepared import HeldOutRow, PreparedSet

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_ROWS_PER_BATCH = 1024


class SetWriter:
    """Writes one set as it comes. Rows are buffered by the thousand, so memory does not grow and the bytes do not depend on timing."""

    def __init__(self, folder: Path, name: str, held_out: bool) -> None:
        stem = name.replace("/", ".")
        self.name = name
        self.arrow = f"{stem}.arrow"
        self.held_out = f"{stem}.jsonl" if held_out else None
        self.rows = 0
        self.tokens = 0
        self.questions = 0
        self._answers: set[tuple[int, ...]] = set()
        self._buffer: list[tuple[list[int], list[int]]] = []
        self._writer: Any = pa.ipc.new_file(str(folder / self.arrow), SCHEMA)
        self._lines = (folder / self.held_out).open("w", encoding="utf-8") if self.held_out else None

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, row: TokenRow, repeat: int = 1) -> None:
        for _ in range(repeat):
            self._buffer.append((row.ids, row.labels))
            if len(self._buffer) >= _ROWS_PER_BATCH:
                self._flush()
        self.rows += repeat
        self.tokens += repeat * len(row.ids)

    def add_held_out(self, row: HeldOutRow) -> None:
        assert self._lines is not None
        if row.kind != "Text":
            self.questions += 1
            if len(self._answers) < ANSWER_CHOICES:
                self._answers.add(tuple(row.answer_ids))
        # Not sorted: templates print the members of tools and arguments in the data's order.
        self._lines.write(json.dumps(_plain(row), ensure_ascii=False, separators=(",", ":"), default=str) + "\n")

    @property
    def different_answers(self) -> int:
        """Different answers among the held-out rows; counted up to `ANSWER_CHOICES`."""
        return len(self._answers)

    def _flush(self) -> None:
        if self._buffer:
            columns = [_lists([ids for ids, _ in self._buffer]), _lists([labels for _, labels in self._buffer])]
            self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            self._buffer = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        if self._lines is not None:
            self._lines.close()

    def described(self) -> PreparedSet:
        return PreparedSet(name=self.name, arrow=self.arrow, rows=self.rows, tokens=self.tokens, held_out=self.held_out)


def _lists(rows: list[list[int]]) -> pa.ListArray:
    """Rows as a list array, made of buffers: `pyarrow.array` would import pandas, which takes a second."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(_int32(offsets), _int32(values))


def _int32(values: npt.NDArray[np.int32]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def _plain(row: HeldOutRow) -> dict[str, Any]:
    """The row as JSON data. pydantic's own way there ends at 255 levels, and what a row holds may nest as deep by itself."""
    try:
        return row.wire()
    except ValueError:
        return row.model_dump(by_alias=True, exclude_none=True)
