"""What did others change in a version's Deployment or Service: members of ours, which are put right, or some beside them, which stay? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_operator.core.containment import AMOUNTS, SHARED_LISTS, contains

_FREE = frozenset({"nodeSelector", "requests", "limits"})
"""Maps of which everybody owns keys."""

_UNSET = frozenset(
    {"affinity", "command", "envFrom", "externalIPs", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "imagePullSecrets"}
    | {"initContainers", "nodeName", "nodeSelector", "priorityClassName", "runtimeClassName", "tolerations"}
)
"""Members that are there only where somebody set them: the API server fills in none of these."""

_SELECTOR = ".selector"
"""One label more in it ends all traffic, or sends it to pods of others."""


def edited(live: Any, wanted: Any, path: str = "spec", *, amounts: bool = False) -> Iterator[str]:
    """Paths of members that are wanted and not so."""
    if isinstance(live, Mapping) and isinstance(wanted, Mapping) and not path.endswith(_SELECTOR):
        for name, member in wanted.items():
            yield from edited(live.get(name), member, f"{path}.{name}", amounts=amounts or name in AMOUNTS)
        return
    if path.endswith(_SELECTOR) and live != wanted:
        yield path
        return
    pairs = _pairs(live, wanted, path)
    if pairs is None:
        if not contains(live, wanted, amounts=amounts):
            yield path
        return
    for name, (its, item) in pairs.items():
        if item is not None:
            yield from edited(its, item, f"{path}[{name}]")


def added(live: Any, wanted: Any, path: str = "spec") -> Iterator[str]:
    """Paths of what others set beside what is wanted."""
    if isinstance(live, Mapping) and isinstance(wanted, Mapping):
        for name, member in live.items():
            if name in wanted:
                yield from added(member, wanted[name], f"{path}.{name}")
            elif member and (name in _UNSET or path.rpartition(".")[2] in _FREE):
                yield f"{path}.{name}"
        return
    for name, (its, item) in (_pairs(live, wanted, path) or {}).items():
        if item is None:
            yield f"{path}[{name}]"
        elif its is not None:
            yield from added(its, item, f"{path}[{name}]")


def _pairs(live: Any, wanted: Any, path: str) -> dict[Any, tuple[Any, Any]] | None:
    """(live item, wanted one) by what tells them apart, of a list whose items have several owners; None for anything else."""
    key = SHARED_LISTS.get(path.rpartition(".")[2])
    if key is None or not isinstance(live, Sequence) or not isinstance(wanted, Sequence):
        return None
    here, asked = ({item.get(key): item for item in items if isinstance(item, Mapping)} for items in (live, wanted))
    return {name: (here.get(name), asked.get(name)) for name in [*asked, *(name for name in here if name not in asked)]}
