"""Whatever people, pods, the Gateway and kill -9 do: what must hold of plan_model after every single write."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from finetune_api.modelversion import LIVE
from finetune_operator.core.names import Object
from finetune_operator.modelversion.policies.keep import DRAIN
from finetune_operator.modelversion.versions import duration_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.operator.modelversion.world import STEPS, World, model_version

TERMINAL = {"RolledBack", "Rejected"}
MANY_STEPS = [
    {"name": "one", "stage": "Canary", "weight": 1, "hold": "1m"},
    {"name": "many", "stage": "Canary", "weight": 70, "hold": "0s"},
    {"name": "all", "stage": "Production", "hold": "0s"},
]
numbers = st.integers(min_value=1, max_value=5)


class Model(RuleBasedStateMachine):
    """Up to five versions of one model, a Gateway that answers when it likes, an operator that may die after any write."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(after_write=self.after_write)
        self.stages: dict[str, str] = {}
        self.unrouted_since: dict[str, datetime] = {}
        self.served: dict[tuple[str, int | None], timedelta] = {}
        """How long the gateway really sent a step's weight to pods that really answered, by version and step."""
        self.unseen = False
        """Something happened that no pass has seen yet."""
        self.made = 0
        self.walks: set[str] = set()
        """Versions with files that were never served: they have to begin before their first step."""

    # ------------------------------------------------------------------------------------------------------------- what happens

    @rule(steps=st.sampled_from([STEPS, MANY_STEPS, []]), approval=st.sampled_from(["Automatic", "Manual"]))
    def publish(self, steps: list[Object], approval: str) -> None:
        taken = [version["spec"]["version"] for version in self.world.versions.values()]
        if max(taken, default=0) < 5:
            self.world.add(model_version(max(taken, default=0) + 1, steps=steps, approval=approval))

    @rule(number=numbers, field=st.sampled_from(["abort", "unabort", "paused", "retire", "activate", "approve", "unapprove", "unpause"]))
    def edit(self, number: int, field: str) -> None:
        version = self.world.versions.get(f"bot-v{number}")
        if version is None:
            return
        changes: dict[str, dict[str, Any]] = {
            "abort": {"abort": True},
            "unabort": {"abort": version.get("status", {}).get("stage") != "Production" and version["spec"]["rollout"].get("abort", False)},
            "paused": {"paused": True},
            "unpause": {"paused": False},
            "approve": {"approvedStep": 9},
            "unapprove": {"approvedStep": None},
        }
        if field in ("retire", "activate"):
            version["spec"]["lifecycle"] = "Retired" if field == "retire" else "Active"
        else:
            self.world.edit(f"bot-v{number}", **changes[field])

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        self._delete(f"bot-v{number}")

    @rule(number=numbers, same=st.booleans(), approval=st.sampled_from(["Automatic", "Manual"]))
    def make_again(self, number: int, same: bool, approval: str) -> None:
        """Deleted and created again, with the same files or with others, before the operator looks."""
        name = f"bot-v{number}"
        before = self.world.versions.get(name)
        if before is None:
            return
        self._delete(name)
        body = model_version(number, approval=approval)
        self.made += 1
        body["metadata"]["uid"] = f"uid-{name}-{self.made}"
        if same:
            body["spec"]["artifacts"] = before["spec"]["artifacts"]
        else:
            body["spec"]["artifacts"][1]["sha256"] = f"{self.made:064x}"
            self.walks.add(name)
        self.world.add(body)

    def _delete(self, name: str) -> None:
        if self.world.versions.pop(name, None):
            self.walks.discard(name)
            self.served = {key: served for key, served in self.served.items() if key[0] != name}
            self.unseen = True
            self.stages.pop(name, None)
            for key in [key for key in self.world.children if key[1] == name]:
                del self.world.children[key]
            self.world.pods.pop(name, None)
            self.world.pods_seen.discard(name)
            self.unrouted_since.pop(name, None)

    @rule(number=numbers, available=st.booleans())
    def pods(self, number: int, available: bool) -> None:
        if ("Deployment", f"bot-v{number}") in self.world.children:
            self.world.set_available(f"bot-v{number}", int(available))
            self.unseen = True

    @rule()
    def all_pods_ready(self) -> None:
        self.world.all_ready()

    @rule(status=st.sampled_from(["True", "True", "True", "False"]))
    def gateway_answers(self, status: str) -> None:
        self.unseen = True
        self.world.accept_route(status)
        self._note_unrouted()

    @rule(seconds=st.sampled_from([1, 15, 30, 61, 600, 3600]))
    def time_passes(self, seconds: int) -> None:
        self._time_passes(seconds)

    def _time_passes(self, seconds: int) -> None:
        """With something unseen or undone the operator is away meanwhile; the next pass is one of a new process."""
        for name in self.world.versions:
            if self._is_served(name):
                key = (name, self.world.status(name).get("stepIndex"))
                self.served[key] = self.served.get(key, timedelta(0)) + timedelta(seconds=seconds)
        self.world.tick(seconds=seconds)
        if self.unseen:
            self.world.watched_since = self.world.now

    @rule(what=st.sampled_from(["weight", "hostnames", "matches", "header rule", "filters", "labelled copy"]))
    def edit_the_route(self, what: str) -> None:
        """A person with kubectl edit: the API server counts a generation, and the Gateway has not seen it yet."""
        route = self.world.children.get(("HTTPRoute", "bot"))
        if route is None:
            return
        rule = route["spec"]["rules"][0]
        if what == "labelled copy":
            copied = json.loads(json.dumps(route))
            copied["metadata"] |= {"name": "a-copy", "uid": "copy"}
            self.world.children["HTTPRoute", "a-copy"] = copied
            return
        if what == "weight":
            rule["backendRefs"][0]["weight"] = 77
        elif what == "hostnames":
            route["spec"]["hostnames"] = ["elsewhere.example"]
        elif what == "matches":
            rule["matches"] = [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"name": "x", "value": "y"}]}]
        elif what == "header rule":
            route["spec"]["rules"].insert(
                0, {"matches": [{"headers": [{"name": "x", "value": "y"}]}], "backendRefs": rule["backendRefs"][:1]}
            )
        else:
            rule["filters"] = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}]
        route["metadata"]["generation"] += 1
        self.unseen = True

    @rule(writes=st.sampled_from([None, None, None, 0, 1, 2, 3]))
    def one_pass(self, writes: int | None) -> None:
        before = self._indices()
        self.world.run_pass(writes)
        self.unseen = writes is not None or bool(list(self.world.effects(self.world.plan())))
        self._nobody_was_let_go_early(before)
        for name, index in self._indices().items():
            was = before.get(name)
            assert was is None or index is None or index <= was + 1, f"{name} went from step {was} to {index} in one pass"

    @rule()
    def thrive(self) -> None:
        for _ in range(4):
            before = self._indices()
            self.world.run_pass()
            self._nobody_was_let_go_early(before)
            self.world.all_ready()
            self.world.accept_route()
            self._note_unrouted()
        self.unseen = bool(list(self.world.effects(self.world.plan())))

    @rule()
    def holds_are_over(self) -> None:
        self._time_passes(600)
        self.thrive()

    @precondition(lambda self: self.world.versions)
    @rule()
    def lose_every_status(self) -> None:
        for version in self.world.versions.values():
            version.pop("status", None)
        self.stages, self.served, self.unseen = {}, {}, True

    @rule(number=numbers)
    def lose_a_status(self, number: int) -> None:
        if version := self.world.versions.get(f"bot-v{number}"):
            version.pop("status", None)
            self.stages.pop(f"bot-v{number}", None)
            self.served = {key: served for key, served in self.served.items() if key[0] != f"bot-v{number}"}
            self.unseen = True

    # ------------------------------------------------------------------------------------------------------------- what must hold

    def _is_served(self, name: str) -> bool:
        """Whether the world, as the Gateway knows it, sends the version its step's share and a pod answers."""
        status, route = self.world.versions[name].get("status") or {}, self.world.children.get(("HTTPRoute", "bot"))
        if route is None or status.get("stage") not in {"Canary", "Staging"} or not self._answers(name):
            return False
        rules, conditions = route["spec"]["rules"], [c for p in route.get("status", {}).get("parents", []) for c in p["conditions"]]
        accepted = [c["status"] == "True" and c["observedGeneration"] == route["metadata"]["generation"] for c in conditions]
        plain = len(rules) == 1 and all(set(match) == {"path"} for match in rules[0]["matches"]) and not route["spec"].get("hostnames")
        return bool(accepted) and all(accepted) and plain and self.world.routed().get(name, 0) > 0

    def _nobody_was_let_go_early(self, before: dict[str, int | None]) -> None:
        for name, index in self._indices().items():
            was = before.get(name)
            if was is None or index is None or index != was + 1:
                continue
            served = self.served.get((name, was), timedelta(0))
            hold = duration_of(self.world.versions[name]["spec"]["rollout"]["steps"][was]["hold"])
            assert served >= hold, f"{name} left step {was} after {served} of {hold}"
        for key in list(self.served):
            if before.get(key[0]) != self._indices().get(key[0]):
                del self.served[key]

    def after_write(self, world: World) -> None:
        """After every single write, so also where the operator is killed next."""
        stages = world.stages()
        assert list(stages.values()).count("Production") <= 1
        for name, stage in stages.items():
            was = self.stages.get(name)
            if name in self.walks and stage:
                assert stage in {"Registered", "Archived", "RolledBack"}, f"{name} has new files and began as {stage}"
                self.walks.discard(name)
            assert was not in TERMINAL or stage == was, f"{name} came back from {was}"
            if was == "Archived" and stage != was:
                assert stage in {"Production", "Registered"}, f"{name} came back from the archive as {stage}"
        self.stages = stages
        self._nothing_in_use_was_deleted()

    def _nothing_in_use_was_deleted(self) -> None:
        """Pods end no sooner than DRAIN after the Gateway accepted a route without them (or the route itself went)."""
        for name in self.world.versions:
            gone = ("Deployment", name) not in self.world.children
            if gone and name in self.world.pods_seen:
                self.world.pods_seen.discard(name)
                assert name not in self.world.routed()
                since = self.unrouted_since.get(name)
                assert since is None or self.world.now >= since + DRAIN
            elif not gone:
                self.world.pods_seen.add(name)

    def _note_unrouted(self) -> None:
        routed = self.world.routed()
        for name in self.world.versions:
            if routed.get(name, 0) > 0:
                self.unrouted_since.pop(name, None)
            else:
                self.unrouted_since.setdefault(name, self.world.now)

    def _indices(self) -> dict[str, int | None]:
        return {name: version.get("status", {}).get("stepIndex") for name, version in self.world.versions.items() if version.get("status")}

    @invariant()
    def the_plan_adds_up(self) -> None:
        statuses = self.world.plan().statuses
        live = {name for name, status in statuses.items() if status["stage"] in LIVE}
        assert sum(status["weight"] for status in statuses.values()) == (100 if live else 0)
        assert [status["stage"] for status in statuses.values()].count("Production") <= 1
        taker = next((name for name in live if statuses[name]["stage"] == "Production"), min(live, key=_number, default=None))
        for name, status in statuses.items():
            if status["weight"] > 0 and name != taker:
                assert self._answers(name), f"{name} gets {status['weight']} % though nobody answers there"
                asked = self._asked(name, status) if status["stage"] in LIVE else None
                assert asked is None or status["weight"] <= asked, f"{name} gets more than its step says"
            if self.world.versions[name]["spec"]["rollout"].get("abort"):
                assert status["stage"] not in {"Registered", "Canary", "Staging"}
                if status["weight"] > 0 and status["stage"] != "Production":
                    assert not self._answers(str(taker)), "an aborted version keeps traffic"

    @invariant()
    def the_plan_comes_to_rest(self) -> None:
        """At one moment, with nothing else happening: passes end, and one more changes nothing."""
        world = self._copy()
        world.settle()
        plan = world.plan()
        assert list(world.effects(plan)) == []
        assert plan.events == ()
        assert plan.recheck_at is None or plan.recheck_at > world.now
        assert plan.recheck_at is None or plan.recheck_at <= world.now + timedelta(hours=1)

    def _asked(self, name: str, status: Object) -> int:
        """Weight of the present step; an edit may have taken that step away."""
        steps = self.world.versions[name]["spec"]["rollout"]["steps"]
        index = status.get("stepIndex")
        return 0 if index is None else int(steps[index].get("weight") or 0)

    def _answers(self, name: str) -> bool:
        deployment = self.world.children.get(("Deployment", name))
        return bool(deployment and deployment.get("status", {}).get("availableReplicas") and ("Service", name) in self.world.children)

    def _copy(self) -> World:
        return self.world.copy()


def _number(name: str) -> int:
    return int(name.rpartition("v")[2])


# Shrinking a machine like this takes minutes: add Phase.shrink where a failure needs it.
Model.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
TestModel = Model.TestCase
