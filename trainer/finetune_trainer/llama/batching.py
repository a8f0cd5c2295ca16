"""Token sequences that llama.cpp decodes together: what several begin with, a system prompt or a question, is decoded once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError

MAX_SEQUENCES = 128  # llama.cpp allows LLAMA_MAX_SEQ = 256
_GROUP_CELLS = 512
"""Cells that one decode takes beside what all its rows share: every token attends over all cells, so more rows at once cost more each."""


@dataclass
class Batch:
    """Tokens of one decode, in an order in which each comes after all those that it attends to."""

    tokens: list[int]
    positions: list[int]
    sequences: list[list[int]]
    outputs: list[bool]

    @classmethod
    def empty(cls) -> Batch:
        return cls([], [], [], [])

    def add(self, ids: Sequence[int], first: int, sequence: int) -> range:
        """Appends `ids` at positions `first` … to a sequence; their places in the batch."""
        before = len(self.tokens)
        self.tokens.extend(ids)
        self.positions.extend(range(first, first + len(ids)))
        self.sequences.extend([sequence] for _ in ids)
        self.outputs.extend(False for _ in ids)
        return range(before, len(self.tokens))

    def pieces(self, most_outputs: int) -> Iterator[Batch]:
        """The batch in its order, cut so that no piece asks for more outputs; none where nothing is asked."""
        start = wanted = 0
        for index, output in enumerate(self.outputs):
            if output and wanted == most_outputs:
                yield self._piece(start, index)
                start, wanted = index, 0
            wanted += output
        if wanted:
            yield self._piece(start, len(self.tokens))

    def _piece(self, start: int, stop: int) -> Batch:
        return Batch(self.tokens[start:stop], self.positions[start:stop], self.sequences[start:stop], self.outputs[start:stop])


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def overlay(rows: Sequence[Sequence[int]], *, shares_beginnings: bool = True) -> tuple[Batch, list[list[int]]]:
    """The rows as sequences 0, 1, … of one batch, and the place in it of each row's tokens; a beginning that is shared has one place."""
    batch = Batch.empty()
    places: list[list[int]] = [[] for _ in rows]
    before: Sequence[int] = ()
    shown: list[int] = []
    for sequence in sorted(range(len(rows)), key=lambda index: list(rows[index])):
        row = rows[sequence]
        shared = shared_length(before, row) if shares_beginnings else 0
        for place in shown[:shared]:
            batch.sequences[place].append(sequence)
        shown = places[sequence] = [*shown[:shared], *batch.add(row[shared:], shared, sequence)]
        before = row
    return batch, places


@dataclass(frozen=True)
class Request:
    """What one row needs of a decode. `start`: what all its sequences begin with; `cells` counts it once."""

    start: Sequence[int]
    cells: int
    outputs: int
    sequences: int = 1


def groups(requests: Sequence[Request], cells: int, outputs: int) -> Iterator[list[int]]:
    """Indices of neighbours that fit into one decode of a context of `cells`, with at most `outputs` rows of logits.

    Errors: StageError(RowTooLong) where one alone does not fit.
    """
    group: list[int] = []
    common = used = 0
    for index, request in enumerate(requests):
        if request.cells > cells:
            raise StageError(Reason.ROW_TOO_LONG, f"row {index} needs a context of {request.cells} tokens; it has {cells}")
        assert request.sequences <= MAX_SEQUENCES, "a choice has eight answers"
        shared = shared_length(requests[index - 1].start, request.start) if group else 0
        joined = [requests[member] for member in (*group, index)]
        total = used + request.cells - shared
        fits = (
            total <= cells
            and total - min(common, shared) <= _GROUP_CELLS
            and sum(member.sequences for member in joined) <= MAX_SEQUENCES
            and sum(member.outputs for member in joined) <= outputs
        )
        if group and not fits:
            yield group
            group = []
        if not group:
            common, used = len(request.start), request.cells
        else:
            common, used = min(common, shared), total
        group.append(index)
    if group:
        yield group
