"""Content that does not come out of a chat template as it went in: thoughts between tags that it cuts away, words that it replaces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property

from finetune_trainer.prepare.rows import Conversation


class AsWritten:
    """Looks for each message's content in the texts of its row. What a template does to white space, and JSON's own way of writing a text,
    take nothing away from it."""

    def __init__(self) -> None:
        self._manner: dict[str, int] = {}
        """By role: in which manner its contents were found last."""

    def altered(self, example: Conversation, texts: Sequence[str], ends: Sequence[int]) -> set[str]:
        """Roles of which some content is not in the row's text as a whole. `ends`: positions of the messages that the texts end with;
        of what lies behind the last of them nothing is said."""
        found = sorted(zip(ends, map(_Text, texts), strict=True), key=lambda pair: pair[0])
        altered: set[str] = set()
        for position, message in enumerate(example.messages):
            role, text = message["role"], next((text for end, text in found if end >= position), None)
            if text is None:
                break
            if role not in altered and not self._is_whole(role, str(message["content"]).strip(), text):
                altered.add(role)
        return altered

    def _is_whole(self, role: str, content: str, text: _Text) -> bool:
        """Tried first in the manner that was right before: each other one goes through the whole text in vain."""
        likely = self._manner.get(role, 0)
        for manner in sorted(range(len(_MANNERS)), key=lambda manner: manner != likely):
            if _MANNERS[manner](text, content):
                self._manner[role] = manner
                return True
        return False


class _Text:
    """A text in which contents are looked for in the order in which they stand, so that it is gone through once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._after: dict[bool, int] = {False: 0, True: 0}

    @cached_property
    def _squeezed(self) -> str:
        return _without_space(self._text)

    def holds(self, content: str, squeezed: bool) -> bool:
        text = self._squeezed if squeezed else self._text
        start = text.find(content, self._after[squeezed])
        if start < 0:  # a template may put it before what came before it
            return content in text
        self._after[squeezed] = start + len(content)
        return True


def _without_space(text: str) -> str:
    return "".join(text.split())


def _in_json(content: str, ascii_only: bool) -> str:
    return _without_space(json.dumps(content, ensure_ascii=ascii_only)[1:-1])


_MANNERS: tuple[Callable[[_Text, str], bool], ...] = (
    lambda text, content: text.holds(content, squeezed=False),
    lambda text, content: text.holds(_without_space(content), squeezed=True),
    lambda text, content: text.holds(_in_json(content, ascii_only=False), squeezed=True),
    lambda text, content: text.holds(_in_json(content, ascii_only=True), squeezed=True),
)
