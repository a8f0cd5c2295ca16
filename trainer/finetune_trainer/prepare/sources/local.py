"""`pvc://claim/path`, `file://` and plain paths: what a pod or a laptop has mounted. Nothing is copied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.uri import ClaimPath

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.sources.asked import REFUSALS, Asked
from finetune_trainer.storage import local_path


@dataclass(frozen=True)
class Folder:
    """A folder and its files, or the folder of the one file that the source names. `claim`: where the claim that it lies on is mounted."""

    asked: Asked
    path: Path
    files: list[str]
    is_one_file: bool
    claim: Path | None
    linked_folders: list[str] = field(default_factory=list)
    revision: None = None

    def fetch(self, names: Sequence[str]) -> Path:
        """Errors: StageError(UnsafePath) for a link out of the claim; `…NotFound` for one that leads nowhere."""
        for name in names:
            found = self.path / name
            if self.claim is not None and not found.resolve().is_relative_to(self.claim.resolve()):
                raise StageError(
                    Reason.UNSAFE_PATH,
                    f"{self.asked.name}: {name} is a link that leads out of its claim; put the file itself in its place",
                )
            if not found.exists():
                raise StageError(
                    REFUSALS[self.asked.kind].not_found,
                    f"{self.asked.name}: {name} is a link to a file that is not there; put the file itself in its place",
                )
        return self.path


def list_folder(asked: Asked, run: RunSpec) -> Folder:
    """A model's own files, or those of a data set's whole tree. Errors: see `list_source`."""
    try:
        path = local_path(asked.source, run)
    except StageError as error:
        if error.reason is not Reason.SOURCE_NOT_FOUND:
            raise
        raise StageError(REFUSALS[asked.kind].not_found, f"{asked.name}: nothing is at {asked.source}; check the path") from error
    claim = Path(run.claims[asked.location.claim]) if isinstance(asked.location, ClaimPath) else None
    if not path.is_dir():
        return Folder(asked, path.parent, [path.name], is_one_file=True, claim=claim)
    names, links = [], []
    for found in path.iterdir() if asked.kind == "model" else _tree(path):
        if found.is_file() or (found.is_symlink() and not found.is_dir()):
            names.append(found.relative_to(path).as_posix())
        elif found.is_symlink():
            links.append(found.relative_to(path).as_posix())
    return Folder(asked, path, names, is_one_file=False, claim=claim, linked_folders=links)


def _tree(path: Path) -> Iterator[Path]:
    """Everything below a folder, links not followed. Errors: OSError for a folder that cannot be listed: `rglob` would pass it over."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(path, onerror=stop):
        yield from (Path(folder, name) for name in (*folders, *files))
