"""Quantities: a number or a text, as in a Pod."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.quantity import Quantity, amount_of
from finetune_operator import crdgen
from pydantic import TypeAdapter, ValidationError

from tests.quantities import ACCEPTED, REFUSED
from tests.schema import violations

QUANTITY: TypeAdapter[str] = TypeAdapter(Quantity)
SCHEMA = QUANTITY.json_schema()


@pytest.mark.parametrize("value", ACCEPTED, ids=repr)
def test_what_a_pod_takes_is_taken_and_kept_as_it_was_written(value: Any) -> None:
    assert list(violations(SCHEMA, value)) == []
    assert QUANTITY.validate_python(value) == str(value)
    assert amount_of(str(value)) is not None


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_what_a_pod_refuses_is_refused(value: Any) -> None:
    assert list(violations(SCHEMA, value))
    with pytest.raises(ValidationError):
        QUANTITY.validate_python(value)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("500m", "0.5"), ("1.5Gi", "1610612736"), ("129e6", "129000000"), ("25E-1", "2.5"), ("1E", "1e18"), (".5", "0.5"), ("+1k", "1000")],
)
def test_amounts(text: str, amount: str) -> None:
    assert amount_of(text) == Decimal(amount)


def test_what_is_no_quantity_has_no_amount() -> None:
    assert amount_of("4GB") is None


def spec_members(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, member in schema.get("properties", {}).items():
        yield f"{path}.{name}", member
        yield from spec_members(member, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from spec_members(schema["items"], f"{path}[]")


AMOUNTS = ("cpu", "memory", "sharedmemory", "storage", "size", "limit", "request")


@pytest.mark.parametrize("kind", crdgen.kinds(), ids=lambda kind: kind.kind)
def test_every_amount_in_a_spec_is_a_number_or_a_text(kind: crdgen.Kind) -> None:
    """By name: a new member that holds an amount is of this type or is told here."""
    amounts = {
        path: member
        for path, member in spec_members(crdgen.structural(kind.spec), "spec")
        if path.rpartition(".")[2].lower().removesuffix("s").endswith(AMOUNTS) and "properties" not in member and "items" not in member
    }
    counts = {path: member for path, member in amounts.items() if member.get("type") == "integer" and "BatchSize" in path}
    assert amounts.keys() - counts.keys()
    assert [path for path in amounts.keys() - counts.keys() if not amounts[path].get("x-kubernetes-int-or-string")] == []


def test_a_job_with_numbers_is_the_job_with_texts() -> None:
    """And so has the same digest: nothing is trained again for a pair of quotation marks."""

    def job(cpu: Any, memory: Any) -> FineTuneJobSpec:
        return FineTuneJobSpec.model_validate(
            {
                "model": {"source": "pvc://data/base"},
                "datasets": [{"name": "facts", "source": "pvc://data/facts"}],
                "resources": {"cpu": cpu, "memory": memory},
                "stages": {"prepare": {"cpu": cpu}},
                "storage": {"persistentVolumeClaim": {"size": memory}},
            }
        )

    assert job(2, 4294967296) == job("2", "4294967296")
    assert job(2, 4294967296).resources.cpu == "2"
