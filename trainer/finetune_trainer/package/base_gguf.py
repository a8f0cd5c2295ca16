"""The base model in the formats that are served, for comparison: made once per storage, cached by content, never published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune_trainer.data.prepared import Prepared
from finetune_trainer.errors import StageError
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.package.gguf import Source, convert, link_weights, quantize
from finetune_trainer.package.model_files import write_model_files
from finetune_trainer.spec import ExitCode, GGUFType, digest_of
from finetune_trainer.storage import FileRecord, JobStorage, hash_file, hash_folder, verify_files, write_atomically

_KIND = "base-gguf"
_NAME = "base"


def base_ggufs(prepared: Prepared, storage: JobStorage, home: LlamaHome, formats: Sequence[GGUFType], work: Path) -> dict[GGUFType, Path]:
    """The base in each format, with the run's own template and end tokens; taken from the cache or made in `work` and put there.

    Errors: StageError(ConversionFailed | CorruptArtifact).
    """
    model = work / "base-model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    write_model_files(prepared, model, unties=False)
    files = [[record.path, record.sha256] for record in hash_folder(model)]
    converter = hash_file(home.converter)
    cached = {
        form: storage.cache_folder(_KIND, digest_of([prepared.model.digest, files, converter, form.value])) / f"{_NAME}-{form.value}.gguf"
        for form in formats
    }
    missing = [form for form in formats if not _is_whole(cached[form])]
    if missing:
        link_weights(prepared.model_folder, model)
        exact = convert(home, Source(model, _NAME), work / "base-gguf" / "exact.gguf")
        for form, path in quantize(home, exact, work / "base-gguf", _NAME, missing).items():
            _put(path, cached[form], storage.writer)
    shutil.rmtree(model)
    shutil.rmtree(work / "base-gguf", ignore_errors=True)
    return cached


def _is_whole(path: Path) -> bool:
    """Whether the cache holds the file as it was put there; a damaged entry is removed, to be made again."""
    record = path.parent / "record.json"
    if not record.is_file():
        return False
    problem = verify_files(path.parent, [FileRecord.model_validate_json(record.read_bytes())])
    if problem is None:
        return True
    shutil.rmtree(path.parent)
    return False


def _put(made: Path, target: Path, writer: str) -> None:
    """Publishes a file with its record by renaming their folder: readers see both or none."""
    aside = target.parent.with_name(f".{target.parent.name}.{writer}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    shutil.move(made, aside / target.name)
    record = FileRecord(path=target.name, sha256=hash_file(aside / target.name), bytes=(aside / target.name).stat().st_size)
    write_atomically(aside / "record.json", record.model_dump_json().encode())
    try:
        os.rename(aside, target.parent)
    except OSError as error:
        shutil.rmtree(aside)
        if not target.is_file():  # another writer was first otherwise, with the same content
            raise StageError("StorageError", "the storage refuses to rename a folder", ExitCode.STORAGE) from error
