"""JSON that a row holds as text: arguments of calls, tools. As strict as the reader of rows, as nothing may be lost in it."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 256
"""Lists and objects within each other. Whatever walks a row calls itself twice for each level, and Python allows a thousand calls."""


def parse(text: str) -> Any:
    """The value that a text holds. Errors: ValueError for what is no JSON: a member named twice, NaN, a number that no float holds; and for
    what is nested deeper than `MAX_DEPTH`."""
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if is_too_deep(value):
        raise ValueError("nested too deep")
    return value


def is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        members = (member for value in level for member in (value.values() if isinstance(value, dict) else value))
        level = [member for member in members if isinstance(member, dict | list)]
        if not level:
            return False
    return True


def can_hold(value: Any) -> bool:
    """Whether a value can be written as JSON: NaN cannot, nor what only Parquet has."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


class RepeatedMember(ValueError):
    """An object that names one member twice: one of the two would be lost."""


def members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its members, as a decoder's hook. Errors: RepeatedMember."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise RepeatedMember
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=members_once, parse_float=_finite, parse_constant=_finite)
