"""A model's small world for tests: versions, children that a test makes ready, and a Gateway that answers when it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import timestamp
from finetune_operator.core.containment import DESIRED_ANNOTATION, contains, desired_mark
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, ActionProblem, Apply, Delete, SetOwners
from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.observed import Observed, observed_of, rival_route
from finetune_operator.modelversion.plan import ModelPlan, plan_model

START = datetime(2026, 1, 1, tzinfo=UTC)
SHA = "ab" * 32
GATEWAY = {"type": "GatewayAPI", "gatewayAPI": {"gateway": {"name": "gw", "namespace": "infra"}, "hostnames": []}}
STEPS = [
    {"name": "canary", "stage": "Canary", "weight": 5, "hold": "10m"},
    {"name": "staging", "stage": "Staging", "weight": 10, "hold": "10m"},
    {"name": "production", "stage": "Production", "hold": "0s"},
]


def model_version(number: int, *, steps: list[Object] | None = None, traffic: Object | None = None, **rollout: Any) -> Object:
    """A version of the model `bot` as the API server would return it, before its first status."""
    name = f"bot-v{number}"
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1"},
        "spec": {
            "model": "bot",
            "version": number,
            "artifacts": [
                {"name": "Merged", "format": "Safetensors", "uri": f"pvc://files-{number}/jobs/u/merged", "sha256": SHA, "bytes": 9},
                {"name": "Q8_0", "format": "GGUF", "uri": f"pvc://files-{number}/jobs/u/bot-Q8_0.gguf", "sha256": SHA, "bytes": 9},
            ],
            "lineage": {
                "baseModel": "hf://org/base",
                "runDigest": SHA,
                "jobRef": f"job-{number}",
                "scoreMetric": "ExactMatch",
                "metrics": {"ExactMatch": 0.93456, "Perplexity": 12.0},
            },
            "serving": {"type": "LlamaCpp", "artifact": "Q8_0", "image": "finetune-operator/server:dev", "keepPrevious": "1h"},
            "rollout": {
                "traffic": GATEWAY if traffic is None else traffic,
                "steps": STEPS if steps is None else steps,
                **rollout,
            },
            "lifecycle": "Active",
        },
    }


def claim(name: str, **changes: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": "7", **changes.pop("metadata", {})},
        "spec": {"accessModes": changes.pop("access_modes", ["ReadWriteOnce"])},
        "status": {"phase": changes.pop("phase", "Bound")},
    }


@dataclass
class World:
    settings: Settings = field(default_factory=Settings)
    now: datetime = START
    versions: dict[str, Object] = field(default_factory=dict)
    children: dict[tuple[str, str], Object] = field(default_factory=dict)
    claims: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    problems: list[ActionProblem] = field(default_factory=list)
    autoscalers: list[Object] = field(default_factory=list)
    other_routes: list[Object] = field(default_factory=list)
    gateway_api: bool = True
    watched_since: datetime | None = None
    uids: int = 0
    applied: dict[tuple[str, str], Object] = field(default_factory=dict)
    """Spec of each child as it was applied last."""
    pods_seen: set[str] = field(default_factory=set)
    after_write: Callable[[World], None] = lambda world: None

    # ---------------------------------------------------------------------------------------------------- what a person does

    def add(self, *versions: Object) -> None:
        for version in versions:
            self.versions[version["metadata"]["name"]] = version
            for artifact in version["spec"]["artifacts"]:
                name = artifact["uri"].removeprefix("pvc://").partition("/")[0]
                self.claims.setdefault(name, claim(name))

    def delete(self, name: str) -> None:
        """With what the garbage collector does about it: what has no owner left goes."""
        gone = {self.versions.pop(name)["metadata"]["uid"]}
        while gone:
            orphans = [key for key, child in self.children.items() if self._lost_all(child, gone)]
            gone = {self.children.pop(key)["metadata"]["uid"] for key in orphans}

    @staticmethod
    def _lost_all(child: Object, gone: set[str]) -> bool:
        owners = child["metadata"].get("ownerReferences") or []
        child["metadata"]["ownerReferences"] = left = [owner for owner in owners if owner["uid"] not in gone]
        return bool(owners) and not left

    def edit(self, name: str, **rollout: Any) -> None:
        self.versions[name]["spec"]["rollout"].update(rollout)
        self.versions[name]["metadata"]["generation"] += 1

    def tick(self, **duration: float) -> None:
        self.now += timedelta(**duration)

    # ---------------------------------------------------------------------------------------------------- what the cluster does

    def set_available(self, name: str, available: int) -> None:
        deployment = self.children["Deployment", name]
        replicas = deployment["spec"]["replicas"]
        was = {c["type"]: c for c in deployment.get("status", {}).get("conditions", [])}.get("Available", {})
        status = str(available >= replicas)
        since = was["lastTransitionTime"] if was.get("status") == status else timestamp(self.now)
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": replicas,
            "availableReplicas": available,
            "conditions": [{"type": "Available", "status": status, "lastTransitionTime": since}],
        }
        before = self.pods.get(name, {}).get("status", {}).get("conditions", [{}])[0]
        ready = str(available > 0)
        since = before.get("lastTransitionTime") if before.get("status") == ready else None
        self.pods[name] = server_pod(
            name, conditions=[{"type": "Ready", "status": ready, "lastTransitionTime": since or timestamp(self.now)}]
        )

    def all_ready(self) -> None:
        for kind, name in list(self.children):
            if kind == "Deployment":
                self.set_available(name, self.children[kind, name]["spec"]["replicas"])

    def accept_route(self, status: str = "True", reason: str = "Accepted") -> None:
        route = self.children.get(("HTTPRoute", "bot"))
        if route is None:
            return
        generation = route["metadata"]["generation"]
        was = {c["type"]: c for parent in route.get("status", {}).get("parents", []) for c in parent["conditions"]}
        since = {type: c["lastTransitionTime"] for type, c in was.items() if c["status"] == status}
        route["status"] = {
            "parents": [
                {
                    "parentRef": dict(parent),
                    "controllerName": "example.com/gateway",
                    "conditions": [
                        {
                            "type": type,
                            "status": status,
                            "reason": reason,
                            "message": "",
                            "observedGeneration": generation,
                            "lastTransitionTime": since.get(type, timestamp(self.now)),
                        }
                        for type in ("Accepted", "ResolvedRefs")
                    ],
                }
                for parent in route["spec"]["parentRefs"]
            ]
        }

    # ---------------------------------------------------------------------------------------------------- passes

    def copy(self) -> World:
        """The same world, apart; without the watcher of its writes."""
        return World(
            settings=self.settings,
            now=self.now,
            versions=_apart(self.versions),
            children=dict(zip(self.children, _apart(list(self.children.values())), strict=True)),
            claims=_apart(self.claims),
            pods=_apart(self.pods),
            gateway_api=self.gateway_api,
            watched_since=self.watched_since,
            autoscalers=_apart(self.autoscalers),
            other_routes=_apart(self.other_routes),
            uids=self.uids,
            applied={key: _apart(spec) for key, spec in self.applied.items()},
        )

    def observed(self) -> Observed:
        def of(kind: str) -> list[Object]:
            return [item for (its, _), item in self.children.items() if its == kind]

        children = {kind: of(kind) for kind in ("Deployment", "Service", "PodDisruptionBudget", "HTTPRoute")}
        return observed_of(
            {**children, "Pod": list(self.pods.values()), "HorizontalPodAutoscaler": self.autoscalers},
            rivals=map(rival_route, [*children["HTTPRoute"], *self.other_routes]),
            claims=self.claims.values(),
            gateway_api=self.gateway_api,
            watched_since=self.watched_since,
            problems=self.problems,
        )

    def plan(self) -> ModelPlan:
        return plan_model(_apart(list(self.versions.values())), self.observed(), self.settings, self.now)

    def effects(self, plan: ModelPlan) -> Iterator[Callable[[], None]]:
        """The writes that the plan comes to, in order; what is already so is no write."""
        for action in plan.actions:
            if not (isinstance(action, Apply) and self._is_done(action)):
                yield lambda action=action: self._act(action)
        for name, status in plan.statuses.items():
            if self.versions[name].get("status") != status:
                yield lambda name=name, status=status: self.versions[name].__setitem__("status", status)

    def run_pass(self, writes: int | None = None) -> int:
        """One pass; killed after `writes` writes where that is given. Returns how many were done."""
        done = 0
        for effect in self.effects(self.plan()):
            if done == writes:
                break
            effect()
            self.after_write(self)
            done += 1
        return done

    def settle(self) -> int:
        """Passes at one moment until nothing is written any more, with ready pods and an accepting Gateway left as they are."""
        total = 0
        for _ in range(30):
            done = self.run_pass()
            if not done:
                return total
            total += done
        raise AssertionError("the plan does not come to rest")

    def thrive(self) -> None:
        """The same with every pod ready and every route accepted at once."""
        for _ in range(30):
            before = json.dumps([list(self.versions.values()), list(self.children.values())])
            self.run_pass()
            self.all_ready()
            self.accept_route()
            if before == json.dumps([list(self.versions.values()), list(self.children.values())]):
                return
        raise AssertionError("the plan does not come to rest")

    def thrive_without_pods(self) -> None:
        """The same with pods as they are."""
        for _ in range(5):
            self.settle()
            self.accept_route()

    def _act(self, action: Action) -> None:
        if isinstance(action, Apply):
            self._apply(action)
        elif isinstance(action, Delete):
            live = self.children.pop((action.kind, action.name))
            assert live["metadata"]["uid"] == action.uid
            if action.kind == "Deployment":
                self.pods.pop(action.name, None)
        elif isinstance(action, SetOwners):
            self.claims[action.name]["metadata"]["ownerReferences"] = list(action.owners)
        else:
            raise AssertionError(f"a model's plan has no {action}")

    def _is_done(self, action: Apply) -> bool:
        live = self.children.get(_key(action))
        return not action.exactly and live is not None and contains(live, self._yielding(action, live))

    def _yielding(self, action: Apply, live: Object) -> Object:
        theirs = {member: live["spec"][member] for member in action.yields if member in live["spec"]}
        return {**_marked(action.body), "spec": {**action.body["spec"], **theirs}}

    def _apply(self, action: Apply) -> None:
        live = self.children.get(_key(action))
        body = _apart(self._yielding(action, live) if live else _marked(action.body))
        before = self.applied.get(_key(action), {})
        self.applied[_key(action)] = _apart(body["spec"])
        if live is None:
            self.uids += 1
            body["metadata"] |= {"uid": f"child-{self.uids}", "generation": 1}
            self.children[_key(action)] = body
            return
        made = server_side(live["spec"], before, body["spec"])
        if made != live["spec"]:
            live["metadata"]["generation"] += 1
        live["spec"] = made
        live["metadata"] |= body["metadata"]

    # ---------------------------------------------------------------------------------------------------- what a test asks

    def status(self, name: str) -> Object:
        return self.versions[name]["status"]

    def stages(self) -> dict[str, str]:
        return {name: version.get("status", {}).get("stage", "") for name, version in self.versions.items()}

    def weights(self) -> dict[str, int]:
        return {name: version.get("status", {}).get("weight", 0) for name, version in self.versions.items()}

    def routed(self) -> dict[str, int]:
        route = self.children.get(("HTTPRoute", "bot"))
        return {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]} if route else {}

    def message(self, name: str, type: str) -> str:
        return next(str(c.get("message", "")) for c in self.status(name)["conditions"] if c["type"] == type)

    def condition(self, name: str, type: str) -> tuple[str, str] | None:
        found = [c for c in self.status(name)["conditions"] if c["type"] == type]
        return (found[0]["status"], found[0]["reason"]) if found else None


_MERGED = {"containers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath", "ports": "name"}


def server_side(live: Any, before: Any, wanted: Any, member: str = "") -> Any:
    """What server-side apply makes of it: members that others set stay, and those that were applied and no longer are go."""
    if isinstance(live, dict) and isinstance(wanted, dict) and member != "selector":
        known = before if isinstance(before, dict) else {}
        kept = {name: value for name, value in live.items() if name in wanted or name not in known}
        return kept | {name: server_side(live.get(name), known.get(name), value, name) for name, value in wanted.items()}
    key = _MERGED.get(member)
    if key is None or not isinstance(live, list) or not isinstance(wanted, list):
        return wanted
    here, known, asked = ({item[key]: item for item in items or []} for items in (live, before, wanted))
    kept = {name: item for name, item in here.items() if name in asked or name not in known}
    made = {name: server_side(here.get(name), known.get(name), item) for name, item in asked.items()}
    return list((kept | made).values())


def server_pod(version: str, *, ready: bool = True, **status: Any) -> Object:
    model, _, number = version.rpartition("-v")
    return {
        "metadata": {"name": f"{version}-pod", "labels": {"finetune-operator.io/model": model, "finetune-operator.io/version": number}},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **status},
    }


def refused_pod(version: str, restarts: int = 2) -> Object:
    ended = {"terminated": {"exitCode": 78, "message": "/models/x has SHA-256 00, expected ab: not served"}}
    return server_pod(version, ready=False, containerStatuses=[{"restartCount": restarts, "state": {}, "lastState": ended}])


def in_production(*numbers: int, **version: Any) -> World:
    """A world in which each of the versions went all the way, one after the other."""
    world = World()
    for number in numbers:
        world.add(model_version(number, **version))
        for _ in range(4):
            world.thrive()
            world.tick(minutes=11)
        world.thrive()
    return world


def canary() -> World:
    """Version 1 in production, and version 2 in its first step."""
    world = in_production(1)
    world.add(model_version(2))
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"
    return world


def _key(action: Apply) -> tuple[str, str]:
    return action.body["kind"], action.body["metadata"]["name"]


def _marked(body: Object) -> Object:
    annotations = {**body["metadata"].get("annotations", {}), DESIRED_ANNOTATION: desired_mark(body)}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}}


def _apart(data: Any) -> Any:
    return json.loads(json.dumps(data))
