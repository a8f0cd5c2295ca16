"""`pvc://claim/path`, `file://` and plain paths: what a pod or a laptop has mounted. Nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.records import SUFFIXES
from finetune_trainer.prepare.sources.asked import REFUSALS, Asked
from finetune_trainer.storage import local_path


@dataclass(frozen=True)
class Folder:
    """A folder and its files, or the folder of the one file that the source names."""

    path: Path
    files: list[str]
    is_one_file: bool
    revision: None = None

    def fetch(self, names: Sequence[str]) -> Path:
        return self.path


def list_folder(asked: Asked, run: RunSpec) -> Folder:
    """A model's own files, or the data files of a whole tree. Errors: see `list_source`."""
    try:
        path = local_path(asked.source, run)
    except StageError as error:
        if error.reason is not Reason.SOURCE_NOT_FOUND:
            raise
        raise StageError(REFUSALS[asked.kind].not_found, f"{asked.name}: nothing is at {asked.source}; check the path") from error
    if not path.is_dir():
        return Folder(path.parent, [path.name], is_one_file=True)
    if asked.kind == "model":
        return Folder(path, [found.name for found in path.iterdir()], is_one_file=False)
    names = [found.relative_to(path).as_posix() for suffix in SUFFIXES for found in path.rglob(f"*{suffix}")]
    return Folder(path, names, is_one_file=False)
