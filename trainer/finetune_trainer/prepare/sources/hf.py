"""`hf://org/name`: a repository of the Hugging Face hub, pinned to a commit; its errors said so that a user can act."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune_api.outcome import Reason
from finetune_api.section import digest_of
from finetune_api.uri import HubRepository

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.sources.asked import REFUSALS, Asked
from finetune_trainer.storage import JobStorage


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: list[str]


class Hub:
    """One repository. `token` is never logged and goes into no message."""

    def __init__(self, repository: str, kind: Literal["model", "dataset"], token: str | None) -> None:
        self.repository = repository
        self.kind = kind
        self._token = token

    def list_files(self, revision: str | None) -> Listing:
        """Errors: StageError(ModelNotFound | ModelGated | ModelUnauthorized | HubUnreachable), `Dataset…` for a data set."""
        from huggingface_hub import HfApi

        api = HfApi(token=self._token or False)
        try:
            info = api.repo_info(self.repository, repo_type=self.kind, revision=revision, timeout=60)
        except Exception as error:
            raise self._explained(error, revision) from error
        files = sorted(sibling.rfilename for sibling in getattr(info, "siblings", None) or [])
        return Listing(str(info.sha), files)

    def download(self, commit: str, files: list[str], target: Path) -> None:
        """Fetches `files` into `target`, all of them. Errors: as `list_files`."""
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(
                self.repository,
                repo_type=self.kind,
                revision=commit,
                local_dir=target,
                allow_patterns=[_literal(name) for name in files],
                token=self._token or False,
            )
            shutil.rmtree(target / ".cache", ignore_errors=True)
            missing = [name for name in files if not (target / name).is_file()]
            if missing:
                raise FileNotFoundError(missing[0])
        except StageError:  # SIGTERM came meanwhile
            raise
        except Exception as error:
            raise self._explained(error, commit) from error

    def _explained(self, error: Exception, revision: str | None) -> StageError:
        from huggingface_hub import errors

        refusals = REFUSALS[self.kind]
        name = str(HubRepository(self.repository))
        if isinstance(error, errors.GatedRepoError):
            return StageError(
                refusals.gated, f"{name} is gated; accept its licence on the hub and name a token that may read it (tokenSecretRef)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return StageError(refusals.not_found, f"{name} has no revision {revision}; name a commit, tag or branch of it")
        if isinstance(error, errors.RepositoryNotFoundError):
            return StageError(refusals.not_found, f"{name} does not exist, or is private: check the name, or set tokenSecretRef")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return StageError(refusals.unauthorized, f"the hub refuses the token for {name}; name one that may read it (tokenSecretRef)")
        if isinstance(error, errors.HFValidationError):
            return StageError(refusals.not_found, f"{name} is no name of a repository; expected hf://org/name")
        if isinstance(error, OSError) and getattr(error, "errno", None):
            return StageError(Reason.STORAGE_ERROR, f"{name} cannot be stored: {error.strerror}")
        return StageError(
            Reason.HUB_UNREACHABLE,
            f"the hub does not answer for {name} ({type(error).__name__}); where that stays, let the prepare pod reach it, or use a pvc:// source",
        )


@dataclass(frozen=True)
class Repository:
    """A repository at one commit; what is fetched of it lies in the storage's cache."""

    hub: Hub
    asked: Asked
    storage: JobStorage
    files: list[str]
    revision: str
    is_one_file: bool = False
    linked_folders: list[str] = field(default_factory=list)

    def fetch(self, names: Sequence[str]) -> Path:
        """Errors: see `Hub.download`."""
        of_model = self.asked.kind == "model"  # all that is recorded of it; of a data set, what its splits need
        key = [self.asked.source, self.revision, *([] if of_model else [sorted(names)])]
        kind = "models" if of_model else "datasets"
        return self.storage.cached(kind, digest_of(key), lambda aside: self.hub.download(self.revision, list(names), aside))


def list_repository(asked: Asked, name: str, storage: JobStorage) -> Repository:
    """Errors: see `Hub.list_files`."""
    hub = Hub(name, asked.kind, os.environ.get(asked.token_variable))
    listing = hub.list_files(asked.revision)
    return Repository(hub, asked, storage, listing.files, listing.commit)


def _literal(name: str) -> str:
    """A file name as a pattern that matches itself alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
