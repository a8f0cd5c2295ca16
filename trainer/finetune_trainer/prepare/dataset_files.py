"""Which files of a source are a data set's: those of the split it trains on, and of the one it brings for testing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.data import Dataset

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.records import SUFFIXES, SplitFiles
from finetune_trainer.prepare.sources import Listed, list_source
from finetune_trainer.prepare.sources.asked import asked_dataset
from finetune_trainer.storage import JobStorage


@dataclass(frozen=True)
class DatasetFiles:
    train: SplitFiles
    test: SplitFiles | None
    revision: str | None = None


def locate(dataset: Dataset, run: RunSpec, storage: JobStorage) -> DatasetFiles:
    """The files of a data set, fetched where its source is elsewhere.

    Errors: StageError(DatasetNotFound | InvalidDataset | DatasetGated | HubUnreachable).
    """
    listed = list_source(asked_dataset(dataset), run, storage)
    if listed.is_one_file:
        return _single_file(dataset, listed)
    train = _names(dataset, dataset.split, listed)
    test = _names(dataset, dataset.test_split, listed) if dataset.test_split else []
    folder = listed.fetch([*train, *test])
    return DatasetFiles(
        _split_files(dataset, dataset.split, folder, train),
        _split_files(dataset, dataset.test_split, folder, test) if dataset.test_split else None,
        listed.revision,
    )


def _single_file(dataset: Dataset, listed: Listed) -> DatasetFiles:
    path = listed.fetch(listed.files) / listed.files[0]
    if path.suffix not in SUFFIXES:
        raise StageError(Reason.INVALID_DATASET, f"data set {dataset.name}: expected a file that ends in one of {', '.join(SUFFIXES)}")
    if dataset.test_split is not None:
        raise StageError(
            Reason.INVALID_DATASET,
            f"data set {dataset.name}: testSplit needs a folder as source, with a file for each split; {dataset.source} is one file",
        )
    return DatasetFiles(SplitFiles(dataset.name, dataset.split, [path]), None)


def _names(dataset: Dataset, split: str, listed: Listed) -> list[str]:
    found = find_split(listed.files, split)
    if not found:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"data set {dataset.name}: {dataset.source} has no jsonl, json or parquet file for split {split} (such as {split}.jsonl); "
            "check split and testSplit",
        )
    return found


def _split_files(dataset: Dataset, split: str, folder: Path, names: list[str]) -> SplitFiles:
    return SplitFiles(dataset.name, split, [folder / name for name in names])


def find_split(names: list[str], split: str) -> list[str]:
    """The files among `names` (paths in a folder) that hold a split, sorted: `<split>.<suffix>`, `<split>-00000-of-00002.<suffix>`,
    `<split>/…`, each also below `data/`. Where several formats hold it, the first of jsonl, json, parquet counts."""
    pattern = re.compile(rf"^(data/)?{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?|/[^/]+)?$")
    for suffix in SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix) and pattern.match(name.removesuffix(suffix)))
        if found:
            return found
    return []
