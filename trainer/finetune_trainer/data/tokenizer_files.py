"""The tokenizer files that the finished model carries: the base's own bytes, edited as JSON only where the run changes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_trainer.data.prepared import SpecialTokens
from finetune_trainer.data.tokenizer import TOKENIZER_FILES, read_optional_json


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
