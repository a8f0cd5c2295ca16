"""What an API server would say of a value: the part of structural schemas that our CRDs use. Unknown members count, as they would be pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_LENGTHS = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}


def violations(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Paths in `value` that the schema refuses, each with why."""
    kind = schema.get("type")
    if kind is None:
        return
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: {type(value).__name__} is no {kind}"
        return
    yield from (f"{path}: {problem}" for problem in _of_value(schema, kind, value))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(schema["items"], item, f"{path}[{index}]")
    if isinstance(value, dict):
        yield from _of_members(schema, value, path)


def _of_value(schema: Schema, kind: str, value: Any) -> Iterator[str]:
    if isinstance(value, (str, list, dict)) and len(value) > schema.get(_LENGTHS[kind], math.inf):
        yield f"longer than {schema[_LENGTHS[kind]]}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"none of {schema['enum']}"
    if kind == "integer" and not abs(value) < 2**63:
        yield "out of range"
    if kind == "number" and not math.isfinite(value):
        yield "no number"


def _of_members(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    yield from (f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value)
    for name, member in value.items():
        inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if inner:
            yield from violations(inner, member, f"{path}.{name}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}: unknown"
