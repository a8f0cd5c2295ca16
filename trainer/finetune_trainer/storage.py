"""Where a job's files lie, and how a stage publishes: aside, hashed, the manifest last.

    <root>/<prefix>/
        prepare/ train/ package/ evaluate/
            manifest.json            exists only once the stage has finished; names the folder that counts
            <writer>/…               one folder per pod start; a writer that comes back late publishes nothing
    <root>/cache/…                   shared by the jobs on one storage, content-addressed (base models, base GGUFs)

See docs/decisions/0003-storage-layout-and-atomic-publish.md.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_api.answer import Answer, StageResult
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage, StorageLocation
from finetune_api.section import digest_of
from finetune_api.uri import ClaimPath, HubRepository, LocalPath, Location, parse
from pydantic import ValidationError

from finetune_trainer.errors import StageError

_RECORD_FILE = "record.json"


class FileRecord(Answer):
    path: str
    sha256: str
    bytes: int


class Manifest(Answer):
    """What a finished stage left behind. `directory` is relative to the stage's folder, file paths are relative to `directory`."""

    stage: Stage
    inputs_digest: str
    directory: str
    files: list[FileRecord]
    result: StageResult

    @property
    def digest(self) -> str:
        """SHA-256 of the contents: paths and hashes, whoever wrote them and wherever they lie."""
        return digest_of([[file.path, file.sha256] for file in sorted(self.files, key=lambda file: file.path)])


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in chunks of 1 MiB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> list[FileRecord]:
    """A record of every regular file below `folder`, sorted by path.

    Errors: StageError(UnsafeFile) for a link, which could lead out of the storage.
    """
    records = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise StageError(Reason.UNSAFE_FILE, f"{path.relative_to(folder)} is a link; published folders hold regular files only")
        if path.is_file():
            records.append(FileRecord(path=path.relative_to(folder).as_posix(), sha256=hash_file(path), bytes=path.stat().st_size))
    return records


def folder_digest(records: list[FileRecord]) -> str:
    """SHA-256 of the lines `<sha256>  <path>`, sorted by path: what `sha256sum` prints for the folder."""
    lines = "".join(f"{record.sha256}  {record.path}\n" for record in sorted(records, key=lambda record: record.path))
    return hashlib.sha256(lines.encode()).hexdigest()


def verify_files(folder: Path, records: list[FileRecord], root: Path | None = None) -> str | None:
    """The first file that is missing, cut short or changed, in words; None where all are as recorded.

    `root`: what links in the folder may lead to; the folder itself without it. Errors: StageError(UnsafePath) where one leads further.
    """
    for record in records:
        path = resolve_inside(root or folder, folder.resolve() / record.path)
        if not path.is_file():
            return f"{record.path} is missing"
        if path.stat().st_size != record.bytes:
            return f"{record.path} has {path.stat().st_size} bytes, recorded were {record.bytes}"
        if hash_file(path) != record.sha256:
            return f"{record.path} does not match its SHA-256"
    return None


def resolve_inside(root: Path, relative: str | Path) -> Path:
    """`root/relative` (or a path that is absolute already), links resolved. Errors: StageError(UnsafePath) where that leaves `root`."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise StageError(Reason.UNSAFE_PATH, f"a path leads out of {root.name}; name one inside it")
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see the old bytes or the new ones, never a mix, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # not by process number: that is 1 in every pod
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextlib.contextmanager
def filled_aside(target: Path, writer: str) -> Iterator[Path]:
    """An empty folder that, filled, becomes `target` at once and whole. Where another writer was first, that one's counts.

    Errors: StageError(StorageError) where the storage refuses to rename a folder.
    """
    aside = target.with_name(f".{target.name}.{writer}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _rename_into_place(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename_into_place(aside: Path, target: Path) -> None:
    try:
        os.rename(aside, target)
    except OSError as error:
        if not target.is_dir():
            raise StageError(Reason.STORAGE_ERROR, "the storage refuses to rename a folder") from error


def write_record(path: Path) -> None:
    """Writes beside a file what it is, for `is_whole`."""
    record = FileRecord(path=path.name, sha256=hash_file(path), bytes=path.stat().st_size)
    write_atomically(path.with_name(_RECORD_FILE), record.model_dump_json().encode())


def is_whole(folder: Path, recorded: bool = False) -> bool:
    """Whether a cached folder counts: it came there by a rename, so that it is whole.

    `recorded`: the file of its record must still be what it was; one that is damaged is removed with its folder, to be made again.
    """
    if not recorded:
        return folder.is_dir()
    record = folder / _RECORD_FILE
    if not record.is_file():
        return False
    if verify_files(folder, [FileRecord.model_validate_json(record.read_bytes())]) is None:
        return True
    shutil.rmtree(folder)
    return False


_PROBE_BYTES = 1 << 20


_NO_ROOM = "free space on the job's storage or enlarge it"
_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "let the pod's user read and write there"),
    errno.EROFS: "let the pod's user write there",
}


def cure_of(error: Exception) -> str:
    """What to do about a file that cannot be read or written. Libraries' own errors, which have no number, are those of a full disk."""
    return _CURES.get(error.errno or 0, "look at the claim and its node") if isinstance(error, OSError) else _NO_ROOM


def not_written(what: str, error: Exception) -> str:
    """What a person reads where something could not be written."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{what} cannot be written: {words[:_WORDS]}; {cure_of(error)}"


_WORDS = 300


def told_bytes(count: int) -> str:
    """`12.3 GB`, or `4.2 MB` where that says more."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def refuse_full(folder: Path, program: str) -> None:
    """Tells a full disk from a program's own verdict, after it failed while it wrote below `folder`; what it left half done is still there.

    Programs say so in their own words or not at all, and a quota is in no figure of the file system: a byte that cannot be written is.
    Errors: StageError(StorageError) where nothing more can be written.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        with probe.open("wb") as file:
            file.write(b"\1" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StageError(Reason.STORAGE_ERROR, f"{program} could not write on: {error.strerror}; {_NO_ROOM}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def sync_file(path: Path) -> None:
    """Makes a file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes renames and new names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JobStorage:
    """A job's folder. `writer` names this pod start (its uid): two starts never write to one folder."""

    def __init__(self, location: StorageLocation, writer: str) -> None:
        self.root = Path(location.root)
        self.location = location
        self.writer = writer
        self.folder = self.root / location.prefix

    def stage_folder(self, stage: Stage) -> Path:
        return self.folder / stage.value

    @property
    def checkpoints(self) -> Path:
        """Where the train stage saves its state; removed after the last stage unless the run keeps it."""
        return self.folder / "checkpoints"

    def cache_folder(self, kind: str, digest: str) -> Path:
        """A content-addressed folder shared by the jobs on this storage; `is_whole` says whether it counts, `filled_aside` fills it."""
        return self.root / "cache" / kind / digest

    def cached(self, kind: str, digest: str, fill: Callable[[Path], None]) -> Path:
        """The cache's folder of what `digest` names: found, or filled by `fill`, which is given an empty folder. Errors: those of `fill`."""
        folder = self.cache_folder(kind, digest)
        if not is_whole(folder):
            with filled_aside(folder, self.writer) as aside:
                fill(aside)
        return folder

    def uri(self, path: Path) -> str:
        """The URI by which others find a path on this storage: `<storage uri>/<path below root>`."""
        return (
            f"{self.location.uri.rstrip('/')}/{path.relative_to(self.root).as_posix()}"
            if self.location.uri != "file://"
            else f"file://{path}"
        )

    def new_folder(self, stage: Stage) -> Path:
        """An empty folder of this writer. What an earlier process of the same pod left half done is removed."""
        folder = self.stage_folder(stage) / self.writer
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def manifest(self, stage: Stage) -> Manifest | None:
        """The stage's manifest, unverified; None where it has not finished."""
        path = self.stage_folder(stage) / "manifest.json"
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StageError(Reason.CORRUPT_MANIFEST, f"{self.uri(path)} is not a manifest; delete it to run the stage again") from error

    def content(self, manifest: Manifest) -> Path:
        """The folder that a manifest names."""
        return resolve_inside(self.stage_folder(manifest.stage), manifest.directory)

    def finished(self, stage: Stage) -> tuple[Manifest, Path]:
        """A finished stage's manifest and folder, every file verified.

        Errors: StageError(StageMissing) where it has not finished, StageError(CorruptArtifact) where a file is not as recorded.
        """
        manifest = self.manifest(stage)
        if manifest is None:
            raise StageError(Reason.STAGE_MISSING, f"nothing of stage {stage}, which comes before, is at {self.uri(self.folder)}")
        content = self.content(manifest)
        problem = verify_files(content, manifest.files)
        if problem:
            raise StageError(
                Reason.CORRUPT_ARTIFACT, f"stage {stage}: {problem}; delete {self.uri(content)} and its manifest to run it again"
            )
        return manifest, content

    def publish(self, stage: Stage, content: Path, inputs_digest: str, result: StageResult) -> Manifest:
        """Makes `content` the stage's one result, and removes others' unfinished ones.

        Where another writer was first, that one's manifest is returned and counts, and `content` goes.
        """
        records = hash_folder(content)
        for record in records:
            sync_file(content / record.path)
        manifest = Manifest(
            stage=stage,
            inputs_digest=inputs_digest,
            directory=content.relative_to(self.stage_folder(stage)).as_posix(),
            files=records,
            result=result,
        )
        manifest = manifest.model_copy(update={"result": result.model_copy(update={"manifest_digest": manifest.digest})})
        path = self.stage_folder(stage) / "manifest.json"
        aside = path.with_name(f".manifest.{self.writer}.json")
        write_atomically(aside, manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())
        try:
            os.link(aside, path)  # refuses where the name is taken: the first writer wins
        except FileExistsError:
            winner = self.manifest(stage)
            assert winner is not None
            if self.content(winner) != content.resolve():
                shutil.rmtree(content, ignore_errors=True)
            return winner
        finally:
            aside.unlink()
        sync_directory(path.parent)
        self._remove_torsos(stage)
        return manifest

    def _remove_torsos(self, stage: Stage) -> None:
        """Removes what killed or late writers left: with the manifest in place none of it can count any more."""
        for folder in self.stage_folder(stage).iterdir():
            if folder.is_dir() and not folder.name.startswith(self.writer):  # `<writer>-rank1` is at work beside us
                shutil.rmtree(folder, ignore_errors=True)


def local_path(uri: str, run: RunSpec) -> Path:
    """The path in this pod of a `pvc://claim/path`, `file://` or plain local source.

    Errors: StageError(ClaimNotMounted) for a claim this pod does not hold; StageError(SourceNotFound) where nothing is there.
    """
    path = _path_of(parse(uri), run)
    if path is None or not path.exists():
        raise StageError(Reason.SOURCE_NOT_FOUND, f"nothing is at {uri}; check the path")
    return path


def source_root(uri: str, run: RunSpec) -> Path | None:
    """The folder that a source's files must not leave, links resolved: its claim's. None where nothing bounds it: a machine's own path."""
    location = parse(uri)
    return Path(run.claims[location.claim]) if isinstance(location, ClaimPath) and location.claim in run.claims else None


def _path_of(location: Location, run: RunSpec) -> Path | None:
    match location:
        case ClaimPath(claim, relative):
            if claim not in run.claims:
                raise StageError(Reason.CLAIM_NOT_MOUNTED, f"claim {claim} is not mounted in this pod")
            return resolve_inside(Path(run.claims[claim]), relative)
        case LocalPath(path):
            return Path(path)
        case HubRepository():
            return None


def copy_published(source: JobStorage, manifest: Manifest, target: Path) -> None:
    """Copies a finished stage's files to `target`, verified after the copy. Errors: StageError(CorruptArtifact)."""
    content = source.content(manifest)
    for record in manifest.files:
        destination = target / record.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content / record.path, destination)
    problem = verify_files(target, manifest.files)
    if problem:
        raise StageError(Reason.CORRUPT_ARTIFACT, f"older job's stage {manifest.stage}: {problem}; remove resumeFrom")


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())
