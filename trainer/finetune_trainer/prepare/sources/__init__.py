"""Where models and data sets lie: one file for each scheme of a URI.

To add one: its class in `finetune_api.uri`, its file here, its line in `list_source`, which mypy asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, assert_never

from finetune_api.run import RunSpec
from finetune_api.uri import ClaimPath, HubRepository, LocalPath

from finetune_trainer.prepare.sources.asked import Asked
from finetune_trainer.prepare.sources.hf import list_repository
from finetune_trainer.prepare.sources.local import list_folder
from finetune_trainer.storage import JobStorage


class Listed(Protocol):
    """A source whose files are known and not fetched yet."""

    @property
    def files(self) -> list[str]:
        """Their paths within the source."""

    @property
    def linked_folders(self) -> list[str]:
        """Links within the source that lead to folders: what lies behind them is none of `files`."""

    @property
    def revision(self) -> str | None:
        """The commit that they are of; None where a source has none."""

    @property
    def is_one_file(self) -> bool:
        """Whether the source names a file and not a folder."""

    def fetch(self, names: Sequence[str]) -> Path:
        """A folder in this pod that holds `names`: the source's own, or one in the storage's cache."""


def list_source(asked: Asked, run: RunSpec, storage: JobStorage) -> Listed:
    """What lies there.

    Errors: StageError(ModelNotFound | ModelGated | ModelUnauthorized), `Dataset…` for a data set; StageError(HubUnreachable |
    ClaimNotMounted | UnsafePath).
    """
    match asked.location:
        case HubRepository(name):
            return list_repository(asked, name, storage)
        case ClaimPath() | LocalPath():
            return list_folder(asked, run)
        case _:
            assert_never(asked.location)
