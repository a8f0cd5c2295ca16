"""The tokenizer files that the finished model carries: the base's own bytes, edited as JSON only where the run changes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.model_json import read_optional_json
from finetune_trainer.prepared import SpecialTokens

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What makes a tokenizer, its chat template and its stop tokens; config.json belongs to it but is the model's."""


def write_tokenizer_files(model_folder: Path, target: Path, tokens: SpecialTokens, own_template: str | None) -> None:
    """Copies tokenizer files, generation_config.json and config.json to `target`, byte for byte.

    `own_template`: text of a template that is not the model's (Named, ConfigMap); it and, where `tokens.eos_changed`, its end token
    are then written in every place from which transformers, vLLM and llama.cpp's converter read them.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "config.json"):
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, target / name)
    if own_template is None:
        return
    (target / "chat_template.json").unlink(missing_ok=True)
    (target / "chat_template.jinja").write_bytes(own_template.encode())
    # The converter prefers the entry in tokenizer_config.json, transformers the file: both must say the same.
    _edit(target / "tokenizer_config.json", {"chat_template": own_template})
    if tokens.eos_changed:
        _edit(target / "tokenizer_config.json", {"eos_token": tokens.eos_token})
        if (target / "special_tokens_map.json").is_file():
            _edit(target / "special_tokens_map.json", {"eos_token": tokens.eos_token})
        _edit(target / "generation_config.json", {"eos_token_id": tokens.eos_ids})
        _edit(target / "config.json", {"eos_token_id": tokens.eos_id})


def _edit(path: Path, changes: dict[str, Any]) -> None:
    content = read_optional_json(path) | changes
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_template(folder: Path) -> str | None:
    """The model's own template, in transformers' order: chat_template.jinja, chat_template.json, tokenizer_config.json.

    Errors: StageError(InvalidTemplate) for one that cannot be read.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return _text_of(jinja)
    own = _listed_templates(folder)
    if own and "default" not in own:
        raise _unreadable(f"the model's chat_template has {', '.join(map(repr, sorted(own)))} and no 'default'; name the one to use so")
    return own.get("default")


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise _unreadable(f"{path.name} is not text in UTF-8 (byte {error.start + 1}); write it so") from error


def tool_use_template(folder: Path) -> str | None:
    """The template that stands for the model's own wherever there are tools, as transformers and llama.cpp take it; None where the one
    serves both."""
    return None if (folder / "chat_template.jinja").is_file() else _listed_templates(folder).get("tool_use")


def _listed_templates(folder: Path) -> dict[str, str]:
    """Templates by name, of chat_template.json, else tokenizer_config.json; a single one is the default."""
    for file in ("chat_template.json", "tokenizer_config.json"):
        own = read_optional_json(folder / file).get("chat_template")
        if own is not None:
            return _by_name(own, file)
    return {}


def _by_name(own: Any, file: str) -> dict[str, str]:
    if isinstance(own, str):
        return {"default": own}
    entries = own if isinstance(own, list) else list(_entries(own)) if isinstance(own, dict) else None
    if entries is None or not all(_is_entry(entry) for entry in entries):
        raise _unreadable(f"{file}: chat_template must be text, or a list of objects that have name and template; mend it")
    return {entry["name"]: entry["template"] for entry in entries}


def _entries(own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As transformers lists what it keeps by name."""
    return ({"name": name, "template": template} for name, template in own.items())


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _unreadable(words: str) -> StageError:
    return StageError(Reason.INVALID_TEMPLATE, f"{words}, or set model.chatTemplate")
