"""Which nodes could hold the stages of a run? Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from finetune_operator.core.containment import quantity
from finetune_operator.core.facts import NodeFact


def small_hosts(wanted: Mapping[str, float], nodes: Iterable[NodeFact]) -> tuple[str, ...]:
    """Hosts that offer less than `wanted` (amounts by resource), sorted; none where no node offers enough: a larger one may yet come."""
    listed = list(nodes)
    small = sorted(node.host for node in listed if any(_offers(node, name) < amount for name, amount in wanted.items()))
    return tuple(small) if len(small) < len(listed) else ()


def _offers(node: NodeFact, resource: str) -> float:
    amount = quantity(str(node.allocatable.get(resource, "0")))
    return math.inf if amount is None else amount  # in a form that we do not read: nothing is held against the node
