"""Which files of a source are a data set's: those of the split it trains on, and of the one it brings for testing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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
    warnings: list[str] = field(default_factory=list)
    """Files that belong to a split by their names and are not read."""


def locate(dataset: Dataset, run: RunSpec, storage: JobStorage) -> DatasetFiles:
    """The files of a data set, fetched where its source is elsewhere.

    Errors: StageError(DatasetNotFound | InvalidDataset | DatasetGated | HubUnreachable).
    """
    listed = list_source(asked_dataset(dataset), run, storage)
    if listed.is_one_file:
        return _single_file(dataset, listed)
    train = _names(dataset, dataset.split, listed)
    test = _names(dataset, dataset.test_split, listed) if dataset.test_split else []
    unread = {split: _unread(listed.files, split, [*train, *test]) for split in (dataset.split, dataset.test_split) if split}
    folder = listed.fetch([*train, *test])
    return DatasetFiles(
        _split_files(dataset, dataset.split, folder, train),
        _split_files(dataset, dataset.test_split, folder, test) if dataset.test_split else None,
        listed.revision,
        [_unread_words(dataset, split, names) for split, names in unread.items() if names],
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
    """Errors: StageError(DatasetNotFound) where files of the split are not there, or lie behind a link that is not followed."""
    found = find_split(listed.files, split)
    if link := next((name for name in sorted(listed.linked_folders) if _belongs(name, split) or (name == "data" and not found)), None):
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"data set {dataset.name}: {link} is a link to a folder, which is not followed; put the folder itself in its place",
        )
    if not found:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"data set {dataset.name}: {dataset.source} has no jsonl, json or parquet file for split {split} (such as {split}.jsonl); "
            + _advice(listed.files, split),
        )
    if missing := _missing_shards(found):
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"data set {dataset.name}: {dataset.source} lacks {_some(missing)}, which the names of the other files of split {split} count "
            "with them; fetch it, or give files that are whole by themselves names without -of-",
        )
    return found


_SHARD = re.compile(r"(?P<before>.*-)(?P<index>\d{1,9})(?P<total>-of-(?P<count>\d{1,9}))(?:-[0-9a-f]+)?(?P<suffix>\.[a-z]+)")
_MOST_SHARDS = 100_000


def _missing_shards(names: list[str]) -> list[str]:
    """Files that `…-00000-of-00003` and the like speak of and that are not among `names`; numbers begin at 0 or at 1."""
    missing = []
    shards = [found for name in names if (found := _SHARD.fullmatch(name))]
    for before, total in sorted({(found["before"], found["total"]) for found in shards}):
        ours = [found for found in shards if (found["before"], found["total"]) == (before, total)]
        numbers, count = {int(found["index"]) for found in ours}, min(int(ours[0]["count"]), _MOST_SHARDS)
        first = 1 if count in numbers and 0 not in numbers else 0
        width = len(ours[0]["index"])
        lacking = sorted(set(range(first, first + count)) - numbers)
        missing += [f"{before}{number:0{width}}{total}{ours[0]['suffix']}" for number in lacking]
    return missing


def _unread(names: list[str], split: str, read: list[str]) -> list[str]:
    """Files that lie where the split's do, or are called as they are, and are not read."""
    return sorted(name for name in set(names) - set(read) if _belongs(name, split) and not _is_about(name))


def _unread_words(dataset: Dataset, split: str, names: list[str]) -> str:
    return (
        f"data set {dataset.name}: files of split {split} that are not read: {_some(names)}; rows that are in no other file must be "
        f"written in the form of those that are read (the first of {', '.join(SUFFIXES)} that is there) and lie at most one folder deep"
    )


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
    splits = sorted({found[1] for name in readable if (found := _SPLIT_OF.fullmatch(name)) and name in find_split(names, found[1])})
    if len(splits) == 1:
        return f"it has {_some(readable)}; set split: {splits[0]}"
    several = f"put those that belong together into a folder {split}" + (f", or set split to one of {_some(splits)}" if splits else "")
    return f"it has {_some(readable)}; " + (several if len(readable) > 1 else f"name the file {split}.jsonl, or its folder {split}")


_SPLIT_OF = re.compile(r"(?:data/)?([A-Za-z0-9][-A-Za-z0-9_.]*?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?|/[^/]+)?\.(?:jsonl|json|parquet)")


def _belongs(name: str, split: str) -> bool:
    """Whether a path is of the split by its name, whatever its kind is and however deep it lies."""
    top, _, rest = name.removeprefix("data/").partition("/")
    if rest:
        return top == split
    return re.fullmatch(rf"{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?)?(\.[A-Za-z0-9]+)*", top) is not None


def _of_split(names: list[str], split: str) -> str | None:
    """A file that would hold the split if it were of a kind that is read."""
    return next((name for name in sorted(names) if find_split([re.sub(r"(\.[A-Za-z0-9]+)+$", ".jsonl", name)], split)), None)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no files") + more


def _split_files(dataset: Dataset, split: str, folder: Path, names: list[str]) -> SplitFiles:
    return SplitFiles(dataset.name, split, [folder / name for name in names])


def _is_about(name: str) -> bool:
    """Whether a file says something about a data set and holds none of its rows: what `datasets`, Spark and people write beside them."""
    last = name.rpartition("/")[2]
    if last in ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"):
        return True
    return last.startswith((".", "_", "README", "LICENSE")) or last.endswith(".md")


def find_split(names: list[str], split: str) -> list[str]:
    """The files among `names` (paths in a folder) that hold a split, sorted: `<split>.<suffix>`, `<split>-00000-of-00002.<suffix>`,
    `<split>/…`, each also below `data/`. Where several formats hold it, the first of jsonl, json, parquet counts."""
    pattern = re.compile(rf"^(data/)?{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?|/[^/]+)?$")
    for suffix in SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix) and pattern.match(name.removesuffix(suffix)) and not _is_about(name))
        if found:
            return found
    return []
