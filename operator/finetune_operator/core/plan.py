"""What a pass decided: the words in which pure code speaks to the code that acts. Pure.

Each action has a `concern`: what it is a part of. After a problem the later actions of its concern wait for the next pass, and no
others; deletions always go on. Without a word of its own an action concerns the whole plan's one subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.outcome import Reason

from finetune_operator.core.names import Object


@dataclass(frozen=True)
class Create:
    """POST once, never applied again. 409: whose is it? Ours is fine; a stranger's or a dying one is a problem of this pass.

    `dry_run_pod` is sent first as a dry-run Pod create, so that Pod Security and LimitRange answer in the API's words.
    """

    body: Object
    dry_run_pod: Object | None = None
    concern: str = ""


@dataclass(frozen=True)
class Apply:
    """Server-side apply with our field manager, skipped where the live object already contains `body`.

    `exactly`: not skipped then either, because a list that is replaced as a whole holds more than is wanted. `yields`: members of spec
    that somebody else sets once the object is there; they are applied as they are found. `replaces`: lists of spec that are put in place
    as a whole before, because an item of others under a key of its own would stand beside ours and be refused.
    """

    body: Object
    concern: str = ""
    exactly: bool = False
    yields: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delete:
    """Delete exactly the object that was seen: `uid` is a precondition."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    propagation: Literal["Foreground", "Background"] = "Background"
    concern: str = ""


@dataclass(frozen=True)
class SetOwners:
    """Replace the owner references of an object as it was seen (resourceVersion is a precondition)."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    owners: tuple[Object, ...]
    concern: str = ""


Action = Create | Apply | Delete | SetOwners


@dataclass(frozen=True)
class Event:
    """An entry for `kubectl describe`: type, reason (PascalCase), a sentence."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class ActionProblem:
    """Why an action of the pass before could not be done, in the API's words; kept by the reconciler until it succeeds."""

    kind: str
    name: str
    reason: Reason
    message: str


PASSING_PROBLEMS = frozenset({Reason.API_ERROR, Reason.WAITING_FOR_PREVIOUS_OWNER})
"""Reasons of problems that pass by themselves: no person is needed for them."""


@dataclass(frozen=True)
class Plan:
    """`status` is the whole status to write for the object (compared with the live one, written once, only when it differs).

    Order of work: actions, then the status, then events. Where `status_first` is set the status is written before the actions and
    the actions wait for the next pass: a decision that must be durable before it is acted upon (startTime, an attempt number, a
    reserved version).
    """

    status: Object
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    recheck_at: datetime | None = None
    status_first: bool = False
