"""Checkpoints on storage: which one counts, and how one comes to count.

    <job>/checkpoints/
        claim.json                   names the process that may publish, and the folders of former ones that count
        step-<n>-<writer>/
            …                        what the trainer saved
            manifest.json            written last: step, claim, SHA-256 of every file. Without it the folder is a torso

A pod that comes back late finds another claim and publishes nothing; should it write between two looks, its manifest names a claim
that is no longer there, and nobody reads it. Imports no torch.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.answer import Answer, CheckpointReport
from finetune_api.outcome import Reason
from pydantic import ValidationError

from finetune_trainer.errors import StageError
from finetune_trainer.storage import (
    FileRecord,
    JobStorage,
    folder_digest,
    hash_folder,
    sync_directory,
    sync_file,
    verify_files,
    write_atomically,
)

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
CLAIM_FILE = "claim.json"
_FOLDER = re.compile(r"^step-(\d+)-.+$")


class CheckpointManifest(Answer):
    step: int
    writer: str
    claim: str
    inputs_digest: str
    time: str
    files: list[FileRecord]


class Claim(Answer):
    """Who publishes now. `inherited`: folders of former processes that counted when this one began."""

    id: str
    writer: str
    inherited: list[str] = []


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        return self.manifest.step


class CheckpointStore:
    """The checkpoints of one job's train stage. `inputs_digest` names what the training follows from: others are not resumed."""

    def __init__(self, storage: JobStorage, inputs_digest: str, keep: int) -> None:
        self.folder = storage.checkpoints
        self.skipped: list[str] = []
        """Sentences on folders that were passed over by `claim_newest`."""
        self.newest: Checkpoint | None = None
        """The newest one that counts, resumed from or published since."""
        self._storage = storage
        self._inputs_digest = inputs_digest
        self._keep = keep
        self._claim = Claim(id=uuid.uuid4().hex, writer=storage.writer)

    def claim_newest(self) -> Checkpoint | None:
        """Makes this process the one that publishes, and returns the newest checkpoint whose files verify."""
        counted = self._counted(self._read_claim())
        while counted and (problem := self._problem(counted[0])):
            self._skip(counted.pop(0).folder, problem)
        self._claim = self._claim.model_copy(update={"inherited": [checkpoint.folder.name for checkpoint in counted]})
        write_atomically(self.folder / CLAIM_FILE, self._claim.model_dump_json(by_alias=True).encode())
        self.newest = counted[0] if counted else None
        return self.newest

    def new_folder(self, step: int) -> Path:
        """An empty folder for a checkpoint; what an earlier process of the same pod left there is removed."""
        folder = self.folder / f"step-{step}-{self._storage.writer}"
        _remove(folder)
        folder.mkdir(parents=True)
        return folder

    def publish(self, step: int, folder: Path) -> Checkpoint:
        """Makes a written folder the newest checkpoint, then removes those beyond `keep`.

        Errors: StageError(Superseded) where another process has claimed the run; StageError(CorruptArtifact) where what was
        written does not read back: nothing older is removed then.
        """
        records = hash_folder(folder)
        for record in records:
            sync_file(folder / record.path)
        sync_directory(folder)
        self.check_claim()
        manifest = CheckpointManifest(
            step=step,
            writer=self._storage.writer,
            claim=self._claim.id,
            inputs_digest=self._inputs_digest,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            files=records,
        )
        write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(by_alias=True).encode())
        sync_directory(self.folder)
        self.newest = Checkpoint(folder, manifest)
        problem = verify_files(folder, records)
        if problem:
            raise StageError(Reason.CORRUPT_ARTIFACT, f"the checkpoint of step {step} does not read back: {problem}")
        self._retain()
        return self.newest

    def discard(self, folder: Path) -> None:
        """Removes what could not be written whole, which frees its space."""
        _remove(folder)

    def check_claim(self) -> None:
        """Errors: StageError(Superseded) where another process has claimed the run since."""
        claim = self._read_claim()
        if claim is None or claim.id != self._claim.id:
            raise StageError(Reason.SUPERSEDED, "another pod of this job has taken the run over; this one publishes nothing")

    def report(self) -> CheckpointReport | None:
        """The newest checkpoint as status shows it."""
        if self.newest is None:
            return None
        return CheckpointReport(
            step=self.newest.step,
            uri=self._storage.uri(self.newest.folder),
            digest=folder_digest(self.newest.manifest.files),
            time=self.newest.manifest.time,
        )

    def _read_claim(self) -> Claim | None:
        try:
            return Claim.model_validate_json((self.folder / CLAIM_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _counted(self, claim: Claim | None) -> list[Checkpoint]:
        """Checkpoints with a manifest that the claim lets count, newest first. Where the claim is unreadable, hashes must do."""
        checkpoints = []
        for folder in self._step_folders():
            try:
                manifest = CheckpointManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
            except FileNotFoundError:
                self._skip(folder, "its writer was stopped before it was whole")
                continue
            except ValidationError:
                self._skip(folder, "its manifest is damaged")
                continue
            if claim is not None and manifest.claim != claim.id and folder.name not in claim.inherited:
                self._skip(folder, "its writer had been replaced")
            else:
                checkpoints.append(Checkpoint(folder, manifest))
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step, reverse=True)

    def _problem(self, checkpoint: Checkpoint) -> str | None:
        if checkpoint.manifest.inputs_digest != self._inputs_digest:
            return "it belongs to other settings or data"
        return verify_files(checkpoint.folder, checkpoint.manifest.files)

    def _retain(self) -> None:
        own = {folder.name for folder in self._step_folders() if folder.name.endswith(f"-{self._storage.writer}")}
        counted = [folder for folder in self._step_folders() if folder.name in own or folder.name in self._claim.inherited]
        keep = sorted(counted, key=_step_of, reverse=True)[: self._keep]
        for folder in self._step_folders():
            if folder not in keep:
                _remove(folder)

    def _step_folders(self) -> list[Path]:
        if not self.folder.exists():
            return []
        return [path for path in sorted(self.folder.iterdir()) if _FOLDER.match(path.name) and path.is_dir() and not path.is_symlink()]

    def _skip(self, folder: Path, why: str) -> None:
        sentence = f"checkpoint {folder.name} was passed over: {why}"
        log.warning(sentence)
        self.skipped.append(sentence)


def _step_of(folder: Path) -> int:
    match = _FOLDER.match(folder.name)
    assert match is not None
    return int(match.group(1))


def _remove(folder: Path) -> None:
    """Removes a checkpoint; its manifest first, so that one half removed is a torso and not a damaged one."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
