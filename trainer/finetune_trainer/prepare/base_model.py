"""The base model: found, pinned, checked from its config.json and headers alone."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec

from finetune_trainer.errors import StageError
from finetune_trainer.model_shape import FLOATS, count_parameters, read_shape
from finetune_trainer.prepare.sources import list_source
from finetune_trainer.prepare.sources.asked import asked_model
from finetune_trainer.prepared import PreparedModel
from finetune_trainer.storage import FileRecord, JobStorage, folder_digest, hash_file
from finetune_trainer.tokenizer_files import read_optional_json

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "model*.safetensors",
)
"""Files that are fetched and recorded: data only. Nothing pickled, no code."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_ENCODER_DECODERS = {
    "t5",
    "mt5",
    "umt5",
    "longt5",
    "bart",
    "mbart",
    "pegasus",
    "marian",
    "m2m_100",
    "blenderbot",
    "led",
    "whisper",
    "prophetnet",
}
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def is_model_file(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def resolve_model(run: RunSpec, storage: JobStorage) -> tuple[Path, PreparedModel]:
    """The base model's folder in this pod and its record.

    Errors: StageError(ModelNotFound | ModelGated | ModelUnauthorized | SafetensorsOnly | EncoderDecoderUnsupported | RemoteCodeRefused |
    QuantizedBase | UnsupportedArchitecture | InvalidModel).
    """
    source = run.model.source
    listed = list_source(asked_model(run.model), run, storage)
    if listed.is_one_file:
        raise StageError(Reason.MODEL_NOT_FOUND, f"{source} is a file; model.source names the folder with config.json")
    _check_files(listed.files, source)
    folder = listed.fetch([name for name in listed.files if is_model_file(name)])
    cached = folder.relative_to(storage.root).as_posix() if listed.revision else None
    return folder, _record(folder, source, listed.revision, cached)


def _check_files(names: list[str], source: str) -> None:
    if "config.json" not in names:
        raise StageError(Reason.MODEL_NOT_FOUND, f"{source} has no config.json; name a folder or repository in transformers' layout")
    if any(fnmatch.fnmatchcase(name, "model*.safetensors") for name in names):
        return
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise StageError(
            Reason.SAFETENSORS_ONLY, f"{source} has pickled weights only, which can run code; convert them to safetensors first"
        )
    raise StageError(Reason.MODEL_NOT_FOUND, f"{source} has no model*.safetensors")


def _record(folder: Path, source: str, commit: str | None, cached: str | None) -> PreparedModel:
    config = read_optional_json(folder / "config.json")
    architecture = _check_config(config)
    _check_shards(folder)
    total, dtype = count_parameters(folder)
    if dtype not in FLOATS.values():
        raise StageError(
            Reason.QUANTIZED_BASE, f"the base model's weights are stored as {dtype}; use the unquantized one ({', '.join(FLOATS)})"
        )
    files = [
        FileRecord(path=path.name, sha256=hash_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.is_file() and is_model_file(path.name)
    ]
    digest = folder_digest(files)
    return PreparedModel(
        source=source,
        revision=commit or f"sha256:{digest}",
        digest=digest,
        cached=cached,
        files=files,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        shape=read_shape(config, total, dtype),
    )


def _check_shards(folder: Path) -> None:
    """Every file that training and the merge will open is there: a GPU is not taken to find out."""
    index = read_optional_json(folder / _INDEX)
    wanted = sorted(set(index.get("weight_map", {}).values())) if index else [_SINGLE]
    missing = [name for name in wanted if not (folder / str(name)).is_file()]
    if missing:
        lacking = _INDEX if missing == [_SINGLE] else missing[0]
        raise StageError(Reason.INVALID_MODEL, f"the model lacks {lacking}{_more(missing)}; fetch the model again")


def _more(missing: list[str]) -> str:
    return f" and {len(missing) - 1} more of its weight files" if len(missing) > 1 else ""


def _check_config(config: dict[str, Any]) -> str:
    """The architecture's name, for a model that can be tuned here."""
    model_type = str(config.get("model_type", ""))
    architectures = config.get("architectures") or []
    architecture = str(architectures[0]) if architectures else ""
    if config.get("is_encoder_decoder") or model_type in _ENCODER_DECODERS:
        raise StageError(
            Reason.ENCODER_DECODER_UNSUPPORTED, f"{architecture or model_type} is an encoder-decoder model; use a decoder-only one"
        )
    if config.get("auto_map"):
        raise StageError(
            Reason.REMOTE_CODE_REFUSED,
            f"{architecture or 'the model'} needs Python code of its own repository (auto_map), which is not run; use an architecture of transformers",
        )
    if config.get("quantization_config"):
        raise StageError(
            Reason.QUANTIZED_BASE, "the base model is quantized already; use the unquantized one and set quantization for training"
        )
    if not architecture.endswith(_GENERATIVE):
        raise StageError(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{architecture or 'a config.json without architectures'} generates no text; use a decoder model",
        )
    return architecture
