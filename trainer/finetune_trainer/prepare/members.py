"""Members of conversations that a chat template does not print: nothing of them is asked or learnt, which must not go unsaid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow
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
_ARGUMENTS = "arguments in tool_calls"
_OTHER_CALL: dict[str, dict[str, Any]] = {"tool_calls": {"name": _OTHER_TEXT}, _ARGUMENTS: {"arguments": {_OTHER_TEXT: _OTHER_TEXT}}}
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_QUIET = frozenset({"tool_call_id"})
"""Says which call a result belongs to, which its place says as well: most templates print nothing of it."""

_Shape = tuple[str, frozenset[str], bool]
"""A message's role, the members that it holds something in, and whether it is the last: what templates branch on."""


@dataclass
class _Tries:
    """What was found of a member in messages of one shape."""

    met: int = 0
    tried: int = 0
    printed: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the next row is to be tried: among the first, where the tries differ, and else a sample."""
        return self.met <= _TRIED_ROWS or self.met % _SAMPLED_ROWS == 0 or 0 < self.printed < self.tried


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


@dataclass(frozen=True)
class _Member:
    """A member of all messages of one shape in a conversation; the conversation's tools where there is no shape."""

    name: str
    shape: _Shape | None = None
    positions: tuple[int, ...] = ()
    value: Any = None

    @property
    def words(self) -> str:
        return f"{self.name} of {self.shape[0]} messages" if self.shape else self.name


class PrintedMembers:
    """Watches the conversations of one data set: rendered once more with another value, is the text another?

    Messages of one shape are treated alike by templates, so some rows of each shape are tried, and the others counted with them.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tries: dict[tuple[str, _Shape | None], _Tries] = {}
        self._met: dict[str, Printed] = {}

    def look(self, example: Conversation, ends: Sequence[int], location: Location) -> None:
        """`ends`: positions of the messages that the row's texts end with."""
        row = _Row(self._template, example, ends)
        found: dict[str, list[bool]] = {}
        for member in _members(example):
            found.setdefault(member.words, []).append(self._is_printed(member, row))
            self._met.setdefault(member.words, Printed(is_switch=isinstance(member.value, int | float)))
        for words, printed in found.items():
            met = self._met[words]
            met.rows += 1
            met.is_printed = met.is_printed or any(printed)
            if not all(printed):
                met.lost += 1
                met.first = met.first or location

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

    def _is_printed(self, member: _Member, row: _Row) -> bool:
        tries = self._tries.setdefault((member.name, member.shape), _Tries())
        tries.met += 1
        if tries.is_due:
            tries.tried += 1
            printed = row.prints(member)
            tries.printed += printed
            return printed
        return tries.printed > 0


class _Row:
    """A conversation, rendered as far as its texts go."""

    def __init__(self, template: ChatTemplate, example: Conversation, ends: Sequence[int]) -> None:
        self._template = template
        self._example = example
        self._ends = sorted(ends)
        self._as_it_is: dict[int, str | None] = {}

    def prints(self, member: _Member) -> bool:
        """Whether the text that has the member last is another without it. Reasoning that is dropped of earlier turns stands in a text
        of its own."""
        after = member.positions[-1] if member.positions else 0
        end = next((end for end in self._ends if end >= after), len(self._example.messages) - 1) + 1
        if end not in self._as_it_is:
            self._as_it_is[end] = self._rendered(self._example, end)
        other = self._rendered(_without(self._example, member), end)
        return other is None or other != self._as_it_is[end]

    def _rendered(self, example: Conversation, end: int) -> str | None:
        try:
            return self._template.render(example.messages[:end], example.tools)
        except TemplateRefusedRow:
            return None


def _members(example: Conversation) -> Iterator[_Member]:
    """Each member that holds something, by the shape of the messages that have it."""
    if example.tools:
        yield _Member("tools")
    by_shape: dict[_Shape, list[int]] = {}
    for position, message in enumerate(example.messages):
        given = frozenset(name for name, value in message.items() if value not in _EMPTY)
        by_shape.setdefault((message["role"], given, position == len(example.messages) - 1), []).append(position)
    for shape, positions in by_shape.items():
        for name in sorted(shape[1] - _QUIET - {"role"}):
            yield _Member(name, shape, tuple(positions), example.messages[positions[0]][name])
        called = tuple(position for position in positions if _has_arguments(example.messages[position]))
        if called:
            yield _Member(_ARGUMENTS, shape, called)


def _has_arguments(message: dict[str, Any]) -> bool:
    return any(call["function"]["arguments"] for call in message.get("tool_calls", ()))


def _without(example: Conversation, member: _Member) -> Conversation:
    """The conversation with another value of the member, or without it."""
    if member.shape is None:
        return replace(example, tools=None)
    messages = list(example.messages)
    for position in member.positions:
        messages[position] = _changed(messages[position], member.name)
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
