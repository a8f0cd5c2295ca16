"""What exists for a model: its versions' children as they were last seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_api.modelversion import Stage
from finetune_api.uri import claim_of

from finetune_operator.core.names import Object
from finetune_operator.engine.store import Key
from finetune_operator.engine.world import World
from finetune_operator.kube.resources import AUTOSCALER, CLAIM, DEPLOYMENT, DISRUPTION_BUDGET, HTTPROUTE, MODELVERSION, POD, SERVICE
from finetune_operator.modelversion.observed import Observed, observed_of, rival_route

_CHILDREN = (DEPLOYMENT, SERVICE, DISRUPTION_BUDGET, POD, HTTPROUTE, AUTOSCALER)


async def with_successors(key: Key, versions: Sequence[Object], world: World) -> list[Object]:
    """The versions; where none of them is in production, those that took over from one as they are now.

    Of two versions that were written one after the other the watch may tell late: the one that took over is not gone, nor where it was.
    """
    statuses = [version.get("status") or {} for version in versions]
    if any(status.get("stage") == Stage.PRODUCTION for status in statuses):
        return list(versions)
    named = {name for status in statuses if isinstance(name := status.get("replacedBy"), str)}
    found = [await world.lookups.read(MODELVERSION, key.namespace, name) for name in sorted(named)]
    now = {live["metadata"]["name"]: live for live in found if live and live["spec"].get("model") == key.name}
    return list(({version["metadata"]["name"]: version for version in versions} | now).values())


async def observe(key: Key, versions: Iterable[Object], world: World) -> Observed:
    """Facts about a model. Reads beside the store: claims of users that artifacts lie on, cached."""
    return observed_of(
        {child.kind: world.store.of(key, child.kind) for child in _CHILDREN},
        rivals=world.store.facts(HTTPROUTE.kind, rival_route),
        claims=[claim for name in _claim_names(versions) if (claim := await _claim(key.namespace, name, world))],
        watched_since=world.planned_since.get(key),
        gateway_api=world.gateway_api(),
        problems=world.problems.get(key, ()),
    )


def _claim_names(versions: Iterable[Object]) -> list[str]:
    uris = [artifact["uri"] for version in versions for artifact in version["spec"].get("artifacts") or []]
    return list(dict.fromkeys(claim for claim in map(claim_of, uris) if claim))


async def _claim(namespace: str, name: str, world: World) -> Object | None:
    return world.store.get(CLAIM.kind, namespace, name) or await world.lookups.find(CLAIM, namespace, name)
