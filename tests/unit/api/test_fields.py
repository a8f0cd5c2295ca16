"""No field is accepted and ignored: what a user may write, some code reads.

By name only, over all of operator and trainer: it finds the field that nobody reads, not the one that is read for another's namesake.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.modelversion import ModelVersionSpec
from finetune_api.run import RunSpec
from finetune_api.section import Section

ROOT = Path(__file__).resolve().parents[3]
READ_OTHERWISE = {
    "run_id": "another value makes another run: it is read with the whole spec, by its digest",
    "prepare": "stages.<name>: looked up by the stage's value",
    "package": "likewise",
}


def sections(kind: type[Section]) -> dict[str, type[Section]]:
    """A section and all below it, by name."""
    found = {kind.__name__: kind}
    for field in kind.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, Section) and part.__name__ not in found:
                found |= sections(part)
    return found


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from parts(argument)


@cache
def words() -> frozenset[str]:
    """Attributes that are read and texts that are spelt, which is how raw objects of the API server are read."""
    found: set[str] = set()
    for folder in ("api", "operator", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and folder != "api":
                    found.add(node.value)
    return frozenset(found)


FIELDS = {
    f"{section.__name__}.{name}": (name, field.alias or name)
    for kind in (FineTuneJobSpec, ModelVersionSpec, RunSpec)
    for section in sections(kind).values()
    for name, field in section.model_fields.items()
}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_is_read(field: str) -> None:
    name, alias = FIELDS[field]
    assert name in READ_OTHERWISE or {name, alias} & words(), f"{field} is accepted and nothing reads it"


@pytest.mark.parametrize("name", sorted(READ_OTHERWISE))
def test_what_is_excused_needs_the_excuse(name: str) -> None:
    assert not any({name, alias} & words() for own, alias in FIELDS.values() if own == name)
