"""What the API server refuses at apply, and in which words; each rule has a case that breaks it and one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from finetune_api.union import members_of, types_of

from tests.api.client import Api, Object
from tests.api.conftest import CRDS
from tests.api.manifests import GATEWAY, JOBS, NAMESPACE, SHA, STEPS, VERSIONS, job, version, with_
from tests.quantities import ACCEPTED, REFUSED
from tests.unions import cases, places

Make = Callable[[], Object]
PUBLISHED: dict[str, Any] = {"publish": {"model": "bot"}, "export": {"gguf": ["Q8_0"]}}
CLAIM = "spec.storage.persistentVolumeClaim"
GATE = {"name": "g", "metric": "ExactMatch"}


def published(**rollout: Any) -> Make:
    return lambda: with_(job(**PUBLISHED), "spec.publish.rollout", {"traffic": GATEWAY, "steps": STEPS, **rollout})


def rolled_out(**rollout: Any) -> Make:
    return lambda: version(rollout={"traffic": GATEWAY, "steps": STEPS, **rollout})


def gate(**bounds: Any) -> Make:
    return lambda: job(evaluation={"gates": [GATE | bounds]})


def edited(make: Make, path: str, value: Any) -> Make:
    return lambda: with_(make(), path, value)


def named(name: str) -> Make:
    return lambda: with_(job(), "metadata.name", name)


AMOUNTS: list[tuple[Make, str]] = [
    (job, "spec.resources"),
    (job, "spec.stages.package"),
    (lambda: job(**PUBLISHED), "spec.publish.serving.resources"),
    (version, "spec.serving.resources"),
]
"""Where pods' resources are asked for."""

RULES: list[tuple[str, Make, Make]] = [
    # words of the refusal, a case that is refused, the nearest one that is not
    ("at most 40 lower-case letters", named("x" * 41), named("x" * 40)),
    ("at most 40 lower-case letters", named("1x"), named("x1")),
    ("at most 40 lower-case letters", named("x.y"), named("x-y")),
    ("publish serves a GGUF", lambda: job(publish={"model": "bot"}), lambda: job(**PUBLISHED)),
    (
        "quantization NF4 needs adapter LoRA",
        lambda: job(quantization={"type": "NF4"}, adapter={"type": "None"}),
        lambda: job(quantization={"type": "NF4"}, adapter={"type": "LoRA"}),
    ),
    (
        "publish.serving.artifact must be one of export.gguf",
        edited(lambda: job(**PUBLISHED), "spec.publish.serving", {"artifact": "F16"}),
        edited(lambda: job(**PUBLISHED), "spec.publish.serving", {"artifact": "Q8_0"}),
    ),
    (
        "revision belongs to an hf:// source",
        edited(job, "spec.model.revision", "main"),
        lambda: job(model={"source": "hf://org/name", "revision": "main"}),
    ),
    (
        "tokenSecretRef belongs to an hf:// source",
        edited(job, "spec.model.tokenSecretRef", {"name": "hub", "key": "token"}),
        lambda: job(model={"source": "hf://org/name", "tokenSecretRef": {"name": "hub", "key": "token"}}),
    ),
    ("source must not climb", edited(job, "spec.model.source", "pvc://base/a/../b"), edited(job, "spec.model.source", "pvc://base/a/..b")),
    (
        "source must not climb",
        edited(job, "spec.datasets.0.source", "pvc://data/.."),
        edited(job, "spec.datasets.0.source", "pvc://data/a"),
    ),
    (
        "named belongs to type Named",
        edited(job, "spec.model.chatTemplate", {"type": "Model", "named": "ChatML"}),
        edited(job, "spec.model.chatTemplate", {"type": "Named", "named": "ChatML"}),
    ),
    (
        "configMap belongs to type ConfigMap",
        edited(job, "spec.model.chatTemplate", {"configMap": {"name": "a", "key": "b"}}),
        edited(job, "spec.model.chatTemplate", {"type": "ConfigMap", "configMap": {"name": "a", "key": "b"}}),
    ),
    (
        "must add up to 1",
        lambda: job(preparation={"split": {"train": 0.8, "validation": 0.1, "test": 0.2}}),
        lambda: job(preparation={"split": {"train": 0.7, "validation": 0.1, "test": 0.2}}),
    ),
    (
        "lora belongs to type LoRA",
        lambda: job(adapter={"type": "None", "lora": {"rank": 8}}),
        lambda: job(adapter={"type": "LoRA", "lora": {"rank": 8}}),
    ),
    (
        "names is required with type Names",
        lambda: job(adapter={"lora": {"targetModules": {"type": "Names"}}}),
        lambda: job(adapter={"lora": {"targetModules": {"type": "Names", "names": ["q_proj"]}}}),
    ),
    ("set epochs or maxSteps", lambda: job(training={"epochs": 1, "maxSteps": 5}), lambda: job(training={"maxSteps": 5})),
    (
        "globalBatchSize must be a multiple",
        lambda: job(training={"globalBatchSize": 10, "perDeviceBatchSize": 4}),
        lambda: job(training={"globalBatchSize": 12, "perDeviceBatchSize": 4}),
    ),
    (
        "set steps or ratio",
        lambda: job(training={"warmup": {"steps": 1, "ratio": 0.1}}),
        lambda: job(training={"warmup": {"ratio": 0.1}}),
    ),
    (
        "everySteps belongs to type Steps",
        lambda: job(checkpoints={"everySteps": 5}),
        lambda: job(checkpoints={"type": "Steps", "everySteps": 5}),
    ),
    ("set exactly one of min, max", gate(), gate(min=0.5)),
    ("set exactly one of min, max", gate(min=0.5, max=0.6), gate(max=0.6)),
    ("against (Base or Production) goes with", gate(minImprovement=0), gate(minImprovement=0, against="Base")),
    ("against (Base or Production) goes with", gate(min=0.5, against="Base"), gate(maxRegression=0.1, against="Production")),
    ("persistentVolumeClaim is required", lambda: job(storage={"type": "PersistentVolumeClaim"}), job),
    ("set claimName", lambda: job(storage={"persistentVolumeClaim": {}}), edited(job, CLAIM, {"claimName": "files"})),
    ("set claimName", edited(job, f"{CLAIM}.claimName", "files"), edited(job, CLAIM, {"size": "2Gi"})),
    (
        "storageClassName goes with size",
        edited(job, CLAIM, {"claimName": "files", "storageClassName": "fast"}),
        edited(job, CLAIM, {"size": "1Gi", "storageClassName": "fast"}),
    ),
    *(
        rule
        for some in (published, rolled_out)
        for rule in (
            ("the last step must be of stage Production", some(steps=STEPS[:1]), some()),
            (
                "only one step can be of stage Production",
                some(steps=[{"name": "a", "stage": "Production"}, STEPS[1]]),
                some(steps=STEPS[1:]),
            ),
            ("need traffic of type GatewayAPI", some(traffic={"type": "None"}), some(traffic={"type": "None"}, steps=STEPS[1:])),
            ("approvedStep goes with approval Manual", some(approvedStep=0), some(approval="Manual", approvedStep=0)),
            ("gatewayAPI is required with type GatewayAPI", some(traffic={"type": "GatewayAPI"}), some(traffic=GATEWAY)),
            (
                "gatewayAPI belongs to type GatewayAPI",
                some(traffic=GATEWAY | {"type": "None"}, steps=[]),
                some(traffic={"type": "None"}, steps=[]),
            ),
            ("weight is required before Production", some(steps=[{"name": "a", "stage": "Canary"}, STEPS[1]]), some()),
            ("weight is required before Production", some(steps=[STEPS[1] | {"weight": 5}]), some(steps=[STEPS[1]])),
            ("a Production step has no hold", some(steps=[STEPS[1] | {"hold": "5s"}]), some(steps=[STEPS[1] | {"hold": "0s"}])),
            ("a Production step has no hold", some(steps=[STEPS[1] | {"hold": "1m"}]), some(steps=STEPS[1:])),
            ("a Production step has no hold", some(steps=[STEPS[1] | {"hold": "1ms"}]), some(steps=[STEPS[1] | {"hold": "0h0m"}])),
            (
                "approvedStep is the index of a step",
                some(approval="Manual", approvedStep=2),
                some(approval="Manual", approvedStep=1),
            ),
            ("approvedStep is the index of a step", some(approval="Manual", approvedStep=0, steps=[]), some(approval="Manual", steps=[])),
            (
                "a duration is at most a year",
                some(steps=[STEPS[0] | {"hold": "8760h1ms"}, STEPS[1]]),
                some(steps=[STEPS[0] | {"hold": "8760h"}, STEPS[1]]),
            ),
        )
    ),
    (
        "a duration is at most a year",
        edited(version, "spec.serving.keepPrevious", "99999h"),
        edited(version, "spec.serving.keepPrevious", "0s"),
    ),
    *(
        ("memory is in bytes, from 16Mi to 1Pi", edited(make, f"{path}.memory", bad), edited(make, f"{path}.memory", good))
        for make, path in AMOUNTS
        for bad, good in [(8, "16Mi"), ("0", 16 * 2**20), (0, "8Gi"), ("64m", "64M"), ("1e99", "1Ti"), ("2Pi", "1Pi")]
    ),
    *(
        ("a limit of cores is from 1m", edited(make, f"{path}.cpuLimit", bad), edited(make, f"{path}.cpuLimit", good))
        for make, path in AMOUNTS
        for bad, good in [(0, 8), ("0", "8"), ("1e99", "64")]
    ),
    *(
        ("cpuLimit must not be less than cpu", edited(make, path, bad), edited(make, path, good))
        for make, path in AMOUNTS
        for bad, good in [
            ({"cpu": "2", "cpuLimit": 1}, {"cpu": 2, "cpuLimit": "2000m"}),
            ({"cpuLimit": "400m"}, {"cpuLimit": "2"}),
        ]
    ),
    ("the size of /dev/shm is in bytes", lambda: job(resources={"sharedMemory": 1}), lambda: job(resources={"sharedMemory": "64Mi"})),
    ("the size of /dev/shm is in bytes", lambda: job(resources={"sharedMemory": "0"}), lambda: job(resources={"sharedMemory": "1Mi"})),
    *(
        ("the size of a claim is in bytes", edited(job, f"{CLAIM}.size", bad), edited(job, f"{CLAIM}.size", good))
        for bad, good in [("0", "1Mi"), (20, "20Gi"), ("1e99", "1Pi")]
    ),
    ("the metric is a share: min and max", gate(min=95), gate(min=0.95)),
    ("the metric is a share: min and max", gate(max=-0.1), gate(max=0)),
    ("the metric is a share: minImprovement", gate(minImprovement=2, against="Base"), gate(minImprovement=0.02, against="Base")),
    ("the metric is a share: minImprovement", gate(maxRegression=5, against="Base"), gate(maxRegression=0.05, against="Base")),
    ("no perplexity is below 1", gate(metric="Perplexity", max=0.9), gate(metric="facts/Perplexity", max=12.5)),
    (
        "minSamples is more than maxSamples",
        lambda: job(evaluation={"maxSamples": 20, "gates": [GATE | {"min": 0.5}]}),
        lambda: job(evaluation={"maxSamples": 20}),
    ),
    ("metadata.name must be <spec.model>-v<spec.version>", edited(version, "spec.version", 123456), version),
    ("metadata.name must be <spec.model>-v<spec.version>", edited(version, "spec.model", "other"), version),
    ("metadata.name must be <spec.model>-v<spec.version>", edited(version, "metadata.name", "bot-v1-v2"), version),
    (
        "uri must not climb",
        edited(version, "spec.artifacts.0.uri", "pvc://files/a/../../b"),
        edited(version, "spec.artifacts.0.uri", "pvc://f/a..b"),
    ),
    ("serving.artifact must name a GGUF", lambda: version(serving={"artifact": "F16"}), lambda: version(serving={"artifact": "Q8_0"})),
    ("serving.artifact must name a GGUF", edited(version, "spec.artifacts.0.format", "Safetensors"), version),
    (
        "value has no meaning with operator Exists",
        lambda: version(serving={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
        lambda: version(serving={"tolerations": [{"key": "a", "value": "b"}, {"operator": "Exists"}]}),
    ),
    (
        "key may be left out with operator Exists only",
        lambda: version(serving={"tolerations": [{"value": "b"}]}),
        lambda: version(serving={"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]}),
    ),
    (
        "tolerationSeconds goes with effect NoExecute",
        lambda: version(serving={"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]}),
        lambda: version(serving={"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]}),
    ),
]

TYPES: list[tuple[str, Make]] = [
    # the schema's own refusals: words of the API server, a case
    ('spec.method.type: Unsupported value: "Magic": supported values: "SFT"', lambda: job(method={"type": "Magic"})),
    ("spec.model: Required value", edited(job, "spec.model", None)),
    ("spec.model.source: Required value", lambda: job(model={})),
    ("spec.storage: Required value", edited(job, "spec.storage", None)),
    ("spec.datasets in body should have at least 1 items", lambda: job(datasets=[])),
    (
        "spec.datasets[1]: Duplicate value",
        lambda: job(datasets=[{"name": "a", "source": "pvc://a/b"}, {"name": "a", "source": "pvc://a/c"}]),
    ),
    ("spec.resources.nodes: Unsupported value: 2", lambda: job(resources={"nodes": 2})),
    ("spec.model.source in body should match", lambda: job(model={"source": "/etc/passwd"})),
    ("spec.training.globalBatchSize in body should be greater than or equal to 1", lambda: job(training={"globalBatchSize": 0})),
    ("spec.training.learningRate in body should be greater than 0", lambda: job(training={"learningRate": 0})),
    ("spec.resources.cpu in body must be of type integer,string", lambda: job(resources={"cpu": 0.5})),
    ('spec.training.epochs in body must be of type number: "string"', lambda: job(training={"epochs": "3"})),
    ("spec.rollout.steps[1]: Duplicate value", rolled_out(steps=[STEPS[0], STEPS[0], STEPS[1]])),
    ("spec.rollout.steps[0].hold in body should match", rolled_out(steps=[STEPS[0] | {"hold": "soon"}, STEPS[1]])),
    ("spec.rollout.steps[0].weight in body should be less than or equal to 100", rolled_out(steps=[STEPS[0] | {"weight": 101}, STEPS[1]])),
    ('unknown field "spec.rollout.analysis"', rolled_out(analysis=[])),
    ('unknown field "spec.training.output_dir"', lambda: job(training={"output_dir": "/"})),
    ('unknown field "spec.datasets[0].sources"', edited(job, "spec.datasets.0.sources", "x")),
    ("spec.model: Too long: may not be more than 32 bytes", edited(version, "spec.model", "x" * 33)),
    ("spec.artifacts[0].sha256 in body should match", edited(version, "spec.artifacts.0.sha256", "AB" * 32)),
]


def path_of(body: Object) -> str:
    return JOBS if body["kind"] == "FineTuneJob" else VERSIONS


def dry_create(api: Api, body: Object) -> Any:
    return api.call("POST", path_of(body), body, dryRun="All", fieldValidation="Strict")


@pytest.mark.parametrize(("words", "bad", "good"), RULES, ids=[f"{i}-{rule[0][:30]}" for i, rule in enumerate(RULES)])
def test_rule_refuses_the_bad_and_only_the_bad(api: Api, words: str, bad: Make, good: Make) -> None:
    refused, accepted = dry_create(api, bad()), dry_create(api, good())
    assert refused.code == 422
    assert words in refused.message
    assert accepted.ok, accepted.message


@pytest.mark.parametrize(("words", "bad"), TYPES, ids=[f"{i}-{case[0][:40]}" for i, case in enumerate(TYPES)])
def test_schema_refuses(api: Api, words: str, bad: Make) -> None:
    refused = dry_create(api, bad())
    assert refused.code in (400, 422)
    assert words in refused.message.replace("Invalid value: ", "")


def pod(cpu: Any) -> Object:
    container = {"name": "a", "image": "a", "resources": {"requests": {"cpu": cpu}}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [container]}}


@pytest.mark.parametrize("value", ACCEPTED, ids=repr)
def test_quantities_that_a_pod_takes(api: Api, value: Any) -> None:
    for body in (job(resources={"cpu": value}), version(serving={"resources": {"cpu": value}})):
        answer = dry_create(api, body)
        assert answer.ok, answer.message
    answer = api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod(value), dryRun="All")
    assert answer.ok, answer.message


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_quantities_that_a_pod_refuses(api: Api, value: Any) -> None:
    answer = dry_create(api, job(resources={"cpu": value}))
    assert (answer.code, "spec.resources.cpu" in answer.message) == (422, True), answer.message
    assert not api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod(value), dryRun="All").ok


def test_plain_objects_are_accepted(api: Api) -> None:
    for body in (job(), version()):
        assert dry_create(api, body).ok


# ---------------------------------------------------------------------------------------------------------------- edits of versions


EDITS: list[tuple[str, str, Any, Any]] = [
    # words, path, refused value, accepted one (None: there is none)
    ("model and version name the object", "spec.version", 999, None),
    ("artifacts and lineage are what was proven", "spec.artifacts.0.sha256", "cd" * 32, SHA),
    ("artifacts and lineage are what was proven", "spec.lineage.metrics", {"ExactMatch": 1}, {}),
    ("abort cannot be undone", "spec.rollout.abort", False, True),
]


@pytest.mark.parametrize(("words", "path", "bad", "good"), EDITS)
def test_edits_of_a_version(api: Api, words: str, path: str, bad: Any, good: Any) -> None:
    live = api.create(VERSIONS, version(rollout={"abort": True})).body
    where = f"{VERSIONS}/{live['metadata']['name']}"
    refused = api.call("PUT", where, with_(live, path, bad), dryRun="All")
    assert refused.code == 422
    assert words in refused.message
    if good is not None:
        assert api.call("PUT", where, with_(live, path, good), dryRun="All").ok


@pytest.mark.parametrize(("stage", "may"), [("Production", True), ("RolledBack", False), ("Archived", False), ("Canary", False)])
def test_an_abort_can_be_taken_back_only_where_it_had_no_effect(api: Api, stage: str, may: bool) -> None:
    """The version in production stays there until somebody can return."""
    live = api.create(VERSIONS, version(rollout={"abort": True})).body
    where = f"{VERSIONS}/{live['metadata']['name']}"
    live["status"] = {"stage": stage}
    live = api.call("PUT", f"{where}/status", live).body
    assert api.call("PUT", where, with_(live, "spec.rollout.abort", False), dryRun="All").ok is may


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rollout.abort", True),
        ("spec.rollout.paused", True),
        ("spec.rollout.approval", "Manual"),
        ("spec.serving.keepPrevious", "5m"),
        ("spec.serving.replicas", 3),
        ("spec.serving.nodeSelector", {"pool": "ml"}),
        ("spec.serving.affinity", {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}),
        ("spec.serving.imagePullSecrets", [{"name": "regcred"}]),
        ("spec.serving.resources", {"cpuLimit": "4"}),
        ("spec.lifecycle", "Retired"),
    ],
)
def test_people_act_through_spec(api: Api, path: str, value: Any) -> None:
    live = api.create(VERSIONS, version()).body
    assert api.call("PUT", f"{VERSIONS}/{live['metadata']['name']}", with_(live, path, value), dryRun="All").ok


# --------------------------------------------------------------------------------------------------------------------- completeness


def rules_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", []))
        for member in schema.values():
            yield from rules_of(member)


UNREACHABLE = {
    f"{member.name} belongs to type {member.value}; remove it or set type: {member.value}"
    for place in places()
    for member in members_of(place.union)
    if len(types_of(place.union)) == 1
}
"""Rules that nothing can break yet: those of a union that has one type."""


def test_every_rule_has_a_case() -> None:
    tried = (
        [words for words, *_ in RULES]
        + [words for words, *_ in EDITS]
        + [case.refused for case in cases() if case.refused]
        + ["the run has started"]
    )
    for file in CRDS.glob("*.yaml"):
        for message in set(rules_of(yaml.safe_load(file.read_text()))) - UNREACHABLE:
            assert any(words in message for words in tried), f"{file.name}: no case for {message}"
