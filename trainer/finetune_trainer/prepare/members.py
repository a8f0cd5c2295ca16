"""Members of conversations that a chat template does not print: nothing of them is asked or learnt, which must not go unsaid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow
from finetune_trainer.prepare.rows import Conversation

_TRIED_ROWS = 200
_OTHER_TEXT = "\ufdd0"
NEEDED = ("tool_calls of assistant messages", "content of tool messages")
"""Without these an answer would be learnt that is empty, or that nothing led to."""


@dataclass
class _Met:
    rows: int = 0
    tried: int = 0
    is_printed: bool = False


class PrintedMembers:
    """Watches the conversations of one data set. A member is looked at until a row is found in which it makes a difference."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._met: dict[str, _Met] = {}

    def look(self, example: Conversation) -> str | None:
        """A member of `NEEDED` that the conversation has and the template has printed of no conversation so far, this one included."""
        lacking = None
        for name, without in _variants(example):
            met = self._met.setdefault(name, _Met())
            met.rows += 1
            if not met.is_printed and (met.tried < _TRIED_ROWS):
                met.tried += 1
                met.is_printed = self._differ(example, without)
            if name in NEEDED and not met.is_printed:
                lacking = name
        return lacking

    def unprinted(self) -> dict[str, int]:
        """Members that make no difference, with the number of rows that have them."""
        return {name: met.rows for name, met in self._met.items() if not met.is_printed}

    def _differ(self, example: Conversation, without: Conversation) -> bool:
        try:
            return self._template.render(example.messages, example.tools) != self._template.render(without.messages, without.tools)
        except TemplateRefusedRow:
            return True


def _variants(example: Conversation) -> Iterator[tuple[str, Conversation]]:
    """Each member that not every conversation has, with the conversation without it."""
    if example.tools:
        yield "tools", replace(example, tools=None)
    for role in ("system", "tool"):
        if any(message["role"] == role for message in example.messages):
            yield f"content of {role} messages", _with_other_content(example, role)
    members = dict.fromkeys((m["role"], name) for m in example.messages if len(m) > 2 for name in m if name not in ("role", "content"))
    for role, name in members:
        yield f"{name} of {role} messages", _without_member(example, role, name)


def _with_other_content(example: Conversation, role: str) -> Conversation:
    return replace(example, messages=[{**m, "content": _OTHER_TEXT} if m["role"] == role else m for m in example.messages])


def _without_member(example: Conversation, role: str, member: str) -> Conversation:
    messages = [{name: value for name, value in m.items() if m["role"] != role or name != member} for m in example.messages]
    return replace(example, messages=messages)
