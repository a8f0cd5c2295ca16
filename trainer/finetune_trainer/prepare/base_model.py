"""The base model: found, pinned, checked from its config.json and headers alone."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec

from finetune_trainer.errors import StageError
from finetune_trainer.model_json import JsonMembers, read_members, refused
from finetune_trainer.model_shape import count_parameters, read_shape
from finetune_trainer.prepare.sources import list_source
from finetune_trainer.prepare.sources.asked import asked_model
from finetune_trainer.prepared import PreparedModel
from finetune_trainer.storage import FileRecord, JobStorage, folder_digest, hash_file, source_root
from finetune_trainer.weight_files import FLOATS, INDEX_FILE, SINGLE_FILE, WeightFiles, weight_files

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
    _refuse_folders(folder)
    return folder, _record(folder, source, listed.revision, cached)


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


def _refuse_folders(folder: Path) -> None:
    """Errors: StageError(InvalidModel) for a folder that has a file's name: read as absent, the model would be another one."""
    for path in sorted(folder.iterdir()):
        if is_model_file(path.name) and path.is_dir():
            raise refused(path.name, " is a folder; expected a file")


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
    config = read_members(folder, "config.json")
    architecture = _check_config(config)
    weights = weight_files(folder)
    _refuse_other_weights(config, weights)
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
    return PreparedModel(
        source=source,
        revision=commit or f"sha256:{digest}",
        digest=digest,
        cached=cached,
        files=files,
        architecture=architecture,
        model_type=config.text("model_type") or "",
        shape=read_shape(config.values, total, dtype),
    )


def _refuse_other_weights(config: JsonMembers, weights: WeightFiles) -> None:
    """Errors: StageError(InvalidModel) where config.json has transformers load another file than every other stage reads."""
    read = INDEX_FILE if weights.indexed else SINGLE_FILE
    named = config.text("transformers_weights")
    if named not in (None, read):
        raise StageError(
            Reason.INVALID_MODEL,
            f"config.json: transformers_weights names another file than {read}, which is what is read; call the weights so, and remove it",
        )


def _is_read(name: str, weights: WeightFiles) -> bool:
    """Whether a file of the model is read by any stage: weights that lie beside those that count are not."""
    if name == INDEX_FILE:
        return weights.indexed
    return not name.endswith(".safetensors") or name in weights.names


def _check_config(config: JsonMembers) -> str:
    """The architecture's name, for a model that can be tuned here."""
    model_type = config.text("model_type") or ""
    architecture = next(iter(config.texts("architectures")), "")
    if config.flag("is_encoder_decoder") or model_type in _ENCODER_DECODERS:
        raise StageError(
            Reason.ENCODER_DECODER_UNSUPPORTED, f"{architecture or model_type} is an encoder-decoder model; use a decoder-only one"
        )
    if config.values.get("quantization_config"):
        raise StageError(
            Reason.QUANTIZED_BASE, "the base model is quantized already; use the unquantized one and set quantization for training"
        )
    if not architecture.endswith(_GENERATIVE):
        raise StageError(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{architecture or 'a config.json without architectures'} generates no text; use a decoder model",
        )
    return architecture
