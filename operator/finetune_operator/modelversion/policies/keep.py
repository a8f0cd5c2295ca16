"""Whose pods are wanted, and when may those of the others go? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.versions import Version, duration_of, find_version

DRAIN = timedelta(seconds=30)
"""From the moment the Gateway accepted a route without the version until its pods are told to stop: requests that were under way end."""


def kept_until(version: Version, versions: Sequence[Version]) -> datetime | None:
    """Until when a former production version stays ready, by keepPrevious of the one that took over."""
    if not version.may_return or version.place.since is None or version.place.successor is None:
        return None
    successor = find_version(versions, version.place.successor.name) or version
    return version.place.since + duration_of(successor.spec.serving.keep_previous)


def pods_are_wanted(version: Version, versions: Sequence[Version], weights: Mapping[str, int], now: datetime) -> bool:
    until = kept_until(version, versions)
    return version.in_service or weights[version.name] > 0 or (until is not None and now < until)


def has_children(version: Version, observed: Observed) -> bool:
    return version.name in observed.deployments or version.name in observed.services


def idle_since(version: Version, observed: Observed, route_accepted: bool, now: datetime) -> datetime | None:
    """Since when no accepted route sends the version anything; None while one may, and once its children are gone."""
    if not has_children(version, observed):
        return None
    return (version.place.idle_since or now) if gets_nothing(version.name, observed, route_accepted) else None


def gets_nothing(name: str, observed: Observed, route_accepted: bool) -> bool:
    """Whether no accepted route sends a server anything."""
    return observed.route is None or (name not in observed.route.weights and route_accepted)


def may_stop(idle: datetime | None, now: datetime) -> bool:
    return idle is not None and now >= idle + DRAIN
