"""Whether a live object already is what we want, so that nothing needs to be written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.quantity import amount_of

from finetune_operator.core.names import Object

_LIST_KEYS = ("name", "containerPort", "port", "uid", "mountPath", "type", "key")
"""Members by which list items are matched, in this order: those the API server merges such lists by."""

_AMOUNTS = frozenset({"requests", "limits", "sizeLimit"})
"""Members that hold quantities; nowhere else is `1k` the same as `1000`."""


def contains(live: Any, desired: Any, *, amounts: bool = False) -> bool:
    """Whether every member of `desired` is in `live` with an equal value; what the server defaulted or others added is ignored.

    Lists must have the same length: their items are matched by their key where they have one, else by position. Quantities
    (`amounts`) are compared by value: the server rewrites `0.5` to `500m`.
    """
    if isinstance(desired, Mapping):
        if not desired and live is None:  # the server drops an empty map
            return True
        return isinstance(live, Mapping) and all(
            contains(live.get(key), value, amounts=amounts or key in _AMOUNTS) for key, value in desired.items()
        )
    if isinstance(desired, (list, tuple)):
        if not desired and live is None:
            return True
        return isinstance(live, list) and _same_items(live, desired)
    if isinstance(desired, str) and isinstance(live, str):
        return live == desired or (amounts and _same_quantity(live, desired))
    return bool(live == desired) and isinstance(live, bool) == isinstance(desired, bool)


def _same_items(live: Sequence[Any], desired: Sequence[Any]) -> bool:
    if len(live) != len(desired):
        return False
    key = next((key for key in _LIST_KEYS if desired and all(isinstance(item, Mapping) and key in item for item in desired)), None)
    if key is None:
        return all(contains(old, new) for old, new in zip(live, desired, strict=True))
    by_key = {item.get(key): item for item in live if isinstance(item, Mapping)}
    return len(by_key) == len(live) and all(contains(by_key.get(item[key]), item) for item in desired)


def _same_quantity(live: str, desired: str) -> bool:
    amount = amount_of(live)
    return amount is not None and amount == amount_of(desired)


def owners_of(live: Mapping[str, Any]) -> set[str]:
    """Uids of an object's owners."""
    return {owner["uid"] for owner in live["metadata"].get("ownerReferences") or ()}


def merge_patch(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    """The smallest JSON merge patch from `live` to `wanted`; empty where they are equal. A None in `wanted` counts as absent.

    Source: RFC 7386.
    """
    patch: Object = {}
    for key in live.keys() | wanted.keys():
        old, new = live.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            within = merge_patch(old, new)
            if within:
                patch[key] = within
        else:
            patch[key] = without_nulls(new)
    return patch


def without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value
