"""Which stage has a version without status? A new one, one that a backup brought back, or one that was deleted and made again. Pure.

Only what is left of a version says that it had a place: the HTTPRoute, which notes the step of each live version, or the status of the
version that it took production over from. Both note its content as well: other files under the same name are another version. One of
which nothing is left is new and walks its steps, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelversion import Stage

from finetune_operator.modelversion.observed import RouteFact
from finetune_operator.modelversion.versions import Move, Place, Version, production_of


@dataclass(frozen=True)
class Traces:
    """What is left of versions without status. `known`: those that have one."""

    known: Sequence[Version]
    route: RouteFact | None

    def step_of(self, version: Version) -> int | None:
        """The step that the route shows the version in; of a route without our notes, the one with its weight."""
        route = self.route
        if route is None:
            return None
        if route.steps:
            noted = route.contents.get(version.name, version.content) == version.content
            return route.steps.get(version.name) if noted else None
        if version.name not in route.weights or not version.stands:
            return None
        weight = route.weights[version.name]
        return next((index for index, step in enumerate(version.steps) if step.weight == weight), 0)

    def had_production(self, version: Version) -> bool:
        """Whether a former production version says that this one took over from it."""
        return any(former.place.successor is not None and former.place.successor.is_(version) for former in self.known)


def restored_moves(versions: Sequence[Version], route: RouteFact | None, now: datetime) -> list[Move]:
    """Places for versions that were in service before their status was lost; new versions get none."""
    lost = [version for version in versions if not version.has_status]
    traces = Traces([version for version in versions if version.has_status], route)
    production = production_of(traces.known) or _lost_production(lost, traces)
    return [move for version in lost if (move := _restored(version, production, traces, now))]


def _lost_production(lost: Sequence[Version], traces: Traces) -> Version | None:
    """Who held production, where nobody that has a status does: by the route's notes, by its weights, by the former one's word."""
    routed = [version for version in lost if traces.step_of(version) is not None]
    if traces.route and traces.route.steps:
        noted = (version for version in routed if traces.step_of(version) == len(version.steps) - 1)
        found = next(noted, None)
    else:
        found = max(routed, key=lambda version: traces.route.weights[version.name] if traces.route else 0, default=None)
    return found or next((version for version in reversed(lost) if version.stands and traces.had_production(version)), None)


def _restored(version: Version, production: Version | None, traces: Traces, now: datetime) -> Move | None:
    index, last = traces.step_of(version), len(version.steps) - 1
    if production and version.name == production.name:
        where = "the HTTPRoute" if index is not None else "the version that it took over from"
        return Move(version.name, Place(Stage.PRODUCTION, last, now), "Operator", f"restored without status: place taken from {where}")
    if not version.stands and index is None:
        return None
    if production and version.spec.version < production.spec.version:
        successor = production.as_successor if traces.had_production(version) else None
        why = f"without status, and older than {production.name}, which is in production"
        return Move(version.name, Place(Stage.ARCHIVED, successor=successor), "Operator", why)
    if index is None or last == 0:
        return None
    step = min(index, last - 1)
    why = "restored without status: place taken from the HTTPRoute"
    return Move(version.name, Place(Stage(version.steps[step].stage), step, now), "Operator", why)
