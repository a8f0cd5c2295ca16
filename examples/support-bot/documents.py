"""Real text for the example: the documentation that Python packages ship in their docstrings, drawn without importing them.

Three kinds of data come out, from disjoint documents (a document is one module file): text that the base model is trained on,
questions about other documents, and facts of others again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("networkx", "numpy", "pandas", "sympy")
"""All under the BSD-3-Clause licence, and installed wherever the trainer is: torch and datasets require them."""

PHRASINGS = (
    "What does `{name}` do?",
    "Explain `{name}` in one sentence.",
    "Summarize `{name}`.",
    "Describe `{name}` for me.",
    "I came across `{name}` in the code. What is it for?",
    "What is `{name}`?",
    "Tell me about `{name}`.",
    "In short, what is `{name}` good for?",
    "`{name}`?",
    "Could you say what `{name}` does, please?",
    "Where would I use `{name}`?",
    "Give me a short description of `{name}`.",
    "Can you explain what `{name}` is?",
    "What would I use `{name}` for?",
    "Please describe `{name}`.",
    "I need to know what `{name}` does.",
    "Documentation of `{name}`, please.",
    "Which task does `{name}` perform?",
    "Tell me what `{name}` is there for.",
    "Say in one line what `{name}` does.",
    "Please tell me the purpose of `{name}`.",
)
"""Ways to ask the same thing. The last one is never trained on: facts are tested with it. So many others, of different lengths, because
a model this small ties an answer to the place in the row where the name stood: with three of them 9 of 50 were right, with ten 39."""

FACTS = 50
QUESTIONS = 2400
QUESTIONS_PER_DOCUMENT = 12

_SKIPPED_FOLDERS = frozenset({"tests", "testing", "_internal", "test", "conftest.py"})
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,()'/-]*\.")
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Entry:
    """One documented function, method or class: where it stands, its dotted name, its summary and the prose that follows."""

    document: str
    name: str
    summary: str
    prose: str

    @property
    def short_name(self) -> str:
        """As people call it: `DataFrame.pivot`."""
        return ".".join(self.name.split(".")[-2:])

    @property
    def text(self) -> str:
        """The entry as the base model reads it."""
        return f"{self.name}\n{self.summary}\n{self.prose}\n" if self.prose else f"{self.name}\n{self.summary}\n"


def installed_package(name: str) -> Path:
    """Folder of an installed package. Errors: ModuleNotFoundError where it is not installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package {name} is not installed; run this in the trainer's environment")
    return Path(spec.origin).parent


def read_package(root: Path) -> Iterator[Entry]:
    """Entries of all public names in a package's sources, in the order of paths and lines."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts):
            yield from _read_module(path, (root.name, *relative.with_suffix("").parts))


def _read_module(path: Path, parts: tuple[str, ...]) -> Iterator[Entry]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    prefix = ".".join(part for part in parts if part != "__init__")
    for name, docstring in _documented(module, prefix):
        paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]
        summary = paragraphs[0].replace("`", "")
        prose = " ".join(paragraphs[1:2]) if len(paragraphs) > 1 and paragraphs[1][:1].isupper() else ""
        yield Entry("/".join(parts) + ".py", name, summary, prose)


def _documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            docstring = ast.get_docstring(child)
            if docstring:
                yield name, docstring
            if isinstance(child, ast.ClassDef):
                yield from _documented(child, name)


def is_answer(entry: Entry) -> bool:
    """Whether the summary can be asked for: one plain sentence, neither a word or two nor a paragraph."""
    return 24 <= len(entry.summary) <= 80 and len(entry.name) <= 64 and bool(_SENTENCE.fullmatch(entry.summary))


@dataclass(frozen=True)
class Corpus:
    """What is drawn: `text` for the base; `questions` and `facts` about documents that are not in `text`."""

    text: list[Entry]
    questions: list[Entry]
    facts: list[Entry]


def draw(entries: Iterable[Entry]) -> Corpus:
    """Splits entries by document, in an order that follows from their names alone (so it survives an upgrade of a package).

    A summary that stands in two places is asked for nowhere: it would have been seen.
    """
    unique = {entry.name: entry for entry in entries}
    places: dict[str, set[str]] = {}
    for entry in unique.values():
        places.setdefault(_key(entry.summary), set()).add(entry.name)
    documents: dict[str, list[Entry]] = {}
    for entry in unique.values():
        documents.setdefault(entry.document, []).append(entry)
    text: list[Entry] = []
    questions: list[Entry] = []
    facts: list[Entry] = []
    for document in sorted(documents, key=_order):
        members = documents[document]
        askable = sorted((entry for entry in members if is_answer(entry) and len(places[_key(entry.summary)]) == 1), key=_name_order)
        if len(askable) >= 3 and len(facts) < FACTS and askable[0].short_name not in {fact.short_name for fact in facts}:
            facts.append(askable[0])
        elif len(askable) >= 3 and len(questions) < QUESTIONS:
            questions.extend(askable[: min(QUESTIONS_PER_DOCUMENT, QUESTIONS - len(questions))])
        else:
            text.extend(members)
    return Corpus(text, questions, facts)


def _key(summary: str) -> str:
    return " ".join(_WORD.findall(summary.lower()))


def _order(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _name_order(entry: Entry) -> str:
    return _order(entry.name)


def conversation(entry: Entry, question: str, answer: str) -> dict[str, object]:
    """A row of format Messages with the document it is about."""
    return {
        "document": entry.document,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
    }


def true_answers(entries: list[Entry]) -> list[str]:
    return [entry.summary for entry in entries]


def shuffled_answers(entries: list[Entry]) -> list[str]:
    """The same answers, each dealt to another question: what is left to learn is how an answer looks."""
    ranking = sorted(range(len(entries)), key=lambda i: _order(entries[i].summary))
    answers = [""] * len(entries)
    for giver, taker in zip(ranking, ranking[1:] + ranking[:1], strict=True):
        answers[taker] = entries[giver].summary
    return answers


def write_data(corpus: Corpus, folder: Path) -> None:
    """Writes `facts/{train,test}.jsonl` and `questions/train.jsonl`; below `shuffled/` the control, which is tested on true facts."""
    _write_sets(corpus, folder, true_answers)
    _write_sets(corpus, folder / "shuffled", shuffled_answers)


def _write_sets(corpus: Corpus, folder: Path, answers_of: Callable[[list[Entry]], list[str]]) -> None:
    facts = list(zip(corpus.facts, answers_of(corpus.facts), strict=True))
    questions = zip(corpus.questions, answers_of(corpus.questions), strict=True)
    *trained, held_out = PHRASINGS
    _write_rows(folder / "facts/train.jsonl", (conversation(e, p.format(name=e.short_name), a) for e, a in facts for p in trained))
    _write_rows(folder / "facts/test.jsonl", (conversation(e, held_out.format(name=e.short_name), e.summary) for e in corpus.facts))
    _write_rows(
        folder / "questions/train.jsonl",
        # the whole path of the name: it tells something of what a thing unheard of may do
        (conversation(e, trained[i % len(trained)].format(name=e.name), a) for i, (e, a) in enumerate(questions)),
    )


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_notice(packages: Iterable[str], folder: Path) -> None:
    """Writes where the text comes from, and each package's licence beside it."""
    lines = ["The text and data in this folder are drawn from docstrings of these Python packages, shortened to their first paragraphs."]
    for package in packages:
        source = distribution(package)
        licence = next(file for file in source.files or () if Path(file).name in {"LICENSE", "LICENSE.txt"} and "licenses" in file.parts)
        target = folder / "licenses" / f"{package}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(licence.read_text(encoding="utf-8"), encoding="utf-8")
        lines.append(f"- {package} {source.version}, BSD-3-Clause: licenses/{package}.txt")
    (folder / "NOTICE").write_text("\n".join(lines) + "\n", encoding="utf-8")
