"""Where the answers of a conversation stand in what a chat template makes of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow

Span = tuple[int, int]
"""A half-open range of characters."""

_FEW_TURNS = 3
_OPEN, _CLOSE = "\ufdd2", "\ufdd3"
_ANY = re.compile(f"[{_OPEN}{_CLOSE}]")


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
    whole = _Whole(last.text, finder.cores(last.text) if len(turns) > _FEW_TURNS else None)
    found: list[_Answer] = []
    for turn in turns[:-1]:
        found.append(whole.standing(turn) or whole.learn(finder.rendered(turn)))
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

    def cores(self, whole: str) -> list[Span] | None:
        """Where each message's content stands in the whole conversation, white space around it aside; None where that cannot be told."""
        contents = [str(message["content"]).strip() for message in self._messages]
        marked = [_around(message, core) for message, core in zip(self._messages, contents, strict=True)]
        try:
            text = self._template.render(marked, self._tools)
        except TemplateRefusedRow:
            return None
        marks = [found.start() for found in _ANY.finditer(text)]
        if _ANY.sub("", text) != whole or len(marks) != 2 * len(contents):
            return None
        spans = [(first - 2 * pair, last - 2 * pair - 1) for pair, (first, last) in enumerate(zip(marks[::2], marks[1::2], strict=True))]
        return spans if [whole[start:end] for start, end in spans] == contents else None


def _around(message: dict[str, Any], core: str) -> dict[str, Any]:
    """The message with marks around its content, inside its outer white space: templates that trim do so as without them."""
    content = str(message["content"])
    start = content.index(core)
    return {**message, "content": f"{content[:start]}{_OPEN}{core}{_CLOSE}{content[start + len(core) :]}"}


class _Whole:
    """The whole conversation, in which an answer is found without rendering anew where the template wrote the same around another one.

    Two renderings for each answer would make the time grow with the square of the turns.
    """

    def __init__(self, text: str, cores: list[Span] | None) -> None:
        self._text = text
        self._cores = cores
        self._known: dict[tuple[str, str], Span] = {}

    def standing(self, turn: int) -> _Answer | None:
        """The answer, where what stands around it was met before."""
        around = self._around(turn)
        if around is None or around not in self._known or self._cores is None:
            return None
        after_question, after_answer = self._known[around]
        return _Answer(turn, self._text, (self._cores[turn - 1][1] + after_question, self._cores[turn][1] + after_answer))

    def learn(self, answer: _Answer) -> _Answer:
        around = self._around(answer.turn)
        start, end = answer.span
        if around is not None and self._cores is not None and self._text.startswith(answer.text[:end]):
            place = (start - self._cores[answer.turn - 1][1], end - self._cores[answer.turn][1])
            if 0 <= place[0] <= len(around[0]) and 0 <= place[1] <= len(around[1]):
                self._known[around] = place
            return _Answer(answer.turn, self._text, answer.span)
        return answer

    def _around(self, turn: int) -> tuple[str, str] | None:
        """What the template wrote between the question and the answer, and after the answer."""
        if self._cores is None or turn == 0:
            return None
        start, end = self._cores[turn]
        following = self._cores[turn + 1][0] if turn + 1 < len(self._cores) else len(self._text)
        return self._text[self._cores[turn - 1][1] : start], self._text[end:following]
