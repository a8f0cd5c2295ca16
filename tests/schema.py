"""What an API server would say and make of a value: the part of structural schemas that our CRDs use. Unknown members count, as they
would be pruned."""

from __future__ import annotations

import copy
import math
import re
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


def defaulted(schema: Schema, value: Any) -> Any:
    """The value with what the API server fills in."""
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    filled = {name: copy.deepcopy(member["default"]) for name, member in properties.items() if "default" in member} | value
    return {name: defaulted(properties.get(name, {}), member) for name, member in filled.items()}


def violations(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Paths in `value` that the schema refuses, each with why."""
    kind = _kind_of(schema, value)
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


def _kind_of(schema: Schema, value: Any) -> str | None:
    if schema.get("x-kubernetes-int-or-string"):
        return "string" if isinstance(value, str) else "integer"
    return schema.get("type")


def _of_value(schema: Schema, kind: str, value: Any) -> Iterator[str]:
    if isinstance(value, (str, list, dict)) and len(value) > schema.get(_LENGTHS[kind], math.inf):
        yield f"longer than {schema[_LENGTHS[kind]]}"
    if kind == "string" and not re.search(schema.get("pattern", ""), value):
        yield f"no match of {schema['pattern']}"
    if kind in ("integer", "number") and value < schema.get("minimum", -math.inf):
        yield f"less than {schema['minimum']}"
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
