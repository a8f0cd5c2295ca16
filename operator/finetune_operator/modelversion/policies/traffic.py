"""Whose traffic settings hold for the model, and which share of traffic does each version get? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_api.modelversion import Stage
from finetune_api.sections.rollout import Traffic

from finetune_operator.modelversion.observed import Observed
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


def followed_traffic(versions: Sequence[Version]) -> Traffic:
    followed = followed_version(versions)
    return followed.spec.rollout.traffic if followed else Traffic()


def shares(versions: Sequence[Version], observed: Observed) -> dict[str, int]:
    """Percent of traffic by version name: 100 in all while any version is live, else 0.

    Steps before Production get their weight while their pods answer; Production, or the oldest live version where there is none, gets
    what is left. While its pods do not answer, what is left goes to a version that was in production before: never to one that was only
    let have some percent.
    """
    live = [version for version in versions if version.live and not differs(version, versions)]
    weights = {version.name: 0 for version in versions}
    if not live:
        return weights
    taker = production_of(versions) or live[0]
    left = 100
    if followed_traffic(versions).type != "None":
        for version in live:
            if version.name != taker.name and version.step and answers(version, observed):
                weights[version.name] = min(version.step.weight or 0, left)
                left -= weights[version.name]
        taker = taker if answers(taker, observed) else _stand_in(taker, versions, observed)
    weights[taker.name] += left
    return weights


def _stand_in(taker: Version, versions: Sequence[Version], observed: Observed) -> Version:
    """Who answers instead: the former production version, or one on its way out of production; else the taker itself."""
    sent = observed.route.weights if observed.route else {}
    ready = [version for version in versions if not version.in_service and answers(version, observed)]
    held = [version for version in ready if version.place.successor and version.place.successor.name == taker.name]
    formers = [version for version in held if version.place.stage == Stage.ARCHIVED and version.stands]
    leaving = [version for version in held if sent.get(version.name, 0) > 0]
    return next(iter([*formers, *leaving]), taker)


def answers(version: Version, observed: Observed) -> bool:
    """Whether a request sent to the version's Service finds a pod."""
    deployment = observed.deployments.get(version.name)
    return deployment is not None and deployment.serving and version.name in observed.services


def wanted_backends(versions: Sequence[Version], weights: Mapping[str, int], observed: Observed) -> dict[str, int]:
    """Weight by Service name that the route should have. A Service that is not there yet would make the Gateway refuse the route."""
    return {
        version.name: weights[version.name]
        for version in versions
        if version.name in observed.services and (weights[version.name] > 0 or (version.live and not differs(version, versions)))
    }
