"""A ModelVersion as the policies see it: its spec, where it stands, and the moves that are decided for it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from finetune_api.modelversion import LIVE, ModelVersionSpec, ModelVersionStatus, PublishedArtifact, Stage
from finetune_api.outcome import Reason
from finetune_api.section import digest_of
from finetune_api.sections.rollout import StageName, Step
from pydantic import ValidationError

from finetune_operator.core.names import Object
from finetune_operator.core.unreadable import Unreadable, problem_of, read_status

IN_SERVICE = LIVE | {Stage.REGISTERED}
"""Stages of a version whose pods are wanted; the others are ends."""

STRAIGHT_TO_PRODUCTION = (Step(name="production", stage=StageName.PRODUCTION),)

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True)
class Successor:
    """`content` tells a version that came back from another one of its name; empty in a status of an older release."""

    name: str
    content: str = ""

    def is_(self, version: Version) -> bool:
        return version.name == self.name and self.content in ("", version.content)


@dataclass(frozen=True)
class Hold:
    """How much of the present step has counted: `counted`, and all time from `since` on where that is set."""

    counted: timedelta = timedelta(0)
    since: datetime | None = None

    def at(self, now: datetime) -> timedelta:
        return self.counted + (max(now - self.since, timedelta(0)) if self.since else timedelta(0))


@dataclass(frozen=True)
class Place:
    """Where a version stands. `since`: when the step or stage began; `successor`: who took production over from it."""

    stage: Stage
    step: int | None = None
    since: datetime | None = None
    successor: Successor | None = None
    retired_from: Stage | None = None
    hold: Hold = Hold()
    idle_since: datetime | None = None


@dataclass(frozen=True)
class Move:
    """A change of place, with what `status.history` will say of it."""

    version: str
    to: Place
    by: Literal["Rollout", "Spec", "Operator"]
    why: str
    evidence: str = ""


@dataclass(frozen=True)
class Version:
    object: Object
    spec: ModelVersionSpec
    status: ModelVersionStatus
    place: Place
    is_unread: bool = False
    """Something of it cannot be read: it stays where it is."""

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.object["metadata"].get("generation", 0))

    @property
    def has_status(self) -> bool:
        return bool(self.object.get("status", {}).get("stage"))

    @property
    def content(self) -> str:
        """Digest of what was proven and is served: equal for a version that a backup or a hand brought back."""
        return digest_of([self.spec.lineage.run_digest, [artifact.wire() for artifact in self.spec.artifacts]])[:12]

    @property
    def as_successor(self) -> Successor:
        return Successor(self.name, self.content)

    @property
    def live(self) -> bool:
        return self.place.stage in LIVE

    @property
    def in_service(self) -> bool:
        return self.place.stage in IN_SERVICE

    @property
    def stands(self) -> bool:
        """Nobody asked to take it away."""
        return self.spec.lifecycle == "Active" and not self.spec.rollout.abort

    @property
    def may_return(self) -> bool:
        """It held production, and would again if the one that took over went."""
        return self.place.stage == Stage.ARCHIVED and self.place.successor is not None and self.stands

    @property
    def steps(self) -> Sequence[Step]:
        return self.spec.rollout.steps or STRAIGHT_TO_PRODUCTION

    @property
    def step(self) -> Step | None:
        """The present step; None before the first one, and where an edit of the steps took the present one away."""
        index = self.step_index
        return self.steps[index] if index is not None else None

    @property
    def step_index(self) -> int | None:
        """Index of the present step. After an edit of the steps: of the first one with the present stage."""
        index = self.place.step
        if index is None or not self.live:
            return None
        if index < len(self.steps) and self.steps[index].stage == self.place.stage.value:
            return index
        return next((i for i, step in enumerate(self.steps) if step.stage == self.place.stage.value), None)

    @property
    def weight_asked(self) -> int:
        """Percent that the present step asks for; 0 in production, which gets what is left."""
        return (self.step.weight or 0) if self.step else 0

    @property
    def next_index(self) -> int | None:
        """Index of the step that comes next; None in production and at the ends."""
        if self.place.stage == Stage.REGISTERED:
            return 0
        if not self.live or self.place.stage == Stage.PRODUCTION:
            return None
        present = self.step_index
        return present + 1 if present is not None else min(self.place.step or 0, len(self.steps) - 1)

    @property
    def artifact(self) -> PublishedArtifact | None:
        """The GGUF that is served: the one that serving.artifact names, else the first."""
        wanted = self.spec.serving.artifact
        files = [artifact for artifact in self.spec.artifacts if artifact.format == "GGUF"]
        return next((artifact for artifact in files if wanted is None or artifact.name == wanted), None)

    def at(self, place: Place) -> Version:
        return replace(self, place=place)


def read_versions(objects: Iterable[Object]) -> tuple[list[Version], list[Unreadable]]:
    """The versions by number, oldest first; those under deletion are left out."""
    read: list[Version] = []
    unreadable: list[Unreadable] = []
    for item in objects:
        if "deletionTimestamp" in item["metadata"]:
            continue
        version = _read(item)
        if isinstance(version, Unreadable):
            unreadable.append(version)
        else:
            read.append(version)
    return by_number(read), unreadable


def by_number(versions: Iterable[Version]) -> list[Version]:
    return sorted(versions, key=lambda version: (version.spec.version, version.name))


def is_live(item: Unreadable) -> bool:
    """Whether traffic may go to a version that cannot be read."""
    return (item.object.get("status") or {}).get("stage") in LIVE


def _read(item: Object) -> Version | Unreadable:
    try:
        spec = ModelVersionSpec.model_validate(item["spec"])
    except ValidationError as error:
        return Unreadable(item, Reason.INVALID_SPEC, problem_of("spec", error))
    status = read_status(item, ModelVersionStatus, views=("display",))
    if isinstance(status, Unreadable):
        return status
    return Version(item, spec, status, _place(status))


def _place(status: ModelVersionStatus) -> Place:
    return Place(
        stage=status.stage,
        step=status.step_index,
        since=status.step_started_time,
        successor=Successor(status.replaced_by, status.replaced_by_content or "") if status.replaced_by else None,
        retired_from=status.retired_from,
        hold=Hold(timedelta(seconds=status.held_seconds), status.held_since),
        idle_since=status.idle_since,
    )


def duration_of(text: str) -> timedelta:
    """The length of a Gateway API duration such as 1h30m or 500ms."""
    return timedelta(seconds=sum(int(number) * _UNITS_S[unit] for number, unit in re.findall(r"([0-9]+)(ms|h|m|s)", text)))


def moved(versions: Sequence[Version], moves: Sequence[Move]) -> list[Version]:
    """The versions at their new places."""
    places: Mapping[str, Place] = {move.version: move.to for move in moves}
    return [version.at(places.get(version.name, version.place)) for version in versions]


def production_of(versions: Sequence[Version]) -> Version | None:
    return next((version for version in versions if version.place.stage == Stage.PRODUCTION), None)


def may_follow(version: Version) -> bool:
    """Whether one that is not live may be next: its first step lies ahead, or it held production and returns when the present one goes."""
    return not version.live and (version.in_service or version.may_return)


def find_version(versions: Sequence[Version], name: str | None) -> Version | None:
    return next((version for version in versions if version.name == name), None)
