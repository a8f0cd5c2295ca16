"""Who leaves, who returns, and who has to make room for a new production version? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.modelversion import Stage

from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.versions import Move, Place, Version, find_version, production_of

REFUSED_EXIT_CODE = 78
"""The server image's code for an artifact that it does not serve. Source: images/server/serve.sh."""

RESTARTS_BEFORE_REJECTION = 2
"""A volume can fail to be read once; a wrong digest comes back at every start."""


def departure(version: Version, observed: Observed, now: datetime) -> Move | None:
    """The move of a version that is aborted, retired or refused by its server; None for one that stays."""
    if not version.in_service:
        return None
    if version.spec.rollout.abort:
        return Move(version.name, Place(Stage.ROLLED_BACK, since=now), "Spec", "spec.rollout.abort was set")
    if version.spec.lifecycle == "Retired":
        return Move(version.name, Place(Stage.ARCHIVED, since=now), "Spec", "spec.lifecycle was set to Retired")
    refusal = refusal_of(version, observed)
    if version.place.stage == Stage.REGISTERED and refusal:
        return Move(
            version.name, Place(Stage.REJECTED, since=now), "Operator", "the server refused the artifact before any traffic", refusal
        )
    return None


def refusal_of(version: Version, observed: Observed) -> str:
    """What the server said when it refused the artifact again and again; empty where it did not."""
    return next(
        (
            pod.last_message or "the artifact cannot be checked"
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
        if version.place.stage == Stage.ARCHIVED and version.place.replaced_by and version.stands:
            why = _successor_gone(find_version(versions, version.place.replaced_by), version.place.replaced_by)
            if why:
                return Move(version.name, Place(Stage.PRODUCTION, len(version.steps) - 1, now), "Operator", why)
    return None


def _successor_gone(successor: Version | None, name: str) -> str:
    """Why a successor does not count any more; empty where it does. A live one never got to production: we were interrupted."""
    if successor is None:
        return f"{name}, which had taken over, is gone"
    if successor.spec.rollout.abort or successor.place.stage == Stage.ROLLED_BACK:
        return f"{name}, which had taken over, was aborted"
    if successor.in_service:
        return f"{name} has not taken over"
    return ""


def displacements(promoted: Version, versions: Sequence[Version], now: datetime) -> list[Move]:
    """Who makes room when a version reaches production: the former one, and candidates that are older than the new one."""
    moves = []
    for version in versions:
        if version.name == promoted.name:
            continue
        if version.place.stage == Stage.PRODUCTION:
            place = Place(Stage.ARCHIVED, since=now, replaced_by=promoted.name)
            moves.append(Move(version.name, place, "Rollout", f"{promoted.name} took production over"))
        elif version.in_service and version.spec.version < promoted.spec.version:
            place = Place(Stage.ARCHIVED, since=now)
            moves.append(Move(version.name, place, "Rollout", f"the newer {promoted.name} reached production first"))
    return moves
