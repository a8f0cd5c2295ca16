"""Who leaves, who returns, and who has to make room for a new production version? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.modelversion import Stage

from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.versions import Move, Place, Successor, Version, find_version, moved, production_of

REFUSED_EXIT_CODE = 78
"""The server image's code for an artifact that it does not serve. Source: images/server/serve.sh."""

RESTARTS_BEFORE_REJECTION = 2
"""A volume can fail to be read once; a wrong digest comes back at every start."""


UNDER_WAY = timedelta(seconds=15)
"""Of the two writes by which production changes hands: how long the second may be under way, be it of an operator that has lost its Lease.
Meanwhile whoever is in charge goes forward only: one that went back would leave two in production. Source: a request ends within 10 s."""


def departure(version: Version, versions: Sequence[Version], observed: Observed, now: datetime) -> Move | None:
    """The move of a version that is aborted, retired or refused by its server; None for one that stays."""
    if not version.in_service:
        return None
    if version.spec.rollout.abort and not abort_is_refused(version, versions, now):
        return _aborted(version, versions, now)
    if version.spec.lifecycle == "Retired":
        place = Place(Stage.ARCHIVED, since=now, retired_from=version.place.stage)
        return Move(version.name, place, "Spec", "spec.lifecycle was set to Retired")
    refusal = refusal_of(version, observed)
    if version.place.stage == Stage.REGISTERED and refusal:
        return Move(
            version.name, Place(Stage.REJECTED, since=now), "Operator", "the server refused the artifact before any traffic", refusal
        )
    return None


def abort_is_refused(version: Version, versions: Sequence[Version], now: datetime) -> bool:
    """Whether an abort would leave the model without production: it waits until another version can return or took over."""
    asked = version.spec.rollout.abort and version.place.stage == Stage.PRODUCTION
    return asked and _home_without(version, versions, now) is None


def _home_without(version: Version, versions: Sequence[Version], now: datetime) -> Move | None:
    """Who would return if the version were aborted."""
    gone = version.at(Place(Stage.ROLLED_BACK))
    return homecoming([gone if other.name == version.name else other for other in versions], now)


def _aborted(version: Version, versions: Sequence[Version], now: datetime) -> Move:
    """One that leaves production notes who returns: until that one's pods answer, its own do."""
    home = _home_without(version, versions, now) if version.place.stage == Stage.PRODUCTION else None
    returning = find_version(versions, home.version) if home else None
    place = Place(Stage.ROLLED_BACK, since=now, successor=returning.as_successor if returning else None)
    return Move(version.name, place, "Spec", "spec.rollout.abort was set")


def refusal_of(version: Version, observed: Observed) -> str:
    """What the server said when it refused the artifact again and again; empty where it did not."""
    return next(
        (
            pod.last_message.strip() or "the artifact cannot be checked"
            for pod in observed.pods
            if pod.version == version.name
            and not pod.ready
            and pod.last_exit_code == REFUSED_EXIT_CODE
            and pod.restarts >= RESTARTS_BEFORE_REJECTION
        ),
        "",
    )


def homecoming(versions: Sequence[Version], now: datetime) -> Move | None:
    """The former production version comes back where the one that took over no longer stands in production."""
    if production_of(versions):
        return None
    for version in reversed(versions):
        if version.may_return and version.place.successor:
            why = _successor_gone(version, version.place.successor, versions, now)
            if why:
                return Move(version.name, Place(Stage.PRODUCTION, len(version.steps) - 1, now), "Operator", why)
    return None


def _successor_gone(former: Version, successor: Successor, versions: Sequence[Version], now: datetime) -> str:
    """Why a successor does not count any more; empty where it does. A live one never got to production: we were interrupted."""
    name, version = successor.name, find_version(versions, successor.name)
    if version is None or not successor.is_(version):
        return f"{name}, which had taken over, is gone"
    if version.spec.rollout.abort or version.place.stage == Stage.ROLLED_BACK:
        return f"{name}, which had taken over, was aborted"
    if version.in_service and now >= _interrupted_at(former, now):
        return f"{name} has not taken over"
    return ""


def _interrupted_at(former: Version, now: datetime) -> datetime:
    return (former.place.since or now - UNDER_WAY) + UNDER_WAY


def interrupted_at(version: Version, versions: Sequence[Version], now: datetime) -> datetime | None:
    """From when on a version that gave production up has it back, its successor having it not; None where that is not to be expected."""
    if production_of(versions) or version.place.stage != Stage.ARCHIVED or version.place.successor is None:
        return None
    return _interrupted_at(version, now)


def comeback(versions: Sequence[Version], now: datetime) -> Move | None:
    """A retired version that is Active again goes on: in production if it held it and nobody does now, else from the first step."""
    back = [version for version in versions if version.place.retired_from and version.place.stage == Stage.ARCHIVED and version.stands]
    if not back:
        return None
    version, production = back[-1], production_of(versions)
    held = version.place.retired_from == Stage.PRODUCTION
    why = "spec.lifecycle is Active again"
    if production and production.spec.version > version.spec.version:
        place = Place(Stage.ARCHIVED, since=now, successor=production.as_successor if held else None)
        return Move(version.name, place, "Spec", f"{why}, but the newer {production.name} is in production")
    if held and production is None:
        return Move(version.name, Place(Stage.PRODUCTION, len(version.steps) - 1, now), "Spec", why)
    return Move(version.name, Place(Stage.REGISTERED, since=now), "Spec", f"{why}: it begins with its first step")


def displacements(promoted: Version, versions: Sequence[Version], now: datetime) -> list[Move]:
    """Who makes room when a version reaches production: the former one, and candidates that are older than the new one."""
    moves = []
    for version in versions:
        if version.name == promoted.name:
            continue
        if version.place.stage == Stage.PRODUCTION:
            moves.append(_displaced(version, promoted, now))
        elif version.in_service and version.spec.version < promoted.spec.version:
            place = Place(Stage.ARCHIVED, since=now)
            moves.append(Move(version.name, place, "Rollout", f"the newer {promoted.name} reached production first"))
    return moves


def surplus(versions: Sequence[Version], now: datetime) -> list[Move]:
    """Two in production at once can only have been written by a hand or by a fault: the newest stays."""
    held = [version for version in versions if version.place.stage == Stage.PRODUCTION]
    return [_displaced(version, held[-1], now) for version in held[:-1]]


def _displaced(version: Version, promoted: Version, now: datetime) -> Move:
    """An abort that waited for somebody to take over is done by this."""
    stage = Stage.ROLLED_BACK if version.spec.rollout.abort else Stage.ARCHIVED
    place = Place(stage, since=now, successor=promoted.as_successor)
    return Move(version.name, place, "Rollout", f"{promoted.name} took production over")


def after_departures(versions: Sequence[Version], moves: Sequence[Move], now: datetime) -> Move | None:
    """Who takes a place that the moves leave, or that a person gave back."""
    placed = moved(versions, moves)
    return homecoming(placed, now) or comeback(placed, now)
