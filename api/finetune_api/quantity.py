"""Kubernetes quantities: what a Pod takes for cpu, memory and storage, a number or a text with a unit.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

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


Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(pattern=_PATTERN, max_length=_LONGEST),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": _PATTERN, "maxLength": _LONGEST, "minimum": 0}),
]
"""A number or a text on the wire, as in a Pod; a text in memory, as it was written: the API server alone rewrites it, in what is made of it."""


def amount_of(text: str) -> Decimal | None:
    """What a quantity says, in its base unit (cores, bytes); None where it is none."""
    parts = _PARTS.match(text)
    if parts is None:
        return None
    number, unit = Decimal(parts[1]), parts[3] or ""
    return number.scaleb(int(unit[1:])) if parts[5] else number * _UNITS[unit]
