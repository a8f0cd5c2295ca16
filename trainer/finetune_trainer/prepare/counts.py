"""What became of a data set's rows, and where it first happened to one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from finetune_trainer.prepare.json_text import MAX_DEPTH
from finetune_trainer.prepare.records import Location

WANTED_DROPS = frozenset({"Duplicate", "InTestSplit"})
"""Reasons for which a row is dropped on purpose: it is there once more."""

_CURES = {
    "SystemRefusedByTemplate": "the chat template takes no system message: set model.chatTemplate to one that does, remove the system messages "
    "(systemMessage where the job adds them), or write their text before the first user message",
    "ControlTokens": "control tokens in these texts cannot be written as text with this tokenizer",
    "InvalidToolCall": "a call needs a name and its arguments as a JSON object, which names each member once, whose numbers are finite and "
    f"which is nested at most {MAX_DEPTH} levels deep",
    "NotText": "content in parts needs parts of type text, each with its text; take other parts out",
}


@dataclass
class DatasetCounts:
    rows_in: int = 0
    grouped: int = 0
    """Rows that hold a value in the groupBy column."""
    rows_out: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, Location] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    """More of the first row of a reason: what the template said when it refused it, what a role is called."""
    truncated: int = 0
    cleaned: int = 0
    """Rows that lost control characters."""
    split_at_answer: int = 0
    """Rows whose prompt and answer a token would have joined."""
    quoting: int = 0
    """Rows whose messages hold control tokens, as text."""
    conversations: int = 0
    texts: int = 0
    """What the conversations became: more than they are where the template rewrites earlier turns."""
    text_tokens: int = 0
    last_text_tokens: int = 0
    """Of the texts that hold a conversation's last answer."""
    format: str = ""
    revision: str | None = None

    def drop(self, reason: str, location: Location, words: str | None = None) -> None:
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, location)
        if words:
            self.words.setdefault(reason, words)

    @property
    def useless(self) -> int:
        """Rows that were dropped because they could not be used."""
        return sum(number for reason, number in self.dropped.items() if reason not in WANTED_DROPS)

    def dropped_words(self) -> str:
        """Each reason with its number, the place of its first row, and what to do about it."""
        reasons = sorted(self.dropped, key=lambda reason: (reason in WANTED_DROPS, reason))
        return "; ".join(self._reason_words(reason) for reason in reasons) or "none dropped"

    def _reason_words(self, reason: str) -> str:
        said = f", where {self.words[reason]}" if reason in self.words else ""
        cure = f" ({_CURES[reason]})" if reason in _CURES else ""
        return f"{reason}: {self.dropped[reason]}, first in {self.first_dropped[reason].place}{said}{cure}"
