"""The example's data: what the support of a heat pump knows that does not exist. Standard library only.

No model can have read of this machine or of who answers for it, so whatever is right was learned from these rows. A document is a fact
of the manual, or a ticket: what a customer wrote, and the desk that answers such things. A model that has learned from some tickets
which desk answers what sends others, which it has never seen, to the right one.

    python3 manual.py --output data
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

MACHINE = "Tarn 5"

# What customers write, by the desk that answers it. A desk's name says nothing of its subject, so an untrained model can only guess.
TICKETS = {
    "Maple": (  # noise
        "The unit hums all night long.",
        "There is a rattling sound when it starts.",
        "My neighbour complains that the fan is loud.",
        "I hear a squeal every few minutes.",
        "It bangs twice and then goes quiet.",
        "A buzzing keeps the children awake.",
        "The machine roars like a lorry.",
        "Something clicks inside the whole day.",
        "It whistles when the wind blows.",
        "The vibration can be heard in the bedroom.",
        "Is a grinding noise normal?",
        "It has become so noisy that we cannot talk.",
    ),
    "Cedar": (  # leaks
        "Water is dripping on the floor.",
        "There is a puddle under the machine.",
        "A pipe joint is leaking.",
        "The carpet next to it is soaked.",
        "Drops run down the left side.",
        "The cellar was flooded this morning.",
        "A hose has burst and everything is wet.",
        "The seal of the tank lets water through.",
        "I must empty a bucket under the valve each day.",
        "There is a damp stain on the wall behind it.",
        "Water trickles out of the bottom.",
        "The drain overflows.",
    ),
    "Birch": (  # app, network
        "The app cannot find the device.",
        "My phone loses the connection.",
        "I forgot the password of my account.",
        "The wireless network is not listed.",
        "After the update the app crashes.",
        "How do I log in on a second phone?",
        "The screen of the app stays empty.",
        "Bluetooth pairing fails.",
        "I get no notifications on my tablet.",
        "The new router has another Wi-Fi name.",
        "Can I control it from my computer?",
        "The website says that my login is wrong.",
    ),
    "Walnut": (  # money
        "My invoice shows the wrong amount.",
        "I was charged twice.",
        "Can I pay in monthly instalments?",
        "The bank refused the direct debit.",
        "Please send the receipt again.",
        "Where do I enter my credit card?",
        "The tax number on the bill is missing.",
        "When do I get the discount that was promised?",
        "I have received a payment reminder.",
        "How much do I still owe you?",
        "The price on the bill is too high.",
        "I have transferred the money already.",
    ),
    "Hazel": (  # delivery
        "My parcel has not arrived.",
        "Can the lorry come on Saturday?",
        "The courier left the box in the rain.",
        "Where is my shipment now?",
        "The tracking number does not work.",
        "Please send it to another address.",
        "The package was damaged on the way.",
        "How long does shipping take?",
        "The driver could not find our house.",
        "Half of the order is missing from the boxes.",
        "Do you deliver to islands?",
        "Nobody was at home when the carrier came.",
    ),
    "Linden": (  # appointments
        "I need to move my appointment to Tuesday.",
        "The technician did not show up.",
        "When can a fitter visit us?",
        "Please book the yearly inspection.",
        "At what time does the engineer arrive?",
        "I want to cancel the visit of tomorrow.",
        "Is a slot free in the morning?",
        "Nobody rang to arrange a date.",
        "Can the mechanic come after work hours?",
        "The maintenance visit is overdue.",
        "We are away on the day that you proposed.",
        "Please confirm the date of the installation.",
    ),
    "Poplar": (  # cold house
        "The house stays cold.",
        "My radiators are only lukewarm.",
        "The living room does not get above sixteen degrees.",
        "We are freezing in here.",
        "There is no heating since yesterday.",
        "The bedroom is warm but the kitchen is chilly.",
        "The floor heating does not get warm.",
        "It takes all day to warm the rooms.",
        "The thermostat is set to twenty and it is fourteen inside.",
        "My baby's room is too cold.",
        "The heat goes off in the evening.",
        "Upstairs no radiator heats.",
    ),
    "Juniper": (  # electricity
        "The fuse blows whenever it starts.",
        "It uses too much electricity.",
        "The circuit breaker trips.",
        "I got an electric shock from the case.",
        "Which cable do I need for the power supply?",
        "After the blackout it stays dead.",
        "My power meter runs like mad.",
        "Can I connect it to my solar panels?",
        "How many kilowatts does it draw?",
        "The plug is warm and sparks.",
        "Does it run on a three-phase socket?",
        "The voltage in our village is unstable.",
    ),
    "Chestnut": (  # ice and snow
        "The outdoor unit is covered with ice.",
        "Snow blocks the air inlet.",
        "Icicles hang from the grille.",
        "It does not defrost in winter.",
        "The fan blades are frozen.",
        "May I scrape the frost off?",
        "A block of ice grows under it.",
        "Should I put a roof over it against snow?",
        "Hoarfrost covers the back after each night.",
        "The blizzard has buried it.",
        "Frozen rain sticks to the coil.",
        "How do I thaw the outdoor unit?",
    ),
    "Acacia": (  # smell and smoke
        "It smells of burnt plastic.",
        "Smoke comes out of the top.",
        "There is a stench like rotten eggs.",
        "I can smell something scorched.",
        "The air that comes out stinks.",
        "A chemical odour fills the hall.",
        "It smells mouldy since last week.",
        "Our smoke alarm went off next to it.",
        "There is a strange scent when it heats.",
        "Fumes came out when I opened the door.",
        "It reeks of oil.",
        "A musty smell comes from the vents.",
    ),
}
TICKET_PHRASINGS = ("{ticket}", "A customer writes: {ticket} Who helps?")

FACTS = {
    "warranty period": "Thirty months from the day of delivery.",
    "weight": "Eighty-four kilograms without water.",
    "refrigerant": "Propane, nine hundred grams of it.",
    "place of the serial number": "Inside the left door, below the fuse.",
    "highest water temperature": "Sixty-eight degrees, at any weather.",
    "opening time of the service": "On weekdays from seven until six.",
    "tank volume": "Two hundred and ten litres of water.",
    "pairing code": "Hold both arrows until it blinks twice.",
}
FACT_PHRASINGS = (
    f"What is the {{topic}} of the {MACHINE}?",
    "Tell me the {topic}.",
    "I need to know the {topic}, please.",
    "{topic}?",
    "Do you know the {topic} of this heat pump?",
    "Please read me the {topic} from the manual.",
)
HELD_OUT_PHRASINGS = (
    "Could you look up the {topic} of my heat pump?",
    "Which {topic} does the manual give?",
    "I have forgotten the {topic}. What is it?",
    "Can you find out the {topic} for me?",
)
"""Ways to ask for a fact that are never trained on: facts are tested with them."""


@dataclass(frozen=True)
class Document:
    """What is asked for, in the words that a phrasing puts in, and the answer."""

    name: str
    asked: dict[str, str]
    answer: str


def facts() -> list[Document]:
    return [Document(f"fact/{topic}", {"topic": topic}, answer) for topic, answer in FACTS.items()]


def tickets() -> list[Document]:
    """All tickets in an order that follows from their words alone, so that neighbours have nothing in common."""
    found = [
        Document(f"ticket/{ticket}", {"ticket": ticket}, f"Ask desk {desk}.") for desk, written in TICKETS.items() for ticket in written
    ]
    return sorted(found, key=lambda document: hashlib.sha256(document.name.encode()).digest())


def shuffled(documents: list[Document]) -> list[Document]:
    """The same answers, each dealt to the next document: what is left to learn is how an answer looks."""
    dealt = [*documents[1:], documents[0]]
    return [replace(document, answer=other.answer) for document, other in zip(documents, dealt, strict=True)]


def write_data(folder: Path) -> None:
    """Writes `facts/{train,test}.jsonl` and `questions/train.jsonl`; below `shuffled/` the control, which is tested on true facts."""
    _write_sets(facts(), tickets(), folder)
    _write_sets(shuffled(facts()), shuffled(tickets()), folder / "shuffled")


def _write_sets(trained: list[Document], asked: list[Document], folder: Path) -> None:
    _write_rows(folder / "facts/train.jsonl", _rows(trained, FACT_PHRASINGS))
    _write_rows(folder / "facts/test.jsonl", _rows(facts(), HELD_OUT_PHRASINGS))
    _write_rows(folder / "questions/train.jsonl", _rows(asked, TICKET_PHRASINGS))


def _rows(documents: list[Document], phrasings: Iterable[str]) -> list[dict[str, object]]:
    """Rows of format Messages, each with the document that it is about."""
    return [
        {
            "document": document.name,
            "messages": [
                {"role": "user", "content": phrasing.format(**document.asked)},
                {"role": "assistant", "content": document.answer},
            ],
        }
        for document in documents
        for phrasing in phrasings
    ]


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write facts/, questions/ and shuffled/ in")
    write_data(parser.parse_args().output)
