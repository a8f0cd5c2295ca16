"""Prepared rows to storage: Arrow IPC files that later stages map into memory, and held-out rows as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from finetune_trainer.data.encoding import TokenRow
from finetune_trainer.data.prepared import HeldOutRow, PreparedSet

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
        self._buffer: list[TokenRow] = []
        self._writer: Any = pa.ipc.new_file(str(folder / self.arrow), SCHEMA)
        self._lines = (folder / self.held_out).open("w", encoding="utf-8") if self.held_out else None

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, row: TokenRow, repeat: int = 1) -> None:
        for _ in range(repeat):
            self._buffer.append(row)
            if len(self._buffer) >= _ROWS_PER_BATCH:
                self._flush()
        self.rows += repeat
        self.tokens += repeat * len(row.ids)

    def add_held_out(self, row: HeldOutRow) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(row.wire(), ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n")

    def _flush(self) -> None:
        if self._buffer:
            columns = [
                pa.array([row.ids for row in self._buffer], SCHEMA.field(0).type),
                pa.array([row.labels for row in self._buffer], SCHEMA.field(1).type),
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            self._buffer = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        if self._lines is not None:
            self._lines.close()

    def described(self) -> PreparedSet:
        return PreparedSet(name=self.name, arrow=self.arrow, rows=self.rows, tokens=self.tokens, held_out=self.held_out)
