"""Kubernetes quantities: what a Pod takes for cpu, memory and storage, a number or a text with a unit.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from finetune_api.section import RULES

_PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][-+]?[0-9]{1,2}))?$"
_LONGEST = 32
_PARTS = re.compile(_PATTERN)
_UNITS = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_SCHEMA: dict[str, Any] = {"x-kubernetes-int-or-string": True, "pattern": _PATTERN, "maxLength": _LONGEST, "minimum": 0}


def in_cel(member: str) -> str:
    """A member that holds a quantity, as CEL compares it: a number or a text."""
    return f"quantity(string({member}))"


def _from(least: str, to: str, words: str) -> WithJsonSchema:
    """The API server alone asks for the bounds: what was stored under an older CRD is still read."""
    rule = f"{in_cel('self')}.compareTo(quantity('{least}')) >= 0 && {in_cel('self')}.compareTo(quantity('{to}')) <= 0"
    return WithJsonSchema({**_SCHEMA, RULES: [{"rule": rule, "message": words}]})


Quantity = Annotated[str, BeforeValidator(_as_text), Field(pattern=_PATTERN, max_length=_LONGEST), WithJsonSchema(_SCHEMA)]
"""A number or a text on the wire, as in a Pod; a text in memory, as it was written: the API server alone rewrites it, in what is made of it."""

Memory = Annotated[
    Quantity,
    _from("16Mi", "1Pi", "memory is in bytes, from 16Mi to 1Pi: no container starts with less, and 8 is eight bytes; did you mean Gi?"),
]

SharedMemory = Annotated[Quantity, _from("1Mi", "1Pi", "the size of /dev/shm is in bytes, from 1Mi to 1Pi; did you mean Gi?")]

StorageSize = Annotated[
    Quantity, _from("1Mi", "1Ei", "the size of a claim is in bytes, from 1Mi to 1Ei: models take gigabytes; did you mean Gi?")
]

CpuLimit = Annotated[Quantity, _from("1m", "1M", "a limit of cores is from 1m to 1M: leave it out for no limit")]


def amount_of(text: str) -> Decimal | None:
    """What a quantity says, in its base unit (cores, bytes); None where it is none."""
    parts = _PARTS.match(text)
    if parts is None:
        return None
    number, unit = Decimal(parts[1]), parts[3] or ""
    return number.scaleb(int(unit[1:])) if parts[5] else number * _UNITS[unit]
