"""What of a version's Deployment and Service belongs to people and what to the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Apply
from finetune_operator.modelversion.policies.edits import added, edited

from tests.unit.operator.modelversion.world import World, canary, in_production


def deployment(world: World, name: str = "bot-v1") -> Object:
    return world.children["Deployment", name]


def pod_of(world: World) -> Object:
    spec: Object = deployment(world)["spec"]["template"]["spec"]
    return spec


def server(world: World) -> Object:
    return next(container for container in pod_of(world)["containers"] if container["name"] == "server")


def changed(world: World, change: Callable[[World], Any], kind: str = "Deployment") -> None:
    change(world)
    world.children[kind, "bot-v1"]["metadata"]["generation"] += 1


def message(world: World, type: str = "Ready", name: str = "bot-v1") -> str:
    return str(next(c["message"] for c in world.status(name)["conditions"] if c["type"] == type))


KEPT: dict[str, Callable[[World], Any]] = {
    "spec.template.spec.containers[proxy]": lambda world: pod_of(world)["containers"].insert(0, {"name": "proxy", "image": "proxy:1"}),
    "spec.template.spec.initContainers": lambda world: pod_of(world).update(initContainers=[{"name": "wait", "image": "wait:1"}]),
    "spec.template.spec.volumes[cache]": lambda world: pod_of(world)["volumes"].append({"name": "cache", "emptyDir": {}}),
    "spec.template.spec.nodeSelector": lambda world: pod_of(world).update(nodeSelector={"pool": "b"}),
    "spec.template.spec.tolerations": lambda world: pod_of(world).update(tolerations=[{"operator": "Exists"}]),
    "spec.template.spec.hostNetwork": lambda world: pod_of(world).update(hostNetwork=True),
    "spec.template.spec.containers[server].env[DEBUG]": lambda world: server(world)["env"].append({"name": "DEBUG", "value": "1"}),
    "spec.template.spec.containers[server].command": lambda world: server(world).update(command=["sh"]),
    "spec.template.spec.containers[server].resources.limits.cpu": lambda world: server(world)["resources"]["limits"].update(cpu="1"),
}


@pytest.mark.parametrize("path", KEPT)
def test_what_others_set_beside_it_is_kept_and_told(path: str) -> None:
    world = in_production(1)
    changed(world, KEPT[path])
    before = [*world.children["Deployment", "bot-v1"]["spec"]["template"]["spec"].items()]
    world.thrive()
    assert message(world).endswith(f"; set by others and kept: Deployment {path}")
    assert [*pod_of(world).items()] == before
    assert world.condition("bot-v1", "Ready") == ("True", "Serving")
    assert world.plan().events == ()


def test_it_is_kept_when_the_spec_changes() -> None:
    world = in_production(1)
    changed(world, KEPT["spec.template.spec.containers[proxy]"])
    world.versions["bot-v1"]["spec"]["serving"]["resources"] = {"memory": "2Gi"}
    world.thrive()
    assert server(world)["resources"]["limits"]["memory"] == "2Gi"
    assert {container["name"] for container in pod_of(world)["containers"]} == {"server", "proxy"}


def test_many_are_told_in_short() -> None:
    world = in_production(1)
    changed(world, lambda world: pod_of(world)["volumes"].extend({"name": f"v{n}", "emptyDir": {}} for n in range(9)))
    world.thrive()
    assert "volumes[v4] and 4 more" in message(world)


def test_a_port_that_others_add_to_the_service_is_kept_and_told() -> None:
    world = in_production(1)
    service = world.children["Service", "bot-v1"]
    changed(world, lambda world: service["spec"]["ports"].append({"name": "metrics", "port": 9090}), "Service")
    world.thrive()
    assert "Service spec.ports[metrics]" in message(world)
    assert [port["name"] for port in service["spec"]["ports"]] == ["http", "metrics"]


RIGHT: dict[str, tuple[str, Callable[[World], Any]]] = {
    "the image": ("spec.template.spec.containers[server].image", lambda world: server(world).update(image="mine:1")),
    "memory": ("resources.limits.memory", lambda world: server(world)["resources"]["limits"].update(memory="9Gi")),
    "an argument": ("containers[server].args", lambda world: server(world)["args"].append("--verbose")),
    "an environment variable": ("env[", lambda world: server(world)["env"][0].update(value="elsewhere")),
    "a volume": ("volumes[models]", lambda world: pod_of(world)["volumes"].pop(0)),
    "replicas": ("spec.replicas", lambda world: deployment(world)["spec"].update(replicas=4)),
    "the strategy": ("spec.strategy.type", lambda world: deployment(world)["spec"]["strategy"].update(type="Recreate")),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_the_operators_is_put_right_at_once_and_told_once(case: str) -> None:
    path, change = RIGHT[case]
    world = in_production(1)
    kept = world.copy().children["Deployment", "bot-v1"]["spec"]
    changed(world, change)
    plan = world.plan()
    ((name, event),) = plan.events
    assert (name, event.type, event.reason) == ("bot-v1", "Warning", "ServerPutRight")
    assert path in event.message
    assert "change it there" in event.message
    world.run_pass()
    assert world.condition("bot-v1", "Reconciling") == ("True", "ServerPutRight")
    assert sorted(deployment(world)["spec"]) == sorted(kept)
    assert list(edited(deployment(world)["spec"], kept)) == []
    world.thrive()
    assert world.plan().events == ()
    assert world.condition("bot-v1", "Reconciling") == ("False", "Settled")


def test_a_selector_of_the_service_that_others_changed_is_put_right_and_told() -> None:
    world = in_production(1)
    service = world.children["Service", "bot-v1"]
    changed(world, lambda world: service["spec"]["selector"].update(mine="yes"), "Service")
    assert [event.reason for _, event in world.plan().events] == ["ServerPutRight"]
    world.thrive()
    assert "mine" not in world.children["Service", "bot-v1"]["spec"]["selector"]


def test_replicas_that_an_autoscaler_sets_are_nobodys_edit() -> None:
    world = in_production(1)
    world.autoscalers.append({"metadata": {"name": "scaler"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "bot-v1"}}})
    world.thrive()
    changed(world, lambda world: deployment(world)["spec"].update(replicas=3))
    assert world.plan().events == ()


def test_a_change_of_the_spec_is_nobodys_edit() -> None:
    world = in_production(1)
    world.versions["bot-v1"]["spec"]["serving"]["replicas"] = 2
    assert world.plan().events == ()


# ---------------------------------------------------------------------------------------------------------------------- paused


def pause(world: World, name: str = "bot-v1") -> None:
    deployment(world, name)["spec"]["paused"] = True


def test_a_paused_deployment_is_named_while_nothing_waits_for_it() -> None:
    world = in_production(1)
    pause(world)
    world.thrive()
    assert "kubectl rollout resume deployment/bot-v1 -n team" in message(world)
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")
    assert deployment(world)["spec"]["paused"] is True, "whoever paused it had a reason"


def test_a_change_that_a_pause_holds_back_needs_a_person() -> None:
    world = in_production(1)
    pause(world)
    world.versions["bot-v1"]["spec"]["serving"]["resources"] = {"memory": "2Gi"}
    world.settle()
    deployment(world)["status"] |= {"updatedReplicas": 0}
    world.settle()
    assert world.condition("bot-v1", "Stalled") == ("True", "DeploymentPaused")
    assert world.condition("bot-v1", "Progressing") == ("False", "DeploymentPaused")
    assert "kubectl rollout resume" in message(world, "Stalled")
    del deployment(world)["spec"]["paused"]
    world.thrive()
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")


def test_a_pause_of_one_version_holds_up_no_other() -> None:
    world = canary()
    pause(world, "bot-v1")
    deployment(world, "bot-v1")["status"] |= {"updatedReplicas": 0}
    world.settle()
    world.accept_route()
    world.tick(minutes=11)
    world.settle()
    assert world.stages()["bot-v2"] == "Staging"


# ------------------------------------------------------------------------------------------------------------------- sidecars


def test_a_sidecar_is_not_taken_for_the_server() -> None:
    """Containers and their statuses come in any order."""
    world = in_production(1)
    changed(world, KEPT["spec.template.spec.containers[proxy]"])
    proxy = {"name": "proxy", "restartCount": 9, "lastState": {"terminated": {"exitCode": 78, "reason": "OOMKilled"}}}
    world.pods["bot-v1"]["status"] = {
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [proxy, {"name": "server", "restartCount": 0, "state": {"running": {}}}],
    }
    observed = world.observed()
    assert observed.pods[0].restarts == 0
    assert observed.pods[0].last_exit_code is None
    assert observed.deployments["bot-v1"].image == "finetune-operator/server:dev"


# ---------------------------------------------------------------------------------------------------------------------- pure


def test_what_the_api_server_fills_in_is_nobodys() -> None:
    wanted = {"containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}]}
    live = {
        "containers": [
            {"name": "a", "terminationMessagePath": "/dev/termination-log", "resources": {"limits": {"memory": "1024Mi"}}},
        ],
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
    }
    assert list(edited(live, wanted)) == list(added(live, wanted)) == []


@pytest.mark.parametrize(("port", "replaced"), [({"port": 8080}, ("ports",)), ({"protocol": "UDP"}, ("ports",)), ({"targetPort": 1}, ())])
def test_a_port_of_another_number_is_replaced_and_not_added_to(port: Object, replaced: tuple[str, ...]) -> None:
    world = in_production(1)
    world.children["Service", "bot-v1"]["spec"]["ports"][0] |= port
    (action,) = (action for action in world.plan().actions if isinstance(action, Apply) and action.body["kind"] == "Service")
    assert action.replaces == replaced
