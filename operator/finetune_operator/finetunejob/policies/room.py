"""Which nodes could hold the stages of a run? Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from finetune_api.quantity import amount_of

from finetune_operator.core.facts import NodeFact


def small_hosts(wanted: Mapping[str, Decimal], nodes: Iterable[NodeFact]) -> tuple[str, ...]:
    """Hosts that offer less than `wanted` (amounts by resource), sorted; none where no node offers enough: a larger one may yet come."""
    listed = list(nodes)
    small = sorted(node.host for node in listed if any(_offers(node, name) < amount for name, amount in wanted.items()))
    return tuple(small) if len(small) < len(listed) else ()


def _offers(node: NodeFact, resource: str) -> Decimal:
    amount = amount_of(str(node.allocatable.get(resource, "0")))
    return Decimal("Infinity") if amount is None else amount  # in a form that we do not read: nothing is held against the node
