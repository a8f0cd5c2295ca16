"""What is asked before a run starts, and when its spec is fixed."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.outcome import Reason
from finetune_operator.core.plan import ActionProblem, Create
from finetune_operator.finetunejob.checks import ANNOTATIONS_BYTES
from finetune_operator.finetunejob.observed import PodFact

from tests.unit.operator.finetunejob.test_plan import ANSWERS, SPEC, World, make_job, run_to

TEMPLATE = {"model": {**SPEC["model"], "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "big", "key": "t"}}}}


def refused(stage: str, words: str, reason: Reason = Reason.FORBIDDEN) -> dict[str, ActionProblem]:
    return {stage: ActionProblem("Pod", f"job-{stage}-1", reason, words)}


# ------------------------------------------------------------------------------------------------------------ asked before the start

WORDS = {
    "a LimitRange": ("prepare", "maximum memory usage per Container is 1Gi, but limit is 2Gi", "spec.stages.prepare.memory"),
    "a LimitRange of cores": ("train", "maximum cpu usage per Container is 2, but request is 3", "spec.resources.cpu"),
    "a LimitRange that wants a limit": (
        "package",
        "cpu max limit to request ratio per Container is 2, but no limit is specified or it is 0",
        "spec.stages.package.cpuLimit",
    ),
    "a quota on limits": ("train", "failed quota: q: must specify limits.cpu for: trainer", "spec.resources.cpuLimit"),
    "a RuntimeClass": ("train", 'pod rejected: RuntimeClass "nvidia" not found', "spec.scheduling.runtimeClassName"),
    "a PriorityClass": ("evaluate", "no PriorityClass with name nope was found", "spec.scheduling.priorityClassName"),
    "Pod Security": ("prepare", 'violates PodSecurity "restricted:latest": seccompProfile', "pod-security.kubernetes.io/enforce"),
    "a quota that never fits": (
        "train",
        "exceeded quota: gpus, requested: requests.nvidia.com/gpu=4, used: requests.nvidia.com/gpu=0, limited: requests.nvidia.com/gpu=2",
        "spec.resources.gpusPerNode",
    ),
    "a webhook of the platform": ("package", "admission webhook denied the request: no team label", "spec.stages.package"),
}


def test_what_all_stages_are_refused_for_is_said_once() -> None:
    world = World()
    words = {
        stage: f'Pod "job-{stage}-1" is invalid: spec.tolerations[0].operator: Invalid value' for stage in ("prepare", "train", "evaluate")
    }
    world.step(refused_pods={stage: refused(stage, said)[stage] for stage, said in words.items()})
    message = world.condition("Validated")["message"]
    assert message.startswith(
        "spec.scheduling.tolerations, or those of spec.stages: the pods of stages prepare, train, evaluate are refused: "
    )
    assert message.endswith('refused: Pod "job" is invalid: spec.tolerations[0].operator: Invalid value')


CLAIMS = {
    "a quota": ("exceeded quota: q, requested: persistentvolumeclaims=1", "spec.storage.persistentVolumeClaim: the job's"),
    "a LimitRange": (
        "maximum storage usage per PersistentVolumeClaim is 500Mi, but request is 1Gi",
        "spec.storage.persistentVolumeClaim.size:",
    ),
    "nothing": ("spec.resources[storage]: Invalid value: 0: must be greater than zero", "spec.storage.persistentVolumeClaim.size:"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_claim_that_would_be_refused_is_told_before_the_start(case: str) -> None:
    words, field = CLAIMS[case]
    world = World()
    made = world.step(refused_claim=ActionProblem("PersistentVolumeClaim", "c", Reason.FORBIDDEN, words))
    assert made.actions == ()
    assert "startTime" not in made.status
    assert field in world.condition("Validated")["message"]
    assert words in world.condition("Validated")["message"]
    assert made.recheck_at is not None
    assert world.step(refused_claim=None).status["startTime"]


@pytest.mark.parametrize("case", WORDS)
def test_a_pod_of_any_stage_that_would_be_refused_is_told_before_the_start(case: str) -> None:
    stage, words, field = WORDS[case]
    world = World()
    made = world.step(refused_pods=refused(stage, words))
    assert made.actions == ()
    assert "startTime" not in made.status
    validated = world.condition("Validated")
    assert (validated["status"], validated["reason"]) == ("False", "Forbidden")
    for told in (field, stage, words):
        assert told in validated["message"]
    assert made.recheck_at is not None
    assert world.condition("Stalled")["status"] == "True"
    assert world.step(refused_pods={}).status["startTime"]


def test_a_quota_that_is_used_by_others_now_holds_no_start() -> None:
    words = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
    assert World().step(refused_pods=refused("train", words, Reason.QUOTA_EXCEEDED)).status["startTime"]


def test_an_api_server_that_fails_holds_the_start_and_needs_no_person() -> None:
    world = World()
    made = world.step(refused_pods=refused("train", "failed calling webhook", Reason.API_ERROR))
    assert "startTime" not in made.status
    assert (world.condition("Stalled")["status"], world.condition("Reconciling")["status"]) == ("False", "True")


@pytest.mark.parametrize("filler", ["{# a long comment #}", "\n", "ä", '"'])
def test_a_template_over_the_room_of_an_annotation_is_told_by_name_and_size(filler: str) -> None:
    text = filler * (ANNOTATIONS_BYTES // len(filler.encode()))
    world = World(job=make_job({**SPEC, **TEMPLATE}))
    made = world.step(config_maps={"big": {"t": text}})
    assert "startTime" not in made.status
    assert world.condition("Validated")["reason"] == "ConfigMapTooLarge"
    for told in ("chatTemplate.configMap", "key t of ConfigMap big", str(len(text.encode())), str(ANNOTATIONS_BYTES)):
        assert told in world.condition("Validated")["message"]
    assert world.step(config_maps={"big": {"t": text[: len(text) // 4]}}).status["startTime"]


def test_annotations_of_the_users_own_count_as_well() -> None:
    """The schema lets 32 annotations of 4,096 characters pass, and a character may have four bytes."""
    annotations = {f"example.com/{number}": "\U0001f600" * 4096 for number in range(17)}
    world = World(job=make_job({**SPEC, "podMetadata": {"annotations": annotations}}))
    assert "startTime" not in world.step().status
    assert "podMetadata.annotations" in world.condition("Validated")["message"]


# ------------------------------------------------------------------------------------------------------------- when the spec is fixed


def started() -> World:
    world = World()
    world.step()
    world.step()
    assert world.live() == ["job-prepare-1"]
    return world


def test_the_first_pod_fixes_the_spec() -> None:
    world = started()
    assert "firstPodTime" not in world.job["status"]
    world.set_job("job-prepare-1", pods=(PodFact("p", "u", "Pending"),))
    world.step()
    assert world.job["status"]["firstPodTime"]
    world.job["spec"]["stages"] = {"prepare": {"memory": "1Gi"}}
    world.step()
    assert world.condition("Validated")["reason"] == "SpecChanged"


def test_a_run_without_a_pod_starts_anew_with_another_spec() -> None:
    """Its pod was refused after all: nothing ran, and what is wrong can be mended where it is."""
    world = started()
    world.set_job("job-prepare-1", refused="maximum memory usage per Container is 1Gi, but limit is 4Gi")
    world.step()
    world.job["spec"]["stages"] = {"prepare": {"memory": "1Gi"}}
    world.step()
    assert world.live() == [], "the Job of the former spec is in the way"
    made = world.step(jobs=())
    assert (made.status_first, made.actions) == (True, ())
    assert "startTime" not in made.status
    assert "attempt" not in made.status
    for _ in range(2):
        world.step()
    assert world.live() == ["job-prepare-1"]
    assert world.condition("Prepared")["reason"] == "Running"


def test_a_spec_that_changed_while_the_first_pod_came_up_wins() -> None:
    world = started()
    world.job["spec"]["stages"] = {"prepare": {"memory": "1Gi"}}
    world.set_job("job-prepare-1", pods=(PodFact("p", "u", "Running"),))
    made = world.step()
    assert [action.name for action in made.actions] == ["job-prepare-1"]  # type: ignore[union-attr]
    world.set_job("job-prepare-1", pods=(PodFact("p", "u", "Running", deleting=True),))
    assert "startTime" in world.step().status, "its pod may still write"


def test_a_run_of_an_earlier_release_is_as_fixed_as_it_was() -> None:
    world = run_to("train")
    for name in ("firstPodTime", "specDigest", "chatTemplateDigest"):
        world.job["status"].pop(name, None)
    before = copy.deepcopy(world.job["spec"])
    world.job["spec"]["stages"] = {"package": {"memory": "1Gi"}}
    world.step()
    assert world.condition("Validated")["reason"] == "SpecChanged"
    world.job["spec"] = before
    world.step()
    assert world.condition("Validated")["status"] == "True"
    assert world.job["status"]["firstPodTime"]


def test_a_pod_that_outlives_its_job_holds_the_new_start() -> None:
    world = started()
    world.job["spec"]["stages"] = {"prepare": {"memory": "1Gi"}}
    alive = PodFact("p", "u", "Running", deleting=True)
    assert "startTime" in world.step(jobs=(), orphans=(alive,)).status
    assert "startTime" not in world.step(orphans=()).status


def test_the_first_pod_is_not_asked_for_twice_in_a_minute() -> None:
    world = World()
    world.step()
    (create,) = [action for action in world.step().actions if isinstance(action, Create) and action.body["kind"] == "Job"]
    assert create.dry_run_pod is None
    late = World()
    late.step()
    late.now += timedelta(minutes=1)
    (create,) = [action for action in late.step().actions if isinstance(action, Create) and action.body["kind"] == "Job"]
    assert create.dry_run_pod is not None


# -------------------------------------------------------------------------------------------------------------------- ConfigMaps


def templated(stage: str) -> World:
    world = World(job=make_job({**SPEC, **TEMPLATE}))
    world.observed = replace(world.observed, config_maps={"big": {"t": "hello"}})
    return run_to(stage, world)


def template_told(world: World) -> str | None:
    (create,) = [action for action in world.step().actions if isinstance(action, Create) and action.body["kind"] == "Job"]
    run: str = create.body["spec"]["template"]["metadata"]["annotations"]["finetune-operator.io/run"]
    return "hello" if '"chatTemplateText":"hello"' in run else None


@pytest.mark.parametrize("config_maps", [{}, {"big": None}, {"big": {"t": "other"}}])
def test_a_config_map_that_changes_after_prepare_matters_to_nobody(config_maps: dict[str, Any]) -> None:
    world = templated("train")
    world.end("job-train-1", ANSWERS["train"])
    world.step(config_maps=config_maps)
    assert world.condition("Validated")["status"] == "True"
    assert world.live() == [] or template_told(world) is None
    world.step()
    assert world.live() == ["job-package-1"]


def test_the_text_is_told_to_prepare_alone() -> None:
    world = World(job=make_job({**SPEC, **TEMPLATE}))
    world.step(config_maps={"big": {"t": "hello"}})
    assert template_told(world) == "hello"
    world.end("job-prepare-1", ANSWERS["prepare"])
    world.step()
    assert template_told(world) is None


@pytest.mark.parametrize("edit", [{}, {"suspend": True}, {"activeDeadlineSeconds": 1}])
def test_a_template_that_is_lost_before_prepare_could_be_tried_again_is_told_and_all_else_works(edit: dict[str, Any]) -> None:
    world = templated("prepare")
    world.job["spec"] |= edit
    world.end("job-prepare-1", None, 1)
    world.step(config_maps={"big": None})
    world.now += timedelta(minutes=1)
    world.step()
    assert world.live() == []
    if not edit:
        assert world.condition("Stalled")["reason"] == "TemplateLost"
        assert "key t" in world.condition("Stalled")["message"]
        world.step(config_maps={"big": {"t": "hello"}})
        assert world.live() == ["job-prepare-2"]
    elif "suspend" in edit:
        assert world.condition("Suspended")["status"] == "True"
    else:
        assert world.condition("Succeeded")["reason"] == "DeadlineExceeded"


def test_a_template_that_changed_before_any_job_was_made_is_what_the_run_starts_with() -> None:
    world = World(job=make_job({**SPEC, **TEMPLATE}))
    world.step(config_maps={"big": {"t": "stale"}})
    assert world.job["status"]["startTime"]
    world.step(config_maps={"big": {"t": "hello"}})
    world.step()
    assert template_told(world) == "hello"
