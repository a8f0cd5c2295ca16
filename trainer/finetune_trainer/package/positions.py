"""Answer positions of held-out rows, at which parity is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_trainer.prepared import IGNORED_LABEL, Prepared

WANTED_POSITIONS = 500
_MOST_PER_ROW = 256  # one long row must not be the whole evidence
_MOST_TOKENS = 4096  # a row's context; what lies beyond is not asked


@dataclass(frozen=True)
class AnswerRow:
    """Token ids of a row, and the positions whose next token is part of an answer."""

    ids: list[int]
    positions: list[int]


def answer_rows(prepared: Prepared, wanted: int = WANTED_POSITIONS) -> list[AnswerRow]:
    """Rows of the test sets, then of validation, then of train, until they hold `wanted` answer positions or none are left."""
    names = [entry.name for entry in prepared.file.sets]
    order = sorted(names, key=lambda name: ("train", "validation").index(name) if name in ("train", "validation") else 2, reverse=True)
    rows: list[AnswerRow] = []
    found = 0
    for name in order:
        table = prepared.table(name)
        for ids, labels in zip(table.column("input_ids"), table.column("labels"), strict=True):
            if found >= wanted:
                return rows
            row = _answer_row(ids.as_py(), labels.as_py())
            if row.positions:
                rows.append(row)
                found += len(row.positions)
    return rows


def _answer_row(ids: list[int], labels: list[int]) -> AnswerRow:
    trained = np.flatnonzero(np.asarray(labels[1:_MOST_TOKENS]) != IGNORED_LABEL)[:_MOST_PER_ROW]
    positions = [int(position) for position in trained]
    return AnswerRow(ids[: positions[-1] + 1] if positions else [], positions)
