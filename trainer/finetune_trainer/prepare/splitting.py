"""Which split a row belongs to: drawn by group, the same on every run, the same for a group in every data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from finetune_api.sections.data import Split

from finetune_trainer.prepare.hashes import HashSet, hash_of
from finetune_trainer.prepare.rows import Record, RowInvalid

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def group_key(record: Record, group_by: str | None, content: bytes) -> str:
    """The group of a row: its `groupBy` value, and its own content where there is none. Errors: RowInvalid for a value that names none."""
    if group_by is None or record.get(group_by) is None:
        return f"row:{content.hex()}"
    value: Any = record[group_by]
    if not isinstance(value, str | int | float | bool):
        raise RowInvalid(f"text or a number in the groupBy column {group_by!r}")
    return f"group:{value}"


def is_grouped(key: str) -> bool:
    """Whether a group's key comes from the groupBy column."""
    return key.startswith("group:")


def draw(group: str, split: Split) -> SplitName:
    """A group's split, by a hash of (seed, group): independent of order, of other groups and of the run."""
    share = int.from_bytes(hash_of(str(split.seed), group)[:8], "little") / 2**64
    if share < split.test:
        return "test"
    if share < split.test + split.validation:
        return "validation"
    return "train"


class Splitter:
    """Gives rows their split and watches that no group is in two.

    Groups of data sets that bring their own test rows are pinned to train first: all of their rows train, so none of those groups
    may be held out of another data set.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._pinned = HashSet()
        self._groups = {name: HashSet() for name in SPLITS}

    def pin(self, groups: Sequence[str]) -> list[SplitName]:
        """All to train, for good."""
        keys = [hash_of(group) for group in groups]
        self._pinned.add(keys)
        self._groups["train"].add(keys)
        return ["train" for _ in groups]

    def assign(self, groups: Sequence[str]) -> list[SplitName]:
        if not groups:
            return []
        keys = [hash_of(group) for group in groups]
        pinned = self._pinned.contains(keys)
        names: list[SplitName] = ["train" if held else draw(group, self._split) for group, held in zip(groups, pinned, strict=True)]
        for name in SPLITS:
            self._groups[name].add([key for key, given in zip(keys, names, strict=True) if given == name])
        return names

    def count(self, name: SplitName) -> int:
        """Groups in a split."""
        return len(self._groups[name])

    def leaked(self) -> int:
        """Groups found in more than one split."""
        train, validation, test = (self._groups[name] for name in SPLITS)
        return validation.common(train) + test.common(train) + test.common(validation)
