"""The files around the merged weights: copied from the base, and proven to be the base's."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_trainer.data.prepared import Prepared
from finetune_trainer.data.tokenizer import TOKENIZER_FILES
from finetune_trainer.data.tokenizer_files import write_tokenizer_files
from finetune_trainer.errors import StageError
from finetune_trainer.spec import ExitCode
from finetune_trainer.storage import hash_file, read_json

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")
_EDITED_KEYS = frozenset({"chat_template", "eos_token", "pad_token", "eos_token_id", "pad_token_id", "tie_word_embeddings"})
"""Members that a run may change. Everything else is the base's, byte for byte or value for value."""


def write_model_files(prepared: Prepared, target: Path, unties: bool) -> None:
    """Tokenizer, template, configuration and licence; nothing is re-saved by transformers.

    transformers 5's `save_pretrained` drops tokenizer.model and add_bos_token; the converter then says "successfully exported".
    """
    own_template = prepared.chat_template if prepared.file.chat_template_source in ("Named", "ConfigMap") else None
    write_tokenizer_files(prepared.model_folder, target, prepared.tokens, own_template)
    for name in _LICENCES:
        if (prepared.model_folder / name).is_file():
            (target / name).write_bytes((prepared.model_folder / name).read_bytes())
    if unties:
        _untie(target / "config.json")


def _untie(path: Path) -> None:
    config = json.loads(path.read_bytes())
    holders = [config, *(config[part] for part in ("text_config", "llm_config") if isinstance(config.get(part), dict))]
    for holder in holders:
        if holder is config or "tie_word_embeddings" in holder:
            holder["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_model_files(prepared: Prepared, exported: Path) -> None:
    """Each tokenizer file is the base's own, but for template and end tokens.

    Errors: StageError(ParityFailed) naming the file that was re-saved, changed, lost or added.
    """
    recorded = {record.path: record.sha256 for record in prepared.model.files}
    for name in (*TOKENIZER_FILES, "config.json"):
        original, copy = prepared.model_folder / name, exported / name
        if original.is_file() != copy.is_file():
            if name in ("chat_template.jinja", "chat_template.json", "generation_config.json", "tokenizer_config.json") and _is_edit(copy):
                continue
            raise _failed(name, "was lost" if original.is_file() else "is not among the base model's files")
        if not original.is_file() or hash_file(copy) == recorded.get(name, hash_file(original)):
            continue
        if name == "chat_template.jinja":
            if copy.read_text(encoding="utf-8") != prepared.chat_template:
                raise _failed(name, "is not the template that rows were rendered with")
        elif not name.endswith(".json") or _without_edits(original) != _without_edits(copy):
            raise _failed(name, "is not the base model's; tokenizer files must be copied, never saved again")


def _is_edit(copy: Path) -> bool:
    """A file that the base lacks and that holds nothing but what a run may set; a chat_template.json that gave way to .jinja."""
    if not copy.is_file() or copy.suffix == ".jinja":
        return True
    return not _without_edits(copy)


def _without_edits(path: Path) -> object:
    content = read_json(path)
    return {key: value for key, value in content.items() if key not in _EDITED_KEYS} if isinstance(content, dict) else content


def _failed(name: str, finding: str) -> StageError:
    return StageError("ParityFailed", f"tokenizer: {name} {finding}; nothing is published", ExitCode.PARITY_FAILED)
