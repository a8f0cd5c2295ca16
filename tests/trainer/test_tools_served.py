"""Conversations with tools: what is trained is what llama-server makes of the same messages and tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import LocalRunSpec, Stage
from finetune_api.sections.export import GGUFType
from finetune_trainer.__main__ import run_stage
from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import Source, convert, quantize
from finetune_trainer.llama.home import llama_home
from finetune_trainer.package import rendering
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage

from tests.tiny_models import write_json
from tests.trainer import packaged

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for t in m.tool_calls or [] %}"
    "{{ '<call>' + t.function.name + ' ' }}{{ ARGUMENTS }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = "{% if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
TEMPLATES = [
    {"name": "default", "template": TURNS.replace("ARGUMENTS", "t.function.arguments | tojson")},
    {"name": "tool_use", "template": TOOLS + TURNS.replace("ARGUMENTS", "t.function.arguments | tojson")},
]
SCHEMA = {"type": "object", "properties": {"box": {"type": "integer", "description": "which"}}, "required": ["box"]}


def row(i: int) -> dict[str, Any]:
    arguments: Any = {"box": i, "kind": "ä"}
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "count", "arguments": json.dumps(arguments) if i % 2 else arguments},
    }
    messages = [
        {"role": "user", "content": f"how many files in box {i}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": f"{i} files"},
        {"role": "assistant", "content": f"there are {i} files"},
    ]
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": {"name": "count", "description": "counts files", "parameters": SCHEMA}}]
        if i % 3
        else None,
    }


def prepared_with(folder: Path, template: Any) -> Prepared:
    base = folder / "base"
    shutil.copytree(packaged.base(), base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    write_json(base / "tokenizer_config.json", json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": template})
    (folder / "d.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(40)))
    run = LocalRunSpec.model_validate(
        {
            "storage": {"root": str(folder / "out"), "prefix": "job"},
            "model": {"source": str(base)},
            "datasets": [{"name": "d", "source": str(folder / "d.jsonl")}],
            "preparation": {"split": {"train": 0.5, "validation": 0.0, "test": 0.5}},
        }
    )
    run_stage(Stage.PREPARE, run, "pod", Progress.from_environment({}))
    return load_prepared(JobStorage(run.storage, "reader"), run)


def test_the_server_renders_tools_and_calls_as_training_does(tmp_path: Path) -> None:
    prepared = prepared_with(tmp_path, TEMPLATES)
    exact = convert(llama_home(), Source(prepared.model_folder, "tiny"), tmp_path / "exact.gguf")
    gguf = quantize(llama_home(), exact, tmp_path / "gguf", "tiny", [GGUFType.F16])[GGUFType.F16]
    rows = rendering.rendered_rows(prepared)
    with_tools = [row for row in rows if row.tools]
    assert 0 < len(with_tools) < len(rows)
    rendering.check_rendering(llama_home(), "F16", gguf, rows, tmp_path / "server.log")
    without = rendering.Rendered(with_tools[0].where, with_tools[0].messages, with_tools[0].text, with_tools[0].ids)
    with pytest.raises(StageError, match="another text"):
        rendering.check_rendering(llama_home(), "F16", gguf, [without], tmp_path / "server.log")
