"""A few objects kept for a while, bounded by number and by bytes."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field

from finetune_operator.core.names import Object

Key = tuple[str, str, str]


@dataclass
class Cache:
    """Objects (None: known to be absent) with the moment they were read at, as JSON text; those set longest ago go first."""

    entries: int
    bytes: int
    size: int = 0
    """Bytes of text that are held."""
    _held: OrderedDict[Key, tuple[float, str | None]] = field(default_factory=OrderedDict)

    def get(self, key: Key) -> tuple[float, Object | None] | None:
        held = self._held.get(key)
        if held is None:
            return None
        moment, text = held
        return moment, None if text is None else json.loads(text)

    def __setitem__(self, key: Key, value: tuple[float, Object | None]) -> None:
        """Holds a copy, unless it alone is too large."""
        self.pop(key)
        moment, live = value
        text = None if live is None else json.dumps(live, separators=(",", ":"))
        self._held[key] = moment, text
        self.size += _size(text)
        while len(self._held) > self.entries or self.size > self.bytes:
            self.pop(next(iter(self._held)))

    def pop(self, key: Key, default: None = None) -> None:
        """Forgets an object; nothing where it is not held."""
        held = self._held.pop(key, None)
        if held is not None:
            self.size -= _size(held[1])


def _size(text: str | None) -> int:
    # json.dumps writes ASCII: a character is a byte
    return len(text) if text else 0
