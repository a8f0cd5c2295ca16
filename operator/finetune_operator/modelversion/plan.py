"""One pass over all versions of one model: every stage, weight, child and condition. Pure.

The order of a pass: read → leave (abort, retire, reject) → return of the former production version → next steps → shares → children.
A pass that moves a version writes status only; the next one acts. So every decision is durable before it is acted upon, and each
pass can be interrupted anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain

from finetune_api.modelversion import HISTORY_ENTRIES, Display, HistoryEntry, ModelVersionStatus, PublishedArtifact, Stage
from finetune_api.outcome import Reason
from finetune_api.status import timestamp

from finetune_operator.core import names
from finetune_operator.core.conditions import Condition, merge
from finetune_operator.core.containment import desired_mark
from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, Apply, Delete, Event, SetOwners
from finetune_operator.core.settings import Settings
from finetune_operator.core.unreadable import complaint
from finetune_operator.modelversion.conditions import (
    Outlook,
    bound_to_a_node,
    conditions_of,
    grace_ends,
    is_one_node,
    newly_stalled,
    put_right,
    server_put_right,
    silent_from,
)
from finetune_operator.modelversion.observed import ChildFact, DeploymentFact, NotedTemplate, Observed
from finetune_operator.modelversion.policies import edits, keep
from finetune_operator.modelversion.policies.restore import restored_moves
from finetune_operator.modelversion.policies.steps import next_step, too_much
from finetune_operator.modelversion.policies.succession import after_departures, departure, displacements, interrupted_at, surplus
from finetune_operator.modelversion.policies.traffic import followed_traffic
from finetune_operator.modelversion.resources.deployment import asked_of, make_deployment, make_template, owners_of_server
from finetune_operator.modelversion.resources.disruption_budget import API_VERSION as BUDGET_API_VERSION
from finetune_operator.modelversion.resources.disruption_budget import KIND as BUDGET_KIND
from finetune_operator.modelversion.resources.disruption_budget import make_disruption_budget
from finetune_operator.modelversion.resources.http_route import API_VERSION as ROUTE_API_VERSION
from finetune_operator.modelversion.resources.http_route import KIND as ROUTE_KIND
from finetune_operator.modelversion.resources.http_route import reference_to
from finetune_operator.modelversion.resources.service import endpoint, make_service
from finetune_operator.modelversion.situation import Situation
from finetune_operator.modelversion.unread import held_place
from finetune_operator.modelversion.versions import Move, Version, by_number, find_version, is_live, moved, read_versions


@dataclass(frozen=True)
class ModelPlan:
    """What a pass over a model decided.

    `actions` in this order, then each of `statuses` (whole status by version name, written where it differs, in this order: a version
    that gives Production up comes before the one that takes it), then `events` ((version name, event) each). A pass that moves a
    version has no actions: its decision is durable before the next pass acts upon it.
    """

    statuses: Mapping[str, Object]
    actions: tuple[Action, ...] = ()
    events: tuple[tuple[str, Event], ...] = ()
    recheck_at: datetime | None = None


_UNREADABLE = "no version of the model takes a step, and pods and traffic of this one stay as they are, until it is mended or deleted"


def plan_model(versions: Sequence[Object], observed: Observed, settings: Settings, now: datetime) -> ModelPlan:
    """The plan for all ModelVersion objects of one model in one namespace; those under deletion get no status and no children."""
    readable, unreadable = read_versions(versions)
    told = {item.object["metadata"]["name"]: complaint(item, _UNREADABLE, now) for item in unreadable}
    complaints = {name: status for name, (status, _) in told.items()}
    said = tuple((name, event) for name, (_, events) in told.items() for event in events)
    held = [held_place(item, observed.route) for item in unreadable if is_live(item)]
    known = [version for version in (*readable, *held) if version]
    if None in held:
        return ModelPlan(complaints, events=said)
    present = {item["metadata"]["name"] for item in versions if "deletionTimestamp" not in item["metadata"]}
    situation = Situation(by_number(known), observed, settings, now, observed.left_behind(present) if known else ())
    moves = decide_moves(situation)
    after = replace(situation, versions=moved(situation.versions, moves))
    children = {version.name: _children(version, after) for version in after.versions}
    statuses, events = _statuses(after, moves, children)
    return ModelPlan(
        statuses=complaints | statuses,
        actions=() if moves else tuple(_actions(after, children)),
        events=(*said, *events),
        recheck_at=_recheck_at(after),
    )


# ------------------------------------------------------------------------------------------------------------------------- moves


def decide_moves(situation: Situation) -> list[Move]:
    """At most one move per version and one promotion per pass. One that cannot be read stays where it is."""
    unread = {version.name for version in situation.versions if version.is_unread}
    return [move for move in _moves(situation) if move.version not in unread]


def _moves(situation: Situation) -> list[Move]:
    """Versions restored without status first find their places."""
    versions, now = situation.versions, situation.now
    found = [*surplus(versions, now), *restored_moves(versions, situation.observed.route, now)]
    placed = moved(versions, found)
    leaving = [move for version in placed if (move := departure(version, placed, situation.observed, now))]
    moves = [*(move for move in found if move.version not in {one.version for one in leaving}), *leaving]
    return_ = after_departures(versions, moves, now)
    if return_ and return_.version not in {move.version for move in moves}:
        return [*moves, return_]
    return moves or _advances(situation)


def _advances(situation: Situation) -> list[Move]:
    due = [version for version in situation.versions if version.next_index is not None and situation.obstacle_of(version) is None]
    moves: list[Move] = []
    for version in due:
        # two that are due at once may not fit beside each other
        move = None if too_much(version, moved(situation.versions, moves)) else next_step(version, situation.gate)
        moves += [move] if move else []
    promotion = next((move for move in moves if move.to.stage == Stage.PRODUCTION), None)
    if promotion is None:
        return moves
    promoted = find_version(situation.versions, promotion.version)
    rest = [move for move in moves if move.to.stage != Stage.PRODUCTION]
    displaced = displacements(promoted, situation.versions, situation.now) if promoted else []
    gone = {move.version for move in displaced}
    return [*displaced, *(move for move in rest if move.version not in gone), promotion]


# ------------------------------------------------------------------------------------------------------------------------- actions


def _actions(situation: Situation, children: Mapping[str, Sequence[Action]]) -> list[Action]:
    """Claims are secured first, servers come before the route that sends to them, and leave after it.

    Beside a version that cannot be read none leaves: how long it wants others to be kept is not known.
    """
    unread = any(version.is_unread for version in situation.versions)
    return [
        *_claim_owners(situation),
        *chain.from_iterable(children.values()),
        *_route(situation),
        *chain.from_iterable(_removals(version, situation) for version in situation.versions if not unread),
        *chain.from_iterable(_clearance(name, situation) for name in situation.left_behind if situation.is_done_with(name)),
    ]


def _claim_owners(situation: Situation) -> list[Action]:
    """A claim that the operator made belongs to the versions whose artifacts lie on it; the job let go of it before."""
    actions: list[Action] = []
    for claim in situation.observed.claims.values():
        labels = claim.labels or {}
        ours = labels.get(names.MANAGED_BY) == names.MANAGED_BY_VALUE and names.JOB_UID_LABEL in labels
        if not ours or labels.get(names.ARTIFACTS_LABEL) == "Keep" or claim.deleting:
            continue
        owned = {owner["uid"] for owner in claim.owners}
        missing = [version for version in situation.versions if _lies_on(version, claim.name) and version.uid not in owned]
        if missing:
            owners = (*claim.owners, *(names.owner_reference(version.object, controller=False) for version in missing))
            namespace = missing[0].namespace
            where = ("v1", "PersistentVolumeClaim", namespace, claim.name, claim.uid, claim.resource_version)
            actions.append(SetOwners(*where, owners, concern=f"claim {claim.name}"))
    return actions


def _lies_on(version: Version, claim: str) -> bool:
    return any(artifact.location.claim == claim for artifact in version.spec.artifacts)


def _children(version: Version, situation: Situation) -> list[Action]:
    """What is already there stays as it is while a check fails: a bad edit takes nothing down."""
    artifact, may_change = version.artifact, not version.is_unread and not situation.findings[version.name]
    if artifact is None or not may_change or not situation.pods_wanted(version):
        return []
    scaled = version.name in situation.observed.autoscalers
    deployment = make_deployment(version, _template(version, artifact, situation), _owners(version, situation))
    return [
        Apply(deployment, version.name, yields=("replicas",) if scaled else ()),
        _service(version, situation),
        *_disruption_budget(version, artifact, situation, several=scaled or version.spec.serving.replicas > 1),
    ]


def _put_right(version: Version, situation: Situation, children: Sequence[Action]) -> list[tuple[Reason, str]]:
    """What others changed that this pass puts right: (reason, sentence) each."""
    told = [(Reason.ROUTE_PUT_RIGHT, put_right(version, edited))] if (edited := situation.edited_under(version)) else []
    for action, fact in _there(version, situation, children):
        spec = {name: member for name, member in action.body["spec"].items() if name not in action.yields}
        changed = list(edits.edited(fact.spec, spec))
        # else it was not yet applied as it is wanted now
        if changed and fact.applied == desired_mark(action.body):
            told.append((Reason.SERVER_PUT_RIGHT, server_put_right(action.body, changed)))
    return told


def _added(version: Version, situation: Situation, children: Sequence[Action]) -> list[str]:
    """What others set beside that: it is kept."""
    return [
        f"{action.body['kind']} {path}"
        for action, fact in _there(version, situation, children)
        for path in edits.added(fact.spec, action.body["spec"])
    ]


def _there(version: Version, situation: Situation, children: Sequence[Action]) -> Iterator[tuple[Apply, DeploymentFact | ChildFact]]:
    """Its Deployment and Service as they are wanted and as they are."""
    facts: dict[str, DeploymentFact | ChildFact | None] = {
        "Deployment": situation.observed.deployments.get(version.name),
        "Service": situation.observed.services.get(version.name),
    }
    for action in children:
        fact = facts.get(action.body["kind"]) if isinstance(action, Apply) else None
        if isinstance(action, Apply) and fact:
            yield action, fact


def _service(version: Version, situation: Situation) -> Action:
    """By itself: a route that names no Service for a share would send it to others. One more label in the selector ends all traffic."""
    wanted, there = make_service(version, _owners(version, situation)), situation.observed.services.get(version.name)
    differs = there is not None and there.selector != wanted["spec"]["selector"]
    name_taken = there is not None and _is_name_taken(there.spec.get("ports") or [], wanted["spec"]["ports"])
    return Apply(wanted, f"Service {version.name}", exactly=differs, replaces=("ports",) if name_taken else ())


def _is_name_taken(live: Sequence[Object], wanted: Sequence[Object]) -> bool:
    """Whether a port of ours has another number or protocol now: server-side apply would add ours, under the same name, beside it."""
    key = {port["name"]: (port["port"], port["protocol"]) for port in wanted}
    return any(port.get("name") in key and key[port["name"]] != (port.get("port"), port.get("protocol", "TCP")) for port in live)


def _owners(version: Version, situation: Situation) -> list[Object]:
    route = situation.observed.route
    return owners_of_server(version, reference_to(route) if route else None)


def _disruption_budget(version: Version, artifact: PublishedArtifact, situation: Situation, *, several: bool) -> list[Action]:
    """Taken away while a pod finds no node because its claim ties it to one: the drain of that node would never end."""
    claim = situation.observed.claims.get(artifact.location.claim)
    if several and not bound_to_a_node(version, claim, situation.observed, situation.now):
        return [Apply(make_disruption_budget(version), version.name)]
    there = situation.observed.disruption_budgets.get(version.name)
    if there is None:
        return []
    return [Delete(BUDGET_API_VERSION, BUDGET_KIND, version.namespace, version.name, there.uid, concern=version.name)]


def _template(version: Version, artifact: PublishedArtifact, situation: Situation) -> NotedTemplate:
    """The one that the running pods were made from, while the spec asks for the same."""
    running = situation.observed.deployments.get(version.name)
    if running and running.noted and running.noted.asked == asked_of(version):
        return running.noted
    image = version.spec.serving.image or situation.image_of(version)
    one_node = is_one_node(situation.observed.claims.get(artifact.location.claim))
    return make_template(version, artifact, image, one_node=one_node, settings=situation.settings)


def _route(situation: Situation) -> list[Action]:
    """Waits for nothing else: what a refused server or claim of one version holds up must not hold up traffic of the others."""
    route, body = situation.observed.route, situation.route_body
    if body:
        return [Apply(body, _ROUTE, exactly=bool(situation.route_differs))]
    live = any(version.live for version in situation.versions) or situation.lingering
    if route and situation.versions and not (live and followed_traffic(situation.versions).gateway_api):
        where = (ROUTE_API_VERSION, ROUTE_KIND, situation.versions[0].namespace, route.name)
        return [Delete(*where, route.uid, concern=_ROUTE)]
    return []


_ROUTE = "route"


def _removals(version: Version, situation: Situation) -> list[Action]:
    if not keep.may_stop(situation.idle_since(version), situation.now):
        return []
    return _clearance(version.name, situation)


def _clearance(name: str, situation: Situation) -> list[Action]:
    """Everything that serves under a version's name goes."""
    observed, namespace = situation.observed, situation.versions[0].namespace
    there = (
        ("apps/v1", "Deployment", observed.deployments.get(name)),
        ("v1", "Service", observed.services.get(name)),
        (BUDGET_API_VERSION, BUDGET_KIND, observed.disruption_budgets.get(name)),
    )
    return [Delete(api_version, kind, namespace, name, fact.uid, concern=name) for api_version, kind, fact in there if fact]


# ------------------------------------------------------------------------------------------------------------------------- status


def _statuses(
    situation: Situation, moves: Sequence[Move], children: Mapping[str, Sequence[Action]]
) -> tuple[dict[str, Object], list[tuple[str, Event]]]:
    by_name = {move.version: move for move in moves}
    statuses: dict[str, Object] = {}
    events: list[tuple[str, Event]] = []
    written = [version for version in situation.versions if not version.is_unread]
    for version in sorted(written, key=lambda version: version.place.stage == Stage.PRODUCTION):
        version = version.at(replace(version.place, idle_since=situation.idle_since(version)))
        outlook = _outlook(version, situation, children[version.name])
        conditions = conditions_of(version, outlook)
        statuses[version.name] = _status(version, situation, conditions, by_name.get(version.name))
        events += [(version.name, Event("Warning", reason, words)) for reason, words in outlook.put_right]
        events += [(version.name, event) for event in _events(version, by_name.get(version.name), newly_stalled(version, conditions))]
    return statuses, events


def _outlook(version: Version, situation: Situation, children: Sequence[Action]) -> Outlook:
    keeps = situation.obstacle_of(version) if version.next_index is not None else None
    return Outlook(
        versions=situation.versions,
        gate=situation.gate,
        finding=situation.findings[version.name],
        obstacle=keeps,
        pods_wanted=situation.pods_wanted(version),
        weight=situation.weights[version.name],
        put_right=tuple(_put_right(version, situation, children)),
        added=tuple(_added(version, situation, children)),
        lingering=situation.lingering,
    )


def _status(version: Version, situation: Situation, conditions: Sequence[Condition], move: Move | None) -> Object:
    place, lineage = version.place, version.spec.lineage
    weight, score = situation.sent[version.name], lineage.metrics.get(lineage.score_metric)
    history = [*version.status.history, *([_entry(version, move, situation.now)] if move else [])]
    status = ModelVersionStatus(
        stage=place.stage,
        weight=weight,
        step_index=version.step_index,
        step_started_time=place.since,
        idle_since=place.idle_since,
        replaced_by=place.successor.name if place.successor else None,
        replaced_by_content=(place.successor.content or None) if place.successor else None,
        retired_from=place.retired_from,
        held_seconds=int(place.hold.counted.total_seconds()),
        held_since=place.hold.since,
        image=situation.image_of(version),
        endpoint=endpoint(version) if situation.pods_wanted(version) else None,
        conditions=merge(version.status.conditions, conditions, version.generation, situation.now),
        display=Display(score="" if score is None else f"{score:.3g}", weight=f"{weight}%"),
        history=history[-HISTORY_ENTRIES:],
        observed_generation=version.generation,
    )
    return (version.status.model_extra or {}) | status.wire()


def _entry(version: Version, move: Move, now: datetime) -> HistoryEntry:
    return HistoryEntry.model_validate(
        {
            "time": timestamp(now),
            "from": version.status.stage.value if version.has_status else "",
            "to": move.to.stage.value,
            "by": move.by,
            "why": move.why,
            "evidence": move.evidence,
        }
    )


def _events(version: Version, move: Move | None, stalled: Condition | None) -> list[Event]:
    events = []
    if move:
        bad = move.to.stage in (Stage.ROLLED_BACK, Stage.REJECTED)
        events.append(Event("Warning" if bad else "Normal", move.to.stage.value, move.why))
    if stalled:
        events.append(Event("Warning", stalled.reason, stalled.message))
    return events


# ------------------------------------------------------------------------------------------------------------------------- time


def _recheck_at(situation: Situation) -> datetime | None:
    """When time alone changes the plan: the end of a hold, of keepPrevious, of a drain, of the scheduler's or the Gateway's grace.

    A claim that is not bound is looked at again as well: no watch tells of one that a user made.
    """
    waiting = [pod.unschedulable_since for pod in situation.observed.pods]
    waiting += [deployment.refused_since for deployment in situation.observed.deployments.values()]
    moments: list[datetime | None] = [since + SCHEDULING_GRACE for since in waiting if since]
    for version in situation.versions:
        keeps = situation.obstacle_of(version) if version.next_index is not None else None
        idle = situation.idle_since(version)
        moments += [
            keeps.until if keeps else None,
            keep.kept_until(version, situation.versions),
            interrupted_at(version, situation.versions, situation.now),
            idle + keep.DRAIN if idle else None,
            situation.now + timedelta(seconds=situation.settings.missing_recheck_s) if _awaits_claim(version, situation) else None,
        ]
    if not situation.gate.route_settled:
        moments += [grace_ends(situation.versions, situation.now), silent_from(situation.versions, situation.now)]
    if situation.taken_by:
        moments.append(situation.now + timedelta(seconds=situation.settings.missing_recheck_s))
    return min((moment for moment in moments if moment and moment > situation.now), default=None)


def _awaits_claim(version: Version, situation: Situation) -> bool:
    claims = [situation.observed.claims.get(artifact.location.claim) for artifact in version.spec.artifacts]
    return version.in_service and not all(claim and claim.phase == "Bound" and not claim.deleting for claim in claims)
