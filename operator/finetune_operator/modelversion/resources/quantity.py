"""Quantities as the API server writes them back. Pure."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def canonical(quantity: str) -> str:
    """The same amount in canonical form (`1000m` → `1`, `0.5` → `500m`, `1024Mi` → `1Gi`).

    Without it an applied object would never be contained in the live one, and be applied again at every pass.
    Source: k8s.io/apimachinery/pkg/api/resource, Quantity.CanonicalizeBytes.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", quantity)
    if match is None:
        raise ValueError(f"not a quantity: {quantity}")
    number, suffix = Fraction(match[1]), match[2]
    if suffix in _BINARY[1:]:
        amount = number * 1024 ** _BINARY.index(suffix)
        return _binary(math.ceil(amount)) if amount >= 1024 else _decimal(amount)
    return _decimal(number * Fraction(10) ** _DECIMAL[suffix])


def _binary(amount: int) -> str:
    exponent = 0
    while amount % 1024 == 0 and exponent < len(_BINARY) - 1:
        amount, exponent = amount // 1024, exponent + 1
    return f"{amount}{_BINARY[exponent]}"


def _decimal(amount: Fraction) -> str:
    if amount == 0:
        return "0"
    nanos, exponent = math.ceil(amount * 10**9), -9
    while nanos % 1000 == 0 and exponent < 18:
        nanos, exponent = nanos // 1000, exponent + 3
    return f"{nanos}{next(suffix for suffix, power in _DECIMAL.items() if power == exponent)}"
