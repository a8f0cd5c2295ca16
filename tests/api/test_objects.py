"""Defaults, immutability, status: what becomes of objects once they are accepted; and the children that are made of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.modelversion import ModelVersionSpec
from finetune_api.progress import Metric, TrainerStatus
from finetune_api.run import Stage
from finetune_api.sections.rollout import GatewayAPI
from finetune_operator.core.containment import contains
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.policies.progress import display, to_status
from finetune_operator.finetunejob.resources.run_spec import StageRequest
from finetune_operator.finetunejob.resources.stage_job import make_dry_run_pod, make_stage_job
from finetune_operator.kube.client import Client, Request, Response
from finetune_operator.modelversion.observed import our_part, route_fact
from finetune_operator.modelversion.resources.deployment import make_deployment, make_template, owners_of_server
from finetune_operator.modelversion.resources.disruption_budget import make_disruption_budget
from finetune_operator.modelversion.resources.http_route import make_http_route, route_mark
from finetune_operator.modelversion.resources.service import make_service
from finetune_operator.modelversion.versions import read_versions

from tests.api.client import Api, Object
from tests.api.manifests import GATEWAY, JOBS, NAMESPACE, STEPS, VERSIONS, job, version, with_

RICH_JOB: dict[str, Any] = {
    "publish": {"model": "bot", "rollout": {"traffic": GATEWAY, "steps": STEPS}},
    "export": {"gguf": ["Q8_0", "F16"]},
    "training": {"learningRate": 2e-4, "args": {"logging_steps": 5, "lr_scheduler_kwargs": {"num_cycles": 0.5}}},
    "scheduling": {
        "priorityClassName": "batch",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"x": [{"y": 1}]}},
    },
    "podMetadata": {"labels": {"team": "a"}},
    "evaluation": {"gates": [{"name": "g", "metric": "AnswerChoice", "against": "Base", "minImprovement": 0}]},
}


def where(body: Object) -> str:
    return f"{JOBS if body['kind'] == 'FineTuneJob' else VERSIONS}/{body['metadata']['name']}"


def with_numbers() -> Object:
    """Quantities without quotation marks, as in any Pod."""
    return job(
        resources={"cpu": 2, "memory": 4294967296, "sharedMemory": 67108864},
        stages={"prepare": {"cpu": 1}},
        storage={"persistentVolumeClaim": {"size": 1073741824}},
    )


OBJECTS = [
    job,
    version,
    with_numbers,
    lambda: job(**RICH_JOB),
    lambda: version(rollout={"traffic": GATEWAY, "steps": STEPS}, serving={"resources": {"cpu": 1}}),
]


@pytest.mark.parametrize("make", OBJECTS)
def test_applying_again_changes_nothing(api: Api, make: Any) -> None:
    """Once an operator has looked at it: before that, the next write of any kind stores the default of status as well."""
    body = make()
    created = api.apply(where(body), body)
    assert created.ok, created.message
    first = api.call("PATCH", f"{where(body)}/status", {"status": {"observedGeneration": 1}}, type="application/merge-patch+json")
    again = api.apply(where(body), body)
    read = api.call("GET", where(body)).body
    assert again.body["metadata"]["resourceVersion"] == first.body["metadata"]["resourceVersion"] == read["metadata"]["resourceVersion"]
    assert read["metadata"]["generation"] == 1


@pytest.mark.parametrize("make", OBJECTS)
def test_kubectl_apply_again_says_unchanged(api: Api, kubeconfig: Path, kubectl: Path, make: Any) -> None:
    """As Argo CD does, kubectl compares what was applied with what is there, and lists as a whole."""
    body = json.dumps(make())
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", "apply", "-f", "-"]
    said = [subprocess.run(command, input=body, check=True, capture_output=True, text=True, timeout=60).stdout for _ in range(2)]
    assert said[0].strip().endswith("created")
    assert said[1].strip().endswith("unchanged")


@pytest.mark.parametrize("make", OBJECTS)
def test_what_was_read_can_be_written_back(api: Api, make: Any) -> None:
    live = api.create(where(body := make()).rpartition("/")[0], body).body
    written = api.call("PUT", where(live), live)
    assert written.body["spec"] == live["spec"]
    assert written.body["metadata"]["generation"] == 1


@pytest.mark.parametrize(("make", "model"), [(job, FineTuneJobSpec), (version, ModelVersionSpec)])
def test_defaults_of_the_api_server_are_those_of_the_models(api: Api, make: Any, model: Any) -> None:
    """A spec means the same whether the API server filled it in or the model did: no default is said twice."""
    body = make()
    live = api.create(where(body).rpartition("/")[0], body).body
    assert model.model_validate(live["spec"]) == model.model_validate(body["spec"])
    assert model.model_validate(live["spec"]).wire() == model.model_validate(body["spec"]).wire()
    within_lists = {name: value for name, value in body["spec"].items() if isinstance(value, list)}  # the server fills nothing in there
    assert contains(live["spec"], model.model_validate(body["spec"]).wire() | within_lists)


def test_nested_defaults_are_filled_in(api: Api) -> None:
    live = api.create(JOBS, job(publish={"model": "bot", "rollout": {"traffic": GATEWAY, "steps": STEPS}}, export={"gguf": ["F16"]})).body
    assert live["spec"]["publish"]["serving"]["keepPrevious"] == "1h"
    assert live["spec"]["publish"]["rollout"]["steps"] == STEPS, "items of lists are left as they were written"
    assert live["spec"]["preparation"]["split"] == {"train": 0.8, "validation": 0.1, "test": 0.1, "seed": 42}


# --------------------------------------------------------------------------------------------------------------- immutability, status


@pytest.fixture(scope="module")
def started(api: Api) -> Object:
    live = api.create(JOBS, job(**RICH_JOB)).body
    live["status"] = {"startTime": "2026-01-01T00:00:00Z", "firstPodTime": "2026-01-01T00:00:01Z"}
    answer = api.call("PUT", f"{where(live)}/status", live)
    assert answer.ok, answer.message
    return answer.body  # type: ignore[no-any-return]


IMMUTABLE: list[tuple[str, Any]] = [
    ("spec.model.source", "pvc://base/other"),
    ("spec.model.dtype", "Float32"),
    ("spec.datasets", [{"name": "b", "source": "pvc://b/c"}]),
    ("spec.preparation.split.seed", 7),
    ("spec.adapter.type", "None"),
    ("spec.adapter.lora", {"rank": 8}),
    ("spec.method.sft", {"loss": "Completion"}),
    ("spec.quantization.type", "NF4"),
    ("spec.training.learningRate", 1e-5),
    ("spec.training.learningRate", None),
    ("spec.training.maxSteps", 5),
    ("spec.training.args.logging_steps", 6),
    ("spec.training.args.max_new", 1),
    ("spec.training.args", None),
    ("spec.resources.memory", "16Gi"),
    ("spec.stages.prepare.memory", "16Gi"),
    ("spec.stages.prepare.nodeSelector", {"a": "b"}),
    ("spec.stages.package.tolerations", [{"key": "a"}]),
    ("spec.stages.evaluate.affinity", {"nodeAffinity": {}}),
    ("spec.resources.cpuLimit", "4"),
    ("spec.image", "trainer:other"),
    ("spec.scheduling.nodeSelector", {"a": "b"}),
    ("spec.scheduling.tolerations.0.key", "other"),
    ("spec.scheduling.affinity.nodeAffinity.x.0.y", 2),
    ("spec.scheduling.affinity", None),
    ("spec.scheduling.runtimeClassName", "nvidia"),
    ("spec.imagePullSecrets", [{"name": "s"}]),
    ("spec.checkpoints.keep", 3),
    ("spec.evaluation.gates", None),
    ("spec.export.gguf", ["F16"]),
    ("spec.storage.persistentVolumeClaim", {"claimName": "files"}),
    ("spec.publish", None),
    ("spec.publish.rollout.steps", []),
    ("spec.retention.artifacts", "Keep"),
    ("spec.runId", "again"),
    ("spec.resumeFrom", {"jobName": "older"}),
]

MUTABLE: list[tuple[str, Any]] = [
    ("spec.suspend", True),
    ("spec.activeDeadlineSeconds", 60),
    ("spec.ttlSecondsAfterFinished", 60),
    ("spec.recovery.maxAttempts", 5),
    ("spec.scheduling.priorityClassName", "urgent"),
    ("spec.scheduling.priorityClassName", None),
    ("spec.podMetadata", None),
    ("spec.podMetadata.labels", {"team": "b"}),
]


@pytest.mark.parametrize(("path", "value"), IMMUTABLE)
def test_started_run_keeps_its_content(api: Api, started: Object, path: str, value: Any) -> None:
    refused = api.call("PUT", where(started), with_(started, path, value), dryRun="All")
    assert refused.code == 422
    assert "the run has started: only suspend" in refused.message


@pytest.mark.parametrize(("path", "value"), MUTABLE)
def test_started_run_takes_these_edits(api: Api, started: Object, path: str, value: Any) -> None:
    answer = api.call("PUT", where(started), with_(started, path, value), dryRun="All")
    assert answer.ok, answer.message


def test_every_member_of_a_job_is_tried(api: Api) -> None:
    """A new member of the spec is either in IMMUTABLE or in MUTABLE."""
    tried = {path.split(".")[1] for path, _ in IMMUTABLE + MUTABLE}
    members = {field.alias or name for name, field in FineTuneJobSpec.model_fields.items()}
    assert tried == members


@pytest.mark.parametrize(
    ("path", "value"), [("spec.training.learningRate", 1e-5), ("spec.model.source", "pvc://base/other"), ("spec.publish", None)]
)
def test_job_that_has_not_started_may_change(api: Api, path: str, value: Any) -> None:
    live = api.create(JOBS, job(**RICH_JOB)).body
    answer = api.call("PUT", where(live), with_(live, path, value))
    assert answer.ok, answer.message
    assert answer.body["metadata"]["generation"] == 2


@pytest.mark.parametrize("path", ["spec.stages.prepare.memory", "spec.scheduling.runtimeClassName"])
def test_a_run_of_which_no_pod_was_there_yet_may_be_mended(api: Api, path: str) -> None:
    live = api.create(JOBS, job(**RICH_JOB)).body
    live["status"] = {"startTime": "2026-01-01T00:00:00Z"}
    started = api.call("PUT", f"{where(live)}/status", live).body
    answer = api.call("PUT", where(started), with_(started, path, "512Mi" if path.endswith("memory") else None))
    assert answer.ok, answer.message


@pytest.mark.parametrize("make", [job, version])
def test_status_is_written_apart(api: Api, make: Any) -> None:
    body = make()
    live = api.create(where(body).rpartition("/")[0], body | {"status": {"observedGeneration": 5}}).body
    assert live["status"] == {"observedGeneration": -1}, "create takes no status"
    status = with_(live, "status.observedGeneration", 1)
    written = api.call("PUT", f"{where(live)}/status", with_(status, "spec.suspend", True)).body
    assert written["status"]["observedGeneration"] == 1
    assert (written["spec"], written["metadata"]["generation"]) == (live["spec"], 1), "and status no spec"
    stale = api.call("PUT", f"{where(live)}/status", status)
    assert stale.code == 409, "a status computed from an older object is refused"


def test_whatever_a_pod_reports_fits_the_status(api: Api) -> None:
    """A status over its own schema would be refused with every pass, and the job stand still for a number."""
    names = ("step", "total_steps", "epoch", "loss", "eval_loss", "learning_rate", "tokens_per_second", "gpu_memory_bytes")
    metrics = [Metric(name=name, value=value) for value in ("1e200", "-1e200", str(10**25)) for name in names]
    live = api.create(JOBS, job()).body
    for metric in metrics:
        report = TrainerStatus(progress_percentage=100, estimated_remaining_seconds=10**25, metrics=[metric])
        progress = to_status("train", report, None, datetime(2026, 1, 1, tzinfo=UTC))
        patch = {"status": {"progress": progress.wire(), "display": display(progress).wire()}}
        answer = api.call("PATCH", f"{where(live)}/status", patch, type="application/merge-patch+json")
        assert answer.ok, answer.message
        assert progress.wire().items() <= answer.body["status"]["progress"].items()


# ----------------------------------------------------------------------------------------------------------------------- children


def test_a_misspelt_toleration_is_refused_before_a_pod_is_made(api: Api) -> None:
    """The CRD takes tolerations as they are: the strict dry run is what tells a user."""
    sent: list[Request] = []

    async def send(request: Request) -> Response:
        sent.append(request)
        return Response(200, b"{}")

    live = api.create(JOBS, job(scheduling={"tolerations": [{"kee": "gpu", "operator": "Exists"}]})).body
    live["status"] = {"images": {"trainer": "trainer:dev", "server": "server:dev"}}
    spec = FineTuneJobSpec.model_validate(live["spec"])
    body = make_dry_run_pod(make_stage_job(spec, live, StageRequest(Stage.TRAIN, 1, "trainer:1"), Observed(), Settings()))
    asyncio.run(Client(send).create(body, dry_run=True))
    answer = api.call("POST", sent[0].path, sent[0].body, **dict(parse_qsl(sent[0].query)))
    assert answer.code == 400
    assert 'unknown field "spec.tolerations[2].kee"' in answer.message


@pytest.mark.parametrize("resources", [{"cpu": "0.5", "memory": "1024Mi"}, {"cpu": 1, "memory": "129e6"}, {"memory": 1073741824}])
@pytest.mark.parametrize("one_node", [True, False])
def test_children_are_accepted_and_then_as_wanted(api: Api, one_node: bool, resources: Object) -> None:
    """Strictly: no misspelt member; and what comes back contains what was sent, so that the next pass writes nothing."""
    live = api.create(VERSIONS, version(serving={"resources": resources, "replicas": 2})).body
    item = read_versions([live])[0][0]
    assert item.artifact
    deployment = make_deployment(
        item, make_template(item, item.artifact, "server:dev", one_node=one_node, settings=Settings()), owners_of_server(item, None)
    )
    budget = make_disruption_budget(item)
    for path, body in (
        ("apis/apps/v1", deployment),
        ("api/v1", make_service(item, owners_of_server(item, None))),
        ("apis/policy/v1", budget),
    ):
        plural = f"{body['kind'].lower()}s"
        answer = api.apply(f"/{path}/namespaces/{NAMESPACE}/{plural}/{item.name}", body)
        assert answer.ok, answer.message
        assert contains(answer.body, body)


def test_a_port_that_people_gave_another_number_is_put_back(api: Api) -> None:
    """What Apply.replaces is for: server-side apply alone adds ours beside theirs, and is refused for the name that both have."""
    item = read_versions([api.create(VERSIONS, version()).body])[0][0]
    body, path = make_service(item, owners_of_server(item, None)), f"/api/v1/namespaces/{NAMESPACE}/services/{item.name}"
    merge = "application/merge-patch+json"
    assert api.apply(path, body).ok
    (port,) = body["spec"]["ports"]
    assert api.call("PATCH", path, {"spec": {"ports": [port | {"port": 8080}]}}, type=merge).ok
    assert "Duplicate value" in api.apply(path, body, force="true").message
    assert api.call("PATCH", path, {"spec": {"ports": body["spec"]["ports"]}}, type=merge).ok
    assert [port["port"] for port in api.apply(path, body, force="true").body["spec"]["ports"]] == [80]


ROUTE = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes/bot"
ROUTE_SETTINGS = GatewayAPI.model_validate(GATEWAY["gatewayAPI"])


@pytest.mark.usefixtures("gateway_api")
def test_route_is_accepted_and_loses_the_owner_that_left(api: Api) -> None:
    versions = read_versions([api.create(VERSIONS, version()).body for _ in range(2)])[0]
    first, second = (item.name for item in versions)
    both = make_http_route(versions, {first: 95, second: 5}, ROUTE_SETTINGS)
    answer = api.apply(ROUTE, both, force="true")
    assert answer.ok, answer.message
    assert contains(answer.body, both)
    one = make_http_route(versions[1:], {second: 100}, ROUTE_SETTINGS)
    answer = api.apply(ROUTE, one, force="true")
    assert contains(answer.body, one)
    assert [owner["name"] for owner in answer.body["metadata"]["ownerReferences"]] == [second]


@pytest.mark.usefixtures("gateway_api")
def test_a_route_edited_by_hand_is_seen_to_differ_and_put_right_but_for_what_is_peoples(api: Api) -> None:
    versions = read_versions([api.create(VERSIONS, version()).body for _ in range(2)])[0]
    weights = dict(zip((item.name for item in versions), (95, 5), strict=True))
    wanted = make_http_route(versions, weights, ROUTE_SETTINGS)
    made = api.apply(ROUTE, wanted, force="true").body
    assert route_fact(made).ours == our_part(wanted["spec"]), "what the API server fills in is no difference"
    rule = made["spec"]["rules"][0]
    rule["matches"][0]["headers"] = [{"name": "x", "value": "y"}]
    rule["timeouts"] = {"request": "30s"}
    rule["filters"] = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}]
    made["spec"]["hostnames"] = ["elsewhere.example"]
    edited = api.call("PUT", ROUTE, made)
    assert edited.ok, edited.message
    fact = route_fact(edited.body)
    assert fact.ours != our_part(wanted["spec"])
    assert fact.applied == route_mark(wanted)
    again = make_http_route(versions, weights, ROUTE_SETTINGS, fact.theirs)
    right = api.apply(ROUTE, again, force="true")
    assert route_fact(right.body).ours == our_part(wanted["spec"])
    assert right.body["spec"]["rules"][0]["timeouts"] == {"request": "30s"}
    assert right.body["spec"]["rules"][0]["filters"] == rule["filters"]
    assert "headers" not in right.body["spec"]["rules"][0]["matches"][0]
    idle = api.apply(ROUTE, again, force="true")
    assert idle.body["metadata"]["resourceVersion"] == right.body["metadata"]["resourceVersion"]


def test_replicas_that_an_autoscaler_sets_are_applied_as_found_and_never_over_a_newer_value(api: Api) -> None:
    live = api.create(VERSIONS, version(serving={"replicas": 3})).body
    item = read_versions([live])[0][0]
    assert item.artifact
    body = make_deployment(
        item, make_template(item, item.artifact, "server:dev", one_node=True, settings=Settings()), owners_of_server(item, None)
    )
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{item.name}"
    made = api.apply(path, body).body

    def scale(replicas: int) -> Object:
        patch = {"spec": {"replicas": replicas}}
        answer = api.call("PATCH", f"{path}/scale", patch, type="application/merge-patch+json", fieldManager="kube-controller-manager")
        assert answer.ok, answer.message
        return api.call("GET", path).body

    def applied(seen: Object) -> Any:
        held = {"uid": made["metadata"]["uid"], "resourceVersion": seen["metadata"]["resourceVersion"]}
        spec = {**body["spec"], "replicas": seen["spec"]["replicas"], "revisionHistoryLimit": 2}
        return api.apply(path, {**body, "metadata": {**body["metadata"], **held}, "spec": spec}, force="true")

    scaled = scale(5)
    assert applied(scaled).body["spec"]["replicas"] == 5
    assert scale(6)["spec"]["replicas"] == 6, "what was applied stands in nobody's way"
    assert applied(scaled).code == 409
