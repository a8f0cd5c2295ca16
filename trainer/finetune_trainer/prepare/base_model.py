"""The base model: found, pinned, checked from its config.json and headers alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.section import digest_of

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.inspection import architecture_of
from finetune_trainer.model_shape import count_parameters, read_shape
from finetune_trainer.prepare.sources import list_source
from finetune_trainer.prepare.sources.asked import asked_model
from finetune_trainer.prepared import PreparedModel
from finetune_trainer.storage import FileRecord, JobStorage, filled_aside, folder_digest, hash_file, is_whole, source_root
from finetune_trainer.tokenizer_files import read_optional_json
from finetune_trainer.weight_files import FLOATS, INDEX_FILE, SINGLE_FILE, StoredTensor, WeightFiles, stored_tensors, weight_files

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

_ARCHITECTURE = "architecture.json"

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
    folder = listed.fetch(_wanted(listed.files))
    cached = folder.relative_to(storage.root).as_posix() if listed.revision else None
    _refuse_links_out(folder, run)
    return folder, _record(folder, source, listed.revision, cached, storage)


def _wanted(names: list[str]) -> list[str]:
    """The model's files, without weights that nobody would read beside a single file of them."""
    wanted = [name for name in names if is_model_file(name)]
    if SINGLE_FILE not in wanted:
        return wanted
    return [name for name in wanted if name == SINGLE_FILE or not name.endswith((".safetensors", INDEX_FILE))]


def _refuse_links_out(folder: Path, run: RunSpec) -> None:
    """Links are followed within what holds the model, as in a hub's cache, and no further. Errors: StageError(UnsafePath)."""
    root = source_root(run.model.source, run)
    if root is None:
        return
    for path in folder.iterdir():
        if is_model_file(path.name) and not path.resolve().is_relative_to(root.resolve()):
            raise StageError(
                Reason.UNSAFE_PATH, f"model.source: {path.name} is a link that leads out of its claim; put the file itself there"
            )


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


def _record(folder: Path, source: str, commit: str | None, cached: str | None, storage: JobStorage) -> PreparedModel:
    config = read_optional_json(folder / "config.json")
    architecture = _check_config(config)
    weights = weight_files(folder)
    total, dtype = count_parameters(folder)
    if dtype not in FLOATS.values():
        raise StageError(
            Reason.QUANTIZED_BASE, f"the base model's weights are stored as {dtype}; use the unquantized one ({', '.join(FLOATS)})"
        )
    files = [
        FileRecord(path=path.name, sha256=hash_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.is_file() and is_model_file(path.name) and _is_read(path.name, weights)
    ]
    digest = folder_digest(files)
    shape = read_shape(config, total, dtype)
    built = _built(folder, config, storage)
    return PreparedModel(
        source=source,
        revision=commit or f"sha256:{digest}",
        digest=digest,
        cached=cached,
        files=files,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        shape=shape.model_copy(update={"built": built, "total_parameters": built.total}) if built else shape,
    )


def _is_read(name: str, weights: WeightFiles) -> bool:
    """Whether a file of the model is read by any stage: weights that lie beside those that count are not."""
    if name == INDEX_FILE:
        return weights.indexed
    return not name.endswith(".safetensors") or name in weights.names


def _built(folder: Path, config: dict[str, Any], storage: JobStorage) -> Architecture | None:
    """What transformers builds of it, cached by what that follows from. Errors: StageError(RemoteCodeRefused | UnsupportedArchitecture |
    InvalidModel) for a model that cannot be built, or whose weights do not fit it."""
    stored = stored_tensors(folder)
    key = digest_of([hash_file(folder / "config.json"), sorted(stored), version("transformers"), version("peft")])
    cached = storage.cache_folder("architectures", key)
    if is_whole(cached):
        built: Architecture | None = Architecture.model_validate_json((cached / _ARCHITECTURE).read_bytes())
    else:
        built = _looked_at(folder, config)
        if built is not None:
            with filled_aside(cached, storage.writer) as aside:
                (aside / _ARCHITECTURE).write_text(built.model_dump_json(by_alias=True, exclude_defaults=True))
    if built is not None:
        _refuse_unfit(built, stored)
    return built


def _looked_at(folder: Path, config: dict[str, Any]) -> Architecture | None:
    try:
        return architecture_of(folder)
    except StageError as error:
        if config.get("auto_map") and error.reason is Reason.UNSUPPORTED_ARCHITECTURE:
            raise StageError(
                Reason.REMOTE_CODE_REFUSED,
                "the model needs Python code of its own repository (auto_map), which is not run, and transformers has no "
                f"{config.get('model_type', 'such architecture')}; use an architecture of transformers",
            ) from error
        raise


def _refuse_unfit(built: Architecture, stored: Mapping[str, StoredTensor]) -> None:
    """Every parameter that is one stored tensor has its shape: the library would end in the middle of loading."""
    for parameter in built.parameters:
        tensor = stored.get(parameter.tensor or "")
        if tensor is not None and list(tensor.shape) != parameter.shape:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{parameter.tensor} is stored as {list(tensor.shape)}, and config.json makes it {parameter.shape}"
                f"{' (vocab_size)' if parameter.name.rpartition('.')[0] in (built.embedding, built.head) else ''}; "
                "use the config.json that belongs to the weights",
            )


def _check_config(config: dict[str, Any]) -> str:
    """The architecture's name, for a model that can be tuned here."""
    model_type = str(config.get("model_type", ""))
    architectures = config.get("architectures") or []
    architecture = str(architectures[0]) if architectures else ""
    if config.get("is_encoder_decoder") or model_type in _ENCODER_DECODERS:
        raise StageError(
            Reason.ENCODER_DECODER_UNSUPPORTED, f"{architecture or model_type} is an encoder-decoder model; use a decoder-only one"
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
