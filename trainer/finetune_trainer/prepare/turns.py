"""Where the answers of a conversation stand in what a chat template makes of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow

Span = tuple[int, int]
"""A half-open range of characters."""

_Cores = list[Span | None]
_Shape = frozenset[str]
"""Members of an answer that hold something: a template that drops one of them later on (reasoning) rewrites the answers that have it."""

_FEW_TURNS = 3
_OPEN, _CLOSE = "\ufdd2", "\ufdd3"
_ANY = re.compile(f"[{_OPEN}{_CLOSE}]")
_SLOT = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_MOST_KNOWN = 32
"""Manners in which answers of one shape are remembered to stand; more of them would be looked through for each answer."""


class TemplateUnsplittable(Exception):
    """The generation prompt is not how an answered turn begins: what is served would differ from what is trained."""


@dataclass(frozen=True)
class Chain:
    """A text and the answers that stand in it as they were generated: messages' positions with their spans, ends of turn included."""

    text: str
    answers: list[tuple[int, Span]]


@dataclass(frozen=True)
class _Answer:
    turn: int
    text: str
    """The conversation up to this answer, or one that goes on after it."""
    span: Span


def find_answers(
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    turns: Sequence[int],
    end_of: Callable[[str, int], int],
    longest: int = sys.maxsize,
) -> list[Chain]:
    """The answers at `turns` (positions among `messages`, ascending), in as few texts as hold each of them as it was generated.

    One, unless the template rewrites earlier turns once later ones follow (reasoning that is dropped). `end_of(text, start)`: where the
    answer that begins at `start` of a text and is its last ends. `longest`: characters of a text beyond which no answer is looked for.

    Errors: TemplateUnsplittable, TemplateRefusedRow.
    """
    finder = _Finder(template, messages[: turns[-1] + 1], tools, end_of)
    last = finder.rendered(turns[-1])
    whole = _Whole(last.text, finder.cores(last.text) if len(turns) > _FEW_TURNS else None, end_of, messages)
    found: list[_Answer] = []
    for turn in turns[:-1]:
        shape = frozenset(name for name, value in messages[turn].items() if value)
        found.append(whole.standing(turn, shape) or whole.learn(finder.rendered(turn), shape))
        if found[-1].span[0] > longest:
            return _chained(found)
    return _chained([*found, last])


def _chained(answers: Sequence[_Answer]) -> list[Chain]:
    chains: list[Chain] = []
    for answer in answers:
        before = chains[-1] if chains else None
        if before and (answer.text is before.text or answer.text.startswith(before.text[: before.answers[-1][1][1]])):
            chains[-1] = Chain(answer.text, [*before.answers, (answer.turn, answer.span)])
        else:
            chains.append(Chain(answer.text, [(answer.turn, answer.span)]))
    return chains


class _Finder:
    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        end_of: Callable[[str, int], int],
    ) -> None:
        self._template = template
        self._messages = messages
        self._tools = tools
        self._end_of = end_of

    def rendered(self, turn: int) -> _Answer:
        """An answer by two renderings: up to the generation prompt, and with it."""
        asked = self._template.render(self._messages[:turn], self._tools, add_generation_prompt=True)
        answered = self._template.render(self._messages[: turn + 1], self._tools)
        if not answered.startswith(asked):
            raise TemplateUnsplittable
        return _Answer(turn, answered, (len(asked), self._end_of(answered, len(asked))))

    def cores(self, whole: str) -> _Cores | None:
        """Where each message's content stands in the whole conversation, white space around it aside; None where that cannot be told.
        A message without content (one of calls) has no place: marks would make something of it."""
        contents = [str(message["content"]).strip() for message in self._messages]
        marked = [_around(message, core) if core else message for message, core in zip(self._messages, contents, strict=True)]
        try:
            text = self._template.render(marked, self._tools)
        except TemplateRefusedRow:
            return None
        marks = [found.start() for found in _ANY.finditer(text)]
        if _ANY.sub("", text) != whole or len(marks) != 2 * sum(map(bool, contents)):
            return None
        spans = ((first - 2 * pair, last - 2 * pair - 1) for pair, (first, last) in enumerate(zip(marks[::2], marks[1::2], strict=True)))
        cores = [next(spans) if content else None for content in contents]
        return cores if all(core is None or whole[slice(*core)] == said for core, said in zip(cores, contents, strict=True)) else None


def _around(message: dict[str, Any], core: str) -> dict[str, Any]:
    """The message with marks around its content, inside its outer white space: templates that trim do so as without them."""
    content = str(message["content"])
    start = content.index(core)
    return {**message, "content": f"{content[:start]}{_OPEN}{core}{_CLOSE}{content[start + len(core) :]}"}


class _Whole:
    """The whole conversation, in which an answer is found without rendering anew where the template wrote the same before and after
    another one of its shape: what the answers say, their calls and reasoning included, may differ, and so may what the messages around
    them have beside their content (a call's id, a name), and the number of a turn.

    Two renderings for each answer would make the time grow with the square of the turns.
    """

    def __init__(self, text: str, cores: _Cores | None, end_of: Callable[[str, int], int], messages: Sequence[dict[str, Any]]) -> None:
        self._text = text
        self._cores = cores
        self._end_of = end_of
        self._messages = messages
        self._known: dict[_Shape, set[tuple[str, str]]] = {}

    def standing(self, turn: int, shape: _Shape) -> _Answer | None:
        """The answer, where what stands before and after it was met before, and in one way only."""
        around, known = self._between(turn), self._known.get(shape)
        if around is None or not known:
            return None
        slots = _slots(self._messages, turn)
        spans = {span for before, after in known if (span := self._within(around, _filled(before, slots), _filled(after, slots)))}
        return _Answer(turn, self._text, spans.pop()) if len(spans) == 1 else None

    def learn(self, answer: _Answer, shape: _Shape) -> _Answer:
        around, (start, end) = self._between(answer.turn), answer.span
        if around is None or not self._text.startswith(answer.text[:end]):
            return answer
        known = self._known.setdefault(shape, set())
        if around[0] <= start and end <= around[1] and len(known) < _MOST_KNOWN:
            slots = _slots(self._messages, answer.turn)
            known.add((_with_slots(self._text[around[0] : start], slots), _with_slots(self._text[end : around[1]], slots)))
        return _Answer(answer.turn, self._text, answer.span)

    def _between(self, turn: int) -> Span | None:
        """From the end of the question's content to the beginning of what follows the answer; the answer lies between."""
        if self._cores is None or turn == 0:
            return None
        question = self._cores[turn - 1]
        following = self._cores[turn + 1] if turn + 1 < len(self._cores) else (len(self._text), 0)
        return (question[1], following[0]) if question and following else None

    def _within(self, around: Span, before: str | None, after: str | None) -> Span | None:
        """Where an answer begins and ends of which only that much is not its own; None where something else stands there, or where it
        does not end there."""
        if before is None or after is None:
            return None
        start, end = around[0] + len(before), around[1] - len(after)
        same = start < end and self._text.startswith(before, around[0]) and self._text.endswith(after, around[0], around[1])
        return (start, end) if same and self._end_of(self._text[start:end], 0) == end - start else None


def _slots(messages: Sequence[dict[str, Any]], turn: int) -> dict[str, str]:
    """What the messages around an answer have beside their content, and the numbers of its turn, by where it stands in them."""
    numbers = {f"turn + {more}": str(turn + more) for more in range(-1, 3)} | {
        f"round + {more}": str(turn // 2 + more) for more in range(3)
    }
    near = {place: messages[turn + place] for place in (-1, 0, 1) if turn + place < len(messages)}
    members = {f"{place}.{name}": value for place, message in near.items() for name, value in message.items() if name not in _PLAIN}
    return {**dict(_texts_in(members)), **numbers}


_PLAIN = ("role", "content")


def _texts_in(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Texts and numbers of a value with their places."""
    if isinstance(value, dict | list):
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts_in(member, f"{place}.{name}")
    elif isinstance(value, str | int | float):
        yield place, str(value)


def _with_slots(text: str, slots: Mapping[str, str]) -> str:
    """The text with each value of `slots` in it replaced by where it stands, the longer one first."""
    places = {value: place for place, value in slots.items() if value and value in text}
    if not places:
        return text
    longest_first = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.sub(longest_first, lambda found: f"{_OPEN}{places[found[0]]}{_CLOSE}", text)


def _filled(text: str, slots: Mapping[str, str]) -> str | None:
    """A text `_with_slots` with the values of another turn; None where that lacks one."""
    if any(place not in slots for place in _SLOT.findall(text)):
        return None
    return _SLOT.sub(lambda found: slots[found[1]], text)
