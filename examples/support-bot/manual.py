"""The example's data: a manual of a heat pump that does not exist, as questions and answers. Standard library only.

No model can have read about this machine, so whatever is answered right was learned from these rows. A document is one page: a fact,
or a code of the display. A code is a letter for the part and a digit for what is wrong with it, and no page says so: a model that has
learned it from some codes knows the others.

    python3 manual.py --output data
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MACHINE = "Tarn 5"

# A letter says nothing of its part by itself (it is not its initial), else the untrained model would guess right.
PARTS = {
    "B": "outdoor fan",
    "D": "inlet valve",
    "E": "water pump",
    "G": "flow sensor",
    "N": "drain hose",
    "J": "mixing valve",
    "L": "heat exchanger",
    "M": "air filter",
    "P": "buffer tank",
    "R": "control board",
    "T": "backup heater",
    "X": "pressure switch",
}
FAULTS = {
    "0": "is not connected",
    "1": "is blocked",
    "2": "is leaking",
    "3": "is frozen",
    "4": "is too hot",
    "5": "is worn out",
    "6": "makes a noise",
    "7": "is loose",
    "8": "is too wet",
    "9": "needs cleaning",
}
CODE_PHRASINGS = ("What does code {code} mean?", "The display shows {code}. Why?", "{code}?")

FACTS = {
    "warranty period": "Thirty months from the day of delivery.",
    "weight": "Eighty-four kilograms without water.",
    "sound level": "Forty-one decibels at three metres.",
    "refrigerant": "Propane, nine hundred grams of it.",
    "filter interval": "Every four months, and after each flood.",
    "place of the serial number": "Inside the left door, below the fuse.",
    "highest water temperature": "Sixty-eight degrees, at any weather.",
    "size of the fuse": "Twenty amperes, of the slow kind.",
    "service telephone": "Call 0555 7312, on weekdays until six.",
    "standby power": "Seven watts with the display dark.",
    "return policy": "Within fifty days, in its own box.",
    "list of spare parts": "On page ninety of the red booklet.",
    "tank volume": "Two hundred and ten litres of water.",
    "pairing code": "Hold both arrows until it blinks twice.",
    "colour options": "Slate grey, moss green or plain white.",
    "delivery time": "Eleven working days, by freight.",
}
FACT_PHRASINGS = (
    f"What is the {{topic}} of the {MACHINE}?",
    "Tell me the {topic}.",
    "I need to know the {topic}, please.",
    "{topic}?",
)
HELD_OUT_PHRASINGS = ("Could you look up the {topic} of my heat pump?", "Which {topic} does the manual give?")
"""Ways to ask for a fact that are never trained on: facts are tested with them."""


@dataclass(frozen=True)
class Page:
    """A page of the manual: what is asked for, in the words that a phrasing puts in, and the answer."""

    document: str
    asked: dict[str, str]
    answer: str


def fact_pages() -> list[Page]:
    return [Page(f"fact/{topic}", {"topic": topic}, answer) for topic, answer in FACTS.items()]


def code_pages() -> list[Page]:
    """All codes in an order that follows from their names alone, like nothing that could be learned."""
    pages = [
        Page(f"code/{letter}{digit}", {"code": f"{letter}{digit}"}, f"The {part} {fault}.")
        for letter, part in PARTS.items()
        for digit, fault in FAULTS.items()
    ]
    return sorted(pages, key=lambda page: hashlib.sha256(page.document.encode()).digest())


def shuffled(pages: list[Page]) -> list[Page]:
    """The same answers, each dealt to another page: what is left to learn is how an answer looks."""
    return [Page(page.document, page.asked, other.answer) for page, other in zip(pages, [*pages[1:], pages[0]], strict=True)]


def write_data(folder: Path) -> None:
    """Writes `facts/{train,test}.jsonl` and `questions/train.jsonl`; below `shuffled/` the control, which is tested on true facts."""
    facts, codes = fact_pages(), code_pages()
    _write_sets(facts, codes, folder)
    _write_sets(shuffled(facts), shuffled(codes), folder / "shuffled")


def _write_sets(facts: list[Page], codes: list[Page], folder: Path) -> None:
    _write_rows(folder / "facts/train.jsonl", (row(page, phrasing) for page in facts for phrasing in FACT_PHRASINGS))
    _write_rows(folder / "facts/test.jsonl", (row(page, phrasing) for page in fact_pages() for phrasing in HELD_OUT_PHRASINGS))
    _write_rows(folder / "questions/train.jsonl", (row(page, phrasing) for page in codes for phrasing in CODE_PHRASINGS))


def row(page: Page, phrasing: str) -> dict[str, object]:
    """A row of format Messages with the document it is about."""
    return {
        "document": page.document,
        "messages": [
            {"role": "user", "content": phrasing.format(**page.asked)},
            {"role": "assistant", "content": page.answer},
        ],
    }


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write facts/, questions/ and shuffled/ in")
    write_data(parser.parse_args().output)
