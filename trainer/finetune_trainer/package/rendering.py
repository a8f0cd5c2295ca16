"""Parity (d): conversations become the same text and the same token ids in llama-server as in training, and end at the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import GGUFFacts
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.llama.model import GGUFModel
from finetune_trainer.llama.server import LlamaServer
from finetune_trainer.prepared import HeldOutRow, Prepared

COMPARED_ROWS = 200


@dataclass(frozen=True)
class Rendered:
    """A conversation or prompt as training saw it: text and ids up to where the answer begins."""

    where: str
    messages: Sequence[dict[str, object]]
    text: str
    ids: Sequence[int]
    tools: Sequence[dict[str, object]] = ()

    @property
    def request(self) -> dict[str, Any]:
        """What a client sends to have it answered."""
        messages = [_as_sent(message) for message in self.messages]
        return {"messages": messages, "tools": list(self.tools)} if self.tools else {"messages": messages}


def rendered_rows(prepared: Prepared) -> list[Rendered]:
    """Prompts of held-out rows, conversations first; at most `COMPARED_ROWS`. Not those that a server reads otherwise on purpose."""
    rows = [row for entry in prepared.held_out_sets() for row in islice(prepared.held_out_rows(entry.name), COMPARED_ROWS)]
    rows.sort(key=lambda row: row.kind != "Chat")
    return [
        Rendered(f"{row.dataset} row {row.row}", row.messages if row.kind == "Chat" else [], row.prompt, row.prompt_ids, row.tools)
        for row in rows[:COMPARED_ROWS]
        if row.prompt_ids and not row.quotes_control_tokens
    ]


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as JSON text, which is how OpenAI's clients send them."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}} for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def answer_ends(rows: Iterable[HeldOutRow]) -> set[int]:
    """Tokens that answers were trained to end with."""
    return {row.answer_ids[-1] for row in rows if row.kind == "Chat" and row.answer_ids}


def check_facts(prepared: Prepared, form: str, facts: GGUFFacts) -> None:
    """The GGUF carries the template and the end token of training. Errors: StageError(ParityFailed)."""
    if facts.eos_id != prepared.tokens.eos_id:
        raise _failed(form, f"carries token {facts.eos_id} as eos where the model was trained to end with token {prepared.tokens.eos_id}")
    template = prepared.chat_template
    if template is not None and facts.chat_template != template:
        raise _failed(form, "carries another chat template than rows were rendered with")


def check_ends(prepared: Prepared, form: str, model: GGUFModel, trained_ends: set[int]) -> None:
    """llama.cpp stops where the model was trained to end. Errors: StageError(ParityFailed)."""
    deaf = sorted(token for token in trained_ends | {prepared.tokens.eos_id} if not model.ends_generation(token))
    if deaf:
        raise _failed(form, f"does not stop at token {deaf[0]}, which ends answers in training")


def check_rendering(home: LlamaHome, form: str, gguf: Path, rows: Sequence[Rendered], log: Path) -> None:
    """Asks llama-server itself, on loopback. Errors: StageError(ParityFailed) with the first row that differs."""
    longest = max((len(row.ids) for row in rows), default=0)
    with LlamaServer(home, gguf, log, context_tokens=max(512, longest + 16)) as server:
        bos = str(server.get("/props").get("bos_token", ""))
        for row in rows:
            _check_row(server, form, row, bos)
        for row in rows[:1]:
            _check_prompt_tokens(server, form, row)


def _check_row(server: LlamaServer, form: str, row: Rendered, bos: str) -> None:
    text = row.text
    if row.messages:
        text = str(server.post("/apply-template", row.request)["prompt"])
        # The server leaves a template's own bos out of the text, because its tokenizer puts one there.
        if text != row.text and bos + text != row.text:
            raise _failed(form, f"renders {row.where} to another text than training, from character {_first_difference(text, row.text)} on")
    ids = server.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    if list(ids) != list(row.ids):
        raise _failed(form, f"tokenises {row.where} otherwise than training, from position {_first_difference(ids, row.ids)} on")


def _check_prompt_tokens(server: LlamaServer, form: str, row: Rendered) -> None:
    """What a client's request is really made of, counted by the server while it answers."""
    if not row.messages:
        return
    answer = server.post("/v1/chat/completions", row.request | {"max_tokens": 1, "temperature": 0})
    counted = answer["usage"]["prompt_tokens"]
    if counted != len(row.ids):
        raise _failed(form, f"answers {row.where} from {counted} prompt tokens where training had {len(row.ids)}")


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _failed(form: str, finding: str) -> StageError:
    return StageError(Reason.PARITY_FAILED, f"{form} {finding}; nothing is published")
