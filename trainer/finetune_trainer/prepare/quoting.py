"""Control tokens that the data quotes: in a message they are text, whatever the tokenizer would make of them.

Before rendering they are put between two marks, which no data has; what the template writes itself stays without.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from finetune_trainer.prepare.rows import Conversation

Span = tuple[int, int]
"""A half-open range of characters."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters: Unicode keeps them for a program's own use, so no text has them."""
_ANY = re.compile(f"[{_OPEN}{_CLOSE}]")


class Quoting:
    """`tokens`: the texts of the control tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def marked(self, example: Conversation) -> Conversation | None:
        """The conversation with what it quotes marked; None where it quotes nothing."""
        messages = [
            {name: value if name == "role" else self._mark(value) for name, value in message.items()} for message in example.messages
        ]
        tools = self._mark(example.tools)
        if messages == example.messages and tools == example.tools:
            return None
        return replace(example, messages=messages, tools=tools)

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._tokens.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
        if isinstance(value, dict):
            return {name: self._mark(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self._mark(member) for member in value]
        return value


def without_marks(text: str) -> str:
    return _ANY.sub("", text)


def unmarked(text: str, spans: list[Span]) -> tuple[list[Span], list[Span]] | None:
    """Of a marked text: `spans` and what is quoted, both counted in the text without marks; None where a mark stands alone."""
    marks = [found.start() for found in _ANY.finditer(text)]
    opened = [text[mark] for mark in marks]
    if opened != [_OPEN, _CLOSE] * (len(marks) // 2):
        return None
    quoted = [(first - 2 * pair, last - 2 * pair - 1) for pair, (first, last) in enumerate(zip(marks[::2], marks[1::2], strict=True))]
    return [(start - bisect_left(marks, start), end - bisect_left(marks, end)) for start, end in spans], quoted
