"""Which files of a source are a data set's: those of the split it trains on, and of the one it brings for testing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.data import Dataset

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.records import COMPRESSED, SUFFIXES, SplitFiles
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
    if path.suffix in COMPRESSED:
        raise StageError(
            Reason.INVALID_DATASET,
            f"data set {dataset.name}: {path.name} is compressed ({COMPRESSED[path.suffix]}), which is not read; unpack it",
        )
    if path.suffix not in SUFFIXES:
        raise StageError(
            Reason.INVALID_DATASET,
            f"data set {dataset.name}: expected a file that ends in one of {', '.join(SUFFIXES)}; {dataset.source} does not",
        )
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
            + _advice(listed.files, split),
        )
    return found


def _advice(names: list[str], split: str) -> str:
    """What there is instead, and how to have it read."""
    if any(name.endswith(".arrow") for name in names):
        return (
            "its .arrow files were written by datasets' save_to_disk, which is not read: write Parquet instead, "
            f"datasets.load_from_disk(…)[{split!r}].to_parquet('{split}.parquet')"
        )
    if same := _of_split(names, split):
        packed = next((name for suffix, name in COMPRESSED.items() if same.endswith(suffix)), None)
        return f"{same} is " + (f"compressed ({packed}): unpack it" if packed else "of another kind: write it as one of these")
    readable = sorted(name for name in names if name.endswith(SUFFIXES))
    if not readable:
        return f"it has {_some(sorted(names))}; check source, split and testSplit"
    named = next((found[1] for name in readable if (found := _SPLIT_OF.fullmatch(name)) and name in find_split(names, found[1])), None)
    return f"it has {_some(readable)}; " + (f"set split: {named}" if named else f"name the file {split}.jsonl, or its folder {split}")


_SPLIT_OF = re.compile(r"(?:data/)?([A-Za-z0-9][-A-Za-z0-9_.]*?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?|/[^/]+)?\.(?:jsonl|json|parquet)")


def _of_split(names: list[str], split: str) -> str | None:
    """A file that would hold the split if it were of a kind that is read."""
    return next((name for name in sorted(names) if find_split([re.sub(r"(\.[A-Za-z0-9]+)+$", ".jsonl", name)], split)), None)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no files") + more


def _split_files(dataset: Dataset, split: str, folder: Path, names: list[str]) -> SplitFiles:
    return SplitFiles(dataset.name, split, [folder / name for name in names])


def _is_about(name: str) -> bool:
    """Whether a file says something about a data set and holds none of its rows: what `datasets` writes beside them."""
    return name.rpartition("/")[2] in ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")


def find_split(names: list[str], split: str) -> list[str]:
    """The files among `names` (paths in a folder) that hold a split, sorted: `<split>.<suffix>`, `<split>-00000-of-00002.<suffix>`,
    `<split>/…`, each also below `data/`. Where several formats hold it, the first of jsonl, json, parquet counts."""
    pattern = re.compile(rf"^(data/)?{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?|/[^/]+)?$")
    for suffix in SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix) and pattern.match(name.removesuffix(suffix)) and not _is_about(name))
        if found:
            return found
    return []
