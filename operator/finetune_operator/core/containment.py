"""Whether a live object already is what we want, so that nothing needs to be written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.quantity import amount_of
from finetune_api.section import digest_of

from finetune_operator.core import names
from finetune_operator.core.names import Object

_LIST_KEYS = ("name", "containerPort", "port", "uid", "mountPath", "type", "key")
"""Members by which list items are matched, in this order: those the API server merges such lists by."""

SHARED_LISTS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists of which everybody owns items of his own, and the member that tells these apart; any other list belongs to one as a whole.

Source: `x-kubernetes-list-type: map` of these members in Kubernetes' OpenAPI.
"""

AMOUNTS = frozenset({"requests", "limits", "sizeLimit"})
"""Members that hold quantities; nowhere else is `1k` the same as `1000`."""

DESIRED_ANNOTATION = f"{names.GROUP}/desired"
"""Digest of what was last applied: a member that is no longer wanted changes it, which containment alone would not see."""


def desired_mark(body: Object) -> str:
    """What an object that was applied as `body` carries as that annotation."""
    return digest_of(body)[:16]


def contains(live: Any, desired: Any, *, amounts: bool = False, shared: bool = False) -> bool:
    """Whether every member of `desired` is in `live` with an equal value; what the server defaulted or others added is ignored.

    Lists must have the same length, unless others may have items of their own there (`shared`): items are matched by their key where
    they have one, else by position. Quantities (`amounts`) are compared by value: the server rewrites `0.5` to `500m`.
    """
    if isinstance(desired, Mapping):
        if not desired and live is None:  # the server drops an empty map
            return True
        return isinstance(live, Mapping) and all(
            contains(live.get(key), value, amounts=amounts or key in AMOUNTS, shared=key in SHARED_LISTS) for key, value in desired.items()
        )
    if isinstance(desired, (list, tuple)):
        if not desired and live is None:
            return True
        return isinstance(live, list) and _same_items(live, desired, shared=shared)
    if isinstance(desired, str) and isinstance(live, str):
        return live == desired or (amounts and _same_quantity(live, desired))
    return bool(live == desired) and isinstance(live, bool) == isinstance(desired, bool)


def _same_items(live: Sequence[Any], desired: Sequence[Any], *, shared: bool) -> bool:
    if len(live) != len(desired) and not shared:
        return False
    key = next((key for key in _LIST_KEYS if desired and all(isinstance(item, Mapping) and key in item for item in desired)), None)
    if key is None:
        return len(live) == len(desired) and all(contains(old, new) for old, new in zip(live, desired, strict=True))
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
