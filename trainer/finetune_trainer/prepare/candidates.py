"""Rows that were understood and may yet be dropped, and what drops them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetune_api.sections.data import Dataset

from finetune_trainer.prepare.records import Location, SplitFiles
from finetune_trainer.prepare.rows import Example, RowReader


@dataclass(frozen=True)
class Part:
    """A split of a data set, read from its first row to its last. `is_test`: the data set brought it along for testing."""

    dataset: Dataset
    files: SplitFiles
    reader: RowReader
    is_test: bool


@dataclass(frozen=True)
class Candidate:
    """A row that was understood. `content`: 128 bits that name what it says."""

    location: Location
    example: Example
    content: bytes
    group: str


class Step(Protocol):
    """Made once for a run, from `spec.preparation`; remembers what it must of the rows it has seen."""

    def dropped(self, part: Part, candidates: list[Candidate]) -> list[str]:
        """For each of a batch of neighbours the reason for which it is dropped; "" where it stays."""
