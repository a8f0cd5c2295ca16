"""Whose traffic settings hold for the model, and which share of traffic does each version get? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_api.sections.rollout import GatewayAPI, GatewayRef, Traffic

from finetune_operator.modelversion.observed import Observed, RouteFact
from finetune_operator.modelversion.versions import Version, production_of


def followed_version(versions: Sequence[Version]) -> Version | None:
    """The version whose traffic settings the route follows: Production, else the oldest live, else the oldest registered one."""
    live = [version for version in versions if version.live]
    waiting = [version for version in versions if version.in_service]
    return production_of(versions) or next(iter(live or waiting), None)


def differs(version: Version, versions: Sequence[Version]) -> bool:
    """Whether the version asks for other traffic settings than the route follows."""
    followed = followed_version(versions)
    return followed is not None and version.spec.rollout.traffic != followed.spec.rollout.traffic


def written_settings(route: RouteFact | None, namespace: str) -> GatewayAPI | None:
    """The settings that the route has already. `namespace`: its own."""
    parent = next(iter(route.ours["parentRefs"]), None) if route else None
    if route is None or parent is None:
        return None
    gateway = GatewayRef(name=parent["name"], namespace=parent.get("namespace", namespace))
    return GatewayAPI(gateway=gateway, hostnames=route.ours["hostnames"])


def followed_traffic(versions: Sequence[Version]) -> Traffic:
    followed = followed_version(versions)
    return followed.spec.rollout.traffic if followed else Traffic()


def shares(versions: Sequence[Version], observed: Observed, left_behind: Sequence[str] = ()) -> dict[str, int]:
    """Percent of traffic by version name: 100 in all while any version is live, else 0.

    Steps before Production get their weight while their pods answer; Production, or the oldest live version where there is none, gets
    what is left. While its pods do not answer, what is left goes to a version that was in production before: never to one that was only
    let have some percent. `left_behind`: servers of deleted versions; those keep what they have until the one that takes it answers.
    """
    live = [version for version in versions if version.live and not differs(version, versions)]
    weights = {version.name: 0 for version in versions}
    if not live:
        awaited = any(version.in_service for version in versions)
        return weights | (_kept(left_behind, 100, observed) if awaited else {})
    taker = _taker(versions, live)
    if followed_traffic(versions).type != "None":
        granted = grants(versions)
        weights |= {version.name: granted[version.name] for version in live if version.name in granted and answers(version, observed)}
        taker = taker if answers(taker, observed) else _stand_in(taker, versions, observed)
        if not answers(taker, observed):
            weights |= _kept(left_behind, 100 - sum(weights.values()), observed)
    weights[taker.name] += 100 - sum(weights.values())
    return weights


def _taker(versions: Sequence[Version], live: Sequence[Version]) -> Version:
    """Who gets what is left: production; while it changes hands, the one that gave it up; else the oldest live version."""
    handing_over = (version for version in versions if version.may_return and _successor_in(version, live))
    return production_of(versions) or next(handing_over, live[0])


def _successor_in(former: Version, live: Sequence[Version]) -> bool:
    return any(former.place.successor is not None and former.place.successor.is_(version) for version in live)


def _kept(left_behind: Sequence[str], left: int, observed: Observed) -> dict[str, int]:
    """Percent by name of servers whose version is gone: what the route sends them now, at most `left` in all, while they answer."""
    sent = observed.route.weights if observed.route else {}
    kept: dict[str, int] = {}
    for name in left_behind:
        if _answers(name, observed):
            kept[name] = min(sent.get(name, 0), left - sum(kept.values()))
    return kept


def grants(versions: Sequence[Version]) -> dict[str, int]:
    """Percent that each version before Production may get, by name: its step's, if beside those of older ones production keeps some.

    One alone may ask for all. The one that takes what is left, and those that take no part, are not among them.
    """
    live = [version for version in versions if version.live and not differs(version, versions)]
    taker = _taker(versions, live) if live else None
    granted: dict[str, int] = {}
    for version in live:
        if taker and version.name != taker.name:
            before = sum(granted.values())
            granted[version.name] = version.weight_asked if not before or before + version.weight_asked < 100 else 0
    return granted


def _stand_in(taker: Version, versions: Sequence[Version], observed: Observed) -> Version:
    """Who answers instead: the former production version, or one on its way out of production; else the taker itself."""
    sent = observed.route.weights if observed.route else {}
    ready = [version for version in versions if not version.in_service and answers(version, observed)]
    held = [version for version in ready if version.place.successor and version.place.successor.name == taker.name]
    formers = [version for version in held if version.may_return]
    leaving = [version for version in held if sent.get(version.name, 0) > 0]
    return next(iter([*formers, *leaving]), taker)


def answers(version: Version, observed: Observed) -> bool:
    """Whether a request sent to the version's Service finds a pod."""
    return _answers(version.name, observed)


def _answers(name: str, observed: Observed) -> bool:
    deployment = observed.deployments.get(name)
    return deployment is not None and deployment.serving and name in observed.services


def wanted_backends(versions: Sequence[Version], weights: Mapping[str, int], observed: Observed) -> dict[str, int]:
    """Weight by Service name that the route should have.

    One that gets nothing is named only when its Service is there: the Gateway would refuse the route. One that gets a share always is:
    a Gateway sends in proportion, so without production's 95 a canary's 5 would be all.
    """
    ready = {version.name for version in versions if version.name in observed.services and version.live and not differs(version, versions)}
    return {name: weight for name, weight in weights.items() if weight > 0 or name in ready}
