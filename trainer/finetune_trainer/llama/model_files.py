"""The files around the merged weights: copied from the base, and proven to be the base's."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_api.outcome import Reason
from finetune_api.sections.model import Dtype

from finetune_trainer.errors import StageError
from finetune_trainer.model_json import read_optional_json
from finetune_trainer.prepared import Prepared
from finetune_trainer.storage import hash_file, read_json
from finetune_trainer.tokenizer_files import TOKENIZER_FILES, model_template, write_tokenizer_files

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")
_DTYPE_KEYS = ("dtype", "torch_dtype")  # transformers 5's own, and that of older files and servers
_EDITED_KEYS = frozenset({"chat_template", "eos_token", "pad_token", "eos_token_id", "pad_token_id", "tie_word_embeddings", *_DTYPE_KEYS})
"""Members that a run may change. Everything else is the base's, byte for byte or value for value."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_NEVER_MADE = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "added_tokens.json")


def write_model_files(prepared: Prepared, target: Path, unties: bool, dtype: Dtype | None = None) -> None:
    """Tokenizer, template, configuration and licence; nothing is re-saved by transformers. `dtype`: the weights' type, if not the base's.

    transformers 5's `save_pretrained` drops tokenizer.model and add_bos_token; the converter then says "successfully exported".
    """
    write_tokenizer_files(prepared.model_folder, target, prepared.tokens, prepared.own_template)
    for name in _LICENCES:
        if (prepared.model_folder / name).is_file():
            (target / name).write_bytes((prepared.model_folder / name).read_bytes())
    _edit_config(target / "config.json", unties, None if dtype is None else dtype.lower())


def _edit_config(path: Path, unties: bool, dtype: str | None) -> None:
    """Says what the weights are: their type, and an output head of their own. A file that says so already stays as it is."""
    config = json.loads(path.read_bytes())
    before = json.dumps(config)
    for holder in [config, *(config[part] for part in ("text_config", "llm_config") if isinstance(config.get(part), dict))]:
        if unties and (holder is config or "tie_word_embeddings" in holder):
            holder["tie_word_embeddings"] = False
        if dtype:
            said = [key for key in _DTYPE_KEYS if key in holder]
            holder |= dict.fromkeys(said or (_DTYPE_KEYS[:1] if holder is config else ()), dtype)
    if json.dumps(config) != before:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_model_files(prepared: Prepared, exported: Path) -> None:
    """Each tokenizer file is the base's own, but for template and end tokens.

    Errors: StageError(ParityFailed) naming the file that was re-saved, changed, lost or added.
    """
    recorded = {record.path: record.sha256 for record in prepared.model.files}
    for name in (*TOKENIZER_FILES, "config.json"):
        original, copy = prepared.model_folder / name, exported / name
        if name in _TEMPLATE_FILES and prepared.chat_template is not None:
            continue  # judged as a template below
        if original.is_file() and not copy.is_file():
            raise _failed(name, "was lost")
        if copy.is_file() and not original.is_file() and (name in _NEVER_MADE or _without_edits(copy)):
            raise _failed(name, "is not among the base model's files")
        if not original.is_file() or hash_file(copy) == recorded.get(name, hash_file(original)):
            continue
        if not name.endswith(".json") or _without_edits(original) != _without_edits(copy):
            raise _failed(name, "is not the base model's; tokenizer files must be copied, never saved again")
    _check_template(prepared, exported)


def _check_template(prepared: Prepared, exported: Path) -> None:
    """Every place from which a template may be read holds the one that rows were rendered with."""
    if prepared.chat_template is None:
        return
    if model_template(exported) != prepared.chat_template:
        raise _failed("chat_template.jinja", "is not the template that rows were rendered with")
    entry = read_optional_json(exported / "tokenizer_config.json").get("chat_template")
    if isinstance(entry, str) and entry != prepared.chat_template:
        raise _failed("tokenizer_config.json", "holds another chat template than rows were rendered with")


def _without_edits(path: Path) -> object:
    content = read_json(path)
    return {key: value for key, value in content.items() if key not in _EDITED_KEYS} if isinstance(content, dict) else content


def _failed(name: str, finding: str) -> StageError:
    return StageError(Reason.PARITY_FAILED, f"tokenizer: {name} {finding}; nothing is published")
