"""Which stage has a version without status? A new one, or one that a backup brought back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.modelversion import Stage

from finetune_operator.modelversion.observed import RouteFact
from finetune_operator.modelversion.versions import Move, Place, Version


def restored_moves(versions: Sequence[Version], route: RouteFact | None, now: datetime) -> list[Move]:
    """Places for versions that were in service before their status was lost; new versions get none."""
    lost = [version for version in versions if not version.has_status]
    if route and any(version.name in route.weights for version in lost):
        return _from_route(lost, versions, route, now)
    if len(lost) == len(versions) > 1 or _was_interrupted(lost, versions):
        return _from_numbers(lost, now)
    return []


def _was_interrupted(lost: Sequence[Version], versions: Sequence[Version]) -> bool:
    """Places are written oldest first, each archived version naming the next: one that names a lost version was the last written."""
    return bool({version.name for version in lost} & {version.place.replaced_by for version in versions if version.stands})


def _from_route(lost: Sequence[Version], versions: Sequence[Version], route: RouteFact, now: datetime) -> list[Move]:
    taken = any(version.place.stage == Stage.PRODUCTION for version in versions if version.has_status)
    production = None if taken else _production_name(lost, route)
    newest_routed = max(version.spec.version for version in versions if version.name in route.weights)
    moves = []
    for version in lost:
        if version.name in route.weights and version.stands:
            place = _routed_place(version, production, route, now)
            moves.append(
                Move(version.name, place, "Operator", "restored without status: place taken from the HTTPRoute", _sent(version, route))
            )
        elif version.name not in route.weights and version.spec.version < newest_routed:
            moves.append(Move(version.name, Place(Stage.ARCHIVED), "Operator", "restored without status: not in the HTTPRoute"))
    return moves


def _production_name(lost: Sequence[Version], route: RouteFact) -> str | None:
    """By the step that the route's annotation notes, else by the largest weight (the oldest of equals)."""
    routed = [version for version in lost if version.name in route.weights and version.stands]
    noted = [version for version in routed if route.steps.get(version.name) == len(version.steps) - 1]
    if noted or any(version.name in route.steps for version in routed):
        return noted[0].name if noted else None
    return max(routed, key=lambda version: route.weights[version.name]).name if routed else None


def _routed_place(version: Version, production: str | None, route: RouteFact, now: datetime) -> Place:
    last = len(version.steps) - 1
    if version.name == production:
        return Place(Stage.PRODUCTION, last, now)
    by_weight = [index for index, step in enumerate(version.steps[:last]) if step.weight == route.weights[version.name]]
    index = min(route.steps.get(version.name, by_weight[0] if by_weight else 0), max(last - 1, 0))
    if version.steps[index].stage == Stage.PRODUCTION.value:
        return Place(Stage.REGISTERED)
    return Place(Stage(version.steps[index].stage), index, now)


def _sent(version: Version, route: RouteFact) -> str:
    return f"weight {route.weights[version.name]} in the HTTPRoute"


def _from_numbers(lost: Sequence[Version], now: datetime) -> list[Move]:
    """The newest version that stands is in production; each older one was replaced by the next. Their pods are not made again."""
    standing = [version for version in lost if version.stands]
    moves = []
    for older, newer in zip(standing, [*standing[1:], None], strict=False):
        if newer:
            why = "restored without status and HTTPRoute: an older version"
            moves.append(Move(older.name, Place(Stage.ARCHIVED, replaced_by=newer.name), "Operator", why))
        else:
            place = Place(Stage.PRODUCTION, len(older.steps) - 1, now)
            moves.append(Move(older.name, place, "Operator", "restored without status and HTTPRoute: the newest version"))
    return moves
