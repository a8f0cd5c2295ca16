"""Members of conversations that a chat template does not print, or not as they are: what is not asked or learnt must not go unsaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow
from finetune_trainer.prepare.contents import AsWritten
from finetune_trainer.prepare.records import Location
from finetune_trainer.prepare.rows import Conversation

_TRIED_ROWS = 200
_SAMPLED_ROWS = 64
_OTHER_TEXT = "\ufdd0 some other text"
NEEDED = (
    "tool_calls of assistant messages",
    "content of assistant messages",
    "content of user messages",
    "content of tool messages",
)
"""Without these an answer would be learnt that is empty, or that nothing led to."""
_ANSWERS = "content of assistant messages"
_ARGUMENTS = "arguments in tool_calls"
_OTHER_CALL: dict[str, dict[str, Any]] = {"tool_calls": {"name": _OTHER_TEXT}, _ARGUMENTS: {"arguments": {_OTHER_TEXT: _OTHER_TEXT}}}
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_QUIET = frozenset({"tool_call_id"})
"""Says which call a result belongs to, which its place says as well: most templates print nothing of it."""

_Shape = tuple[str, tuple[str, ...], bool]
"""A message's role, the members that it holds something in, and whether it is the last: what templates branch on. A conversation's tools
have a shape of their own, and stand at no position."""
_TOOLS: _Shape = ("", ("tools",), False)


@dataclass
class Printed:
    """A member over the rows of a data set. `lost`: rows that hold it in a message of which the template does not print it, `first` of
    them; `is_printed`: there is a row of which it does."""

    rows: int = 0
    lost: int = 0
    first: Location | None = None
    is_printed: bool = False
    is_switch: bool = False
    """Its value is a number, or true or false, and no text."""


@dataclass
class _Member:
    """A member of messages of one shape, and what was found of it in the rows that were tried."""

    name: str
    words: str
    met: int = 0
    tried: int = 0
    printed: int = 0

    def is_printed(self, row: _Row, positions: list[int]) -> bool:
        """Tried among the first rows, where the tries differ, and else of a sample."""
        self.met += 1
        if self.met > _TRIED_ROWS and self.met % _SAMPLED_ROWS and self.printed in (0, self.tried):
            return self.printed > 0
        self.tried += 1
        printed = row.prints(self.name, positions)
        self.printed += printed
        return printed


class PrintedMembers:
    """Watches the conversations of one data set: rendered once more with another value, is the text another?

    Messages of one shape are treated alike by templates, so some rows of each shape are tried, and the others counted with them.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._members: dict[_Shape, list[_Member]] = {}
        self._met: dict[str, Printed] = {}
        self._as_written = AsWritten()
        self.altered: dict[str, Printed] = {}
        """By role: rows of which the template prints some content, and not all of it as it is."""

    def look(
        self, example: Conversation, ends: Sequence[int], location: Location, texts: Sequence[str] = (), is_silent: bool = False
    ) -> None:
        """`ends`: positions of the messages that the row's texts end with; `texts`: these, in the same order; `is_silent`: one of its
        answers is nothing but an end."""
        row = _Row(self._template, example, ends)
        found: dict[str, list[bool]] = {}
        for shape, positions in _by_shape(example).items():
            members = self._members.get(shape) or self._met_first(shape, example, positions)
            for member in members:
                found.setdefault(member.words, []).append(member.is_printed(row, positions))
        if is_silent and _ANSWERS in found:
            found[_ANSWERS] = [False]  # others of its shape may be printed, this one is not
        for role in self._as_written.altered(example, texts, ends) if texts else ():
            if all(found.get(_content_of(role), ())):
                altered = self.altered.setdefault(role, Printed())
                altered.rows += 1
                altered.first = altered.first or location
        for words, printed in found.items():
            met = self._met[words]
            met.rows += 1
            met.is_printed = met.is_printed or any(printed)
            if not all(printed):
                met.lost += 1
                met.first = met.first or location

    def _met_first(self, shape: _Shape, example: Conversation, positions: list[int]) -> list[_Member]:
        role, names, _ = shape
        members = [_Member(name, f"{name} of {role} messages" if role else name) for name in names]
        for member in members:
            value = example.messages[positions[0]].get(member.name) if positions else example.tools
            self._met.setdefault(member.words, Printed(is_switch=isinstance(value, int | float)))
        return self._members.setdefault(shape, members)

    def lacking(self, is_over: bool) -> tuple[str, Location] | None:
        """A member of `NEEDED` that the template printed of no row, and the first row that has it. Before all rows are read (`is_over`)
        only where the template prints it of none whatever it holds."""
        needed = NEEDED if is_over else NEEDED[:1] if not self._template.prints_tool_calls else ()
        return next(((name, met.first) for name, met in self._met.items() if name in needed and not met.is_printed and met.first), None)

    def unprinted(self) -> dict[str, int]:
        """Members that were printed of no row, with the number of rows that have them."""
        return {name: met.rows for name, met in self._met.items() if not met.is_printed}

    def lost(self) -> Mapping[str, Printed]:
        """Members that some row has and the template does not print there."""
        return {name: met for name, met in self._met.items() if met.lost}


def _content_of(role: str) -> str:
    return f"content of {role} messages"


class _Row:
    """A conversation, rendered as far as its texts go."""

    def __init__(self, template: ChatTemplate, example: Conversation, ends: Sequence[int]) -> None:
        self._template = template
        self._example = example
        self._ends = sorted(ends)
        self._as_it_is: dict[int, str | None] = {}

    def prints(self, name: str, positions: list[int]) -> bool:
        """Whether the text that has the member last is another without it. Reasoning that is dropped of earlier turns stands in a text
        of its own."""
        last = positions[-1] if positions else 0
        end = next((end for end in self._ends if end >= last), len(self._example.messages) - 1) + 1
        if end not in self._as_it_is:
            self._as_it_is[end] = self._rendered(self._example, end)
        other = self._rendered(_without(self._example, name, positions), end)
        return other is None or other != self._as_it_is[end]

    def _rendered(self, example: Conversation, end: int) -> str | None:
        try:
            return self._template.render(example.messages[:end], example.tools)
        except TemplateRefusedRow:
            return None


def _by_shape(example: Conversation) -> dict[_Shape, list[int]]:
    """The positions of a conversation's messages, by their shapes."""
    found: dict[_Shape, list[int]] = {_TOOLS: []} if example.tools else {}
    last = len(example.messages) - 1
    for position, message in enumerate(example.messages):
        plain = len(message) == 2 and message["content"]
        found.setdefault((message["role"], ("content",) if plain else _given(message), position == last), []).append(position)
    return found


def _given(message: dict[str, Any]) -> tuple[str, ...]:
    """The members that hold something, in one order; the arguments of calls are one by themselves."""
    names = [name for name, value in message.items() if value not in _EMPTY and name != "role" and name not in _QUIET]
    if any(call["function"]["arguments"] for call in message.get("tool_calls", ())):
        names.append(_ARGUMENTS)
    return tuple(sorted(names))


def _without(example: Conversation, name: str, positions: list[int]) -> Conversation:
    """The conversation with another value of a member at some positions, or without it; without tools where there are no positions."""
    if not positions:
        return replace(example, tools=None)
    messages = list(example.messages)
    for position in positions:
        messages[position] = _changed(messages[position], name)
    return replace(example, messages=messages)


def _changed(message: dict[str, Any], name: str) -> dict[str, Any]:
    if name == "content":
        return {**message, name: _OTHER_TEXT}
    if name in _OTHER_CALL:  # another call and not none: a result that follows none is refused by templates
        return {
            **message,
            "tool_calls": [{**call, "function": {**call["function"], **_OTHER_CALL[name]}} for call in message["tool_calls"]],
        }
    return {kept: value for kept, value in message.items() if kept != name}
