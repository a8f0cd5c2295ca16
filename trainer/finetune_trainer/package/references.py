"""What was trained, in figures: logits of the tuned model and of the base at answer positions, kept on disk while exports are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_trainer.package.parity import Distance, distance
from finetune_trainer.package.positions import AnswerRow
from finetune_trainer.package.rounding import Rounding
from finetune_trainer.quiet import quiet_libraries

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredLogits:
    """Logits of all rows in one file on disk: (positions of all rows, `columns` of the vocabulary) in float32."""

    path: Path
    counts: list[int]
    columns: int

    @classmethod
    def keep(cls, logits: Iterable[Logits], rows: list[AnswerRow], path: Path) -> StoredLogits:
        """Written, not mapped: a full disk is then an OSError, where a mapped page ends the process without a word."""
        columns = 0
        with path.open("wb") as file:
            for found in logits:
                columns = found.shape[1]
                file.write(np.ascontiguousarray(found, np.float32).data)
        return cls(path, [len(row.positions) for row in rows], columns)

    def rows(self) -> Iterator[Logits]:
        stored = np.memmap(self.path, np.float32, "r", shape=(sum(self.counts), self.columns))
        first = 0
        for count in self.counts:
            yield stored[first : first + count]
            first += count


@dataclass(frozen=True)
class Model:
    """A model as training knows it: its folder, and the adapter on it; None where all weights were trained."""

    folder: Path
    adapter: Path | None


@dataclass(frozen=True)
class References:
    """The trained model and the base, both unquantized and computed in float32. `tune`: the one against the other."""

    trained: Model
    rows: list[AnswerRow]
    tuned: StoredLogits
    base: StoredLogits
    tune: Distance

    @property
    def asked(self) -> list[tuple[list[int], list[int]]]:
        """Ids and positions of each row, as `GGUFModel.logits` takes them."""
        return [(row.ids, row.positions) for row in self.rows]

    @property
    def context(self) -> int:
        return max(1024, *(len(row.ids) for row in self.rows))

    def rows_with(self, positions: int) -> int:
        """How many of the first rows hold at least so many positions; all, where there are fewer."""
        held = accumulate(len(row.positions) for row in self.rows)
        return next((count for count, sum_so_far in enumerate(held, 1) if sum_so_far >= positions), len(self.rows))

    def of_rounded(self, rounding: Rounding) -> tuple[Distance, float]:
        """The tuned model against itself with each weight rounded and nothing else; and its largest activation."""
        from finetune_trainer.package.reference import Peak, rounded_logits

        peak = Peak()
        logits = rounded_logits(self.trained.folder, self.trained.adapter, self.rows, rounding, peak)
        return distance(self.tuned.rows(), logits), peak.value

    def of_folder(self, folder: Path) -> Distance:
        """The tuned model against the one in a folder, loaded by transformers."""
        from finetune_trainer.package.reference import model_logits

        return distance(self.tuned.rows(), model_logits(folder, self.rows))


def measure_references(trained: Model, base: Path, rows: list[AnswerRow], work: Path, report: Callable[[float], None]) -> References:
    """Runs the trained model and the base over the rows; their logits are kept in `work`."""
    quiet_libraries()
    from finetune_trainer.package import reference

    tuned = StoredLogits.keep(reference.tuned_logits(trained.folder, trained.adapter, rows), rows, work / "tuned.logits")
    report(0.5)
    untuned = StoredLogits.keep(reference.model_logits(base, rows), rows, work / "base.logits")
    report(1.0)
    return References(trained, rows, tuned, untuned, distance(tuned.rows(), untuned.rows()))
