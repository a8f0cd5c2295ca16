"""The base model in the formats that are served, for comparison: made once per storage, cached by content, never published."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune_api.section import digest_of
from finetune_api.sections.export import GGUFType

from finetune_trainer.llama.gguf import Source, convert, quantize
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.llama.model_files import write_model_files
from finetune_trainer.prepared import Prepared
from finetune_trainer.storage import JobStorage, filled_aside, hash_file, hash_folder, is_whole, write_record
from finetune_trainer.weight_files import link_weights

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
    missing = [form for form in formats if not is_whole(cached[form].parent, recorded=True)]
    if missing:
        link_weights(prepared.model_folder, model)
        exact = convert(home, Source(model, _NAME), work / "base-gguf" / "exact.gguf")
        for form, path in quantize(home, exact, work / "base-gguf", _NAME, missing).items():
            _put(path, cached[form], storage.writer)
    shutil.rmtree(model)
    shutil.rmtree(work / "base-gguf", ignore_errors=True)
    return cached


def _put(made: Path, target: Path, writer: str) -> None:
    with filled_aside(target.parent, writer) as aside:
        shutil.move(made, aside / target.name)
        write_record(aside / target.name)
