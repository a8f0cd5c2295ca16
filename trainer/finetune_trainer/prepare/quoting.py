"""Control tokens that the data quotes: in a message they are text, whatever the tokenizer would make of them.

Before rendering they are put between two marks, which the data does not have; what the template writes itself stays without.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from finetune_trainer.prepare.rows import Conversation, RowDropped

Span = tuple[int, int]
"""A half-open range of characters."""

_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
"""Unicode keeps them for a program's own use; a text that was made by one may have some."""


@dataclass(frozen=True)
class Marks:
    """Two characters that the conversation they are put into does not have."""

    opening: str
    closing: str

    @cached_property
    def _either(self) -> re.Pattern[str]:
        return re.compile(f"[{self.opening}{self.closing}]")

    def removed_from(self, text: str) -> str:
        return self._either.sub("", text)

    def unmarked(self, text: str, spans: list[Span]) -> tuple[list[Span], list[Span]] | None:
        """Of a marked text: `spans` and what is quoted, both counted in the text without marks; None where a mark stands alone."""
        marks = [found.start() for found in self._either.finditer(text)]
        opened = [text[mark] for mark in marks]
        if opened != [self.opening, self.closing] * (len(marks) // 2):
            return None
        quoted = [(first - 2 * pair, last - 2 * pair - 1) for pair, (first, last) in enumerate(zip(marks[::2], marks[1::2], strict=True))]
        return [(start - bisect_left(marks, start), end - bisect_left(marks, end)) for start, end in spans], quoted


_MARKS = [Marks(chr(code), chr(code + 1)) for code in range(0xFDD0, 0xFDF0, 2)]


@dataclass(frozen=True)
class Marked:
    """A conversation with what it quotes between marks."""

    conversation: Conversation
    marks: Marks


class Quoting:
    """`tokens`: the texts of the control tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def marked(self, example: Conversation) -> Marked | None:
        """The conversation with what it quotes marked; None where it quotes nothing. Errors: RowDropped(ControlTokens) for one that has
        every character that may be a mark."""
        found = self._marked_with(example, _MARKS[0])
        if found is None:
            return None
        taken = set(_NONCHARACTERS.findall(json.dumps([example.messages, example.tools], ensure_ascii=False, default=str)))
        free = next((marks for marks in _MARKS if not taken & {marks.opening, marks.closing}), None)
        if free is None:
            raise RowDropped("ControlTokens")
        return found if free is _MARKS[0] else self._marked_with(example, free)

    def _marked_with(self, example: Conversation, marks: Marks) -> Marked | None:
        around = f"{marks.opening}\\g<0>{marks.closing}"
        messages = [
            {name: value if name == "role" else self._mark(value, around) for name, value in message.items()}
            for message in example.messages
        ]
        tools = self._mark(example.tools, around)
        if messages == example.messages and tools == example.tools:
            return None
        return Marked(replace(example, messages=messages, tools=tools), marks)

    def _mark(self, value: Any, around: str) -> Any:
        if isinstance(value, str):
            return self._tokens.sub(around, value)
        if isinstance(value, dict):
            return {name: self._mark(member, around) for name, member in value.items()}
        if isinstance(value, list):
            return [self._mark(member, around) for member in value]
        return value
