"""The job controller's behaviour, as tables: a job, what is observed, what is wanted."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.progress import Metric, TrainerStatus
from finetune_operator import crdgen
from finetune_operator.core.containment import without_nulls
from finetune_operator.core.facts import ClaimFact
from finetune_operator.core.plan import ActionProblem, Create, Delete, Plan, SetOwners
from finetune_operator.core.settings import NamespacePolicy, Settings
from finetune_operator.finetunejob.observed import JobFact, Observed, OlderJob, PodFact, VersionFact
from finetune_operator.finetunejob.plan import plan
from finetune_operator.finetunejob.policies.digest import run_digest
from finetune_operator.finetunejob.status import read_status

from tests.schema import violations

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(policies={"*": NamespacePolicy(images=("registry.example/",))})
SPEC: dict[str, Any] = {
    "model": {"source": "pvc://base/model"},
    "datasets": [{"name": "faq", "source": "pvc://base/data"}],
    "export": {"gguf": ["Q8_0"]},
    "storage": {"persistentVolumeClaim": {"size": "1Gi"}},
    "publish": {"model": "bot"},
}
STATUS_SCHEMA = crdgen.make_crd(crdgen.kinds()[0])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
BASE_CLAIM = ClaimFact("base", "claim-uid", "5", phase="Bound")


def make_job(spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "job", "namespace": "demo", "uid": "job-uid", "generation": 3, **metadata},
        "spec": copy.deepcopy(spec or SPEC),
        "status": copy.deepcopy(status or {}),
    }


@dataclass
class World:
    """Drives `plan` as the reconciler would, over a scripted kubelet: enough to reach any moment of a run."""

    job: dict[str, Any] = field(default_factory=make_job)
    observed: Observed = field(default_factory=lambda: Observed(claims={"base": BASE_CLAIM}))
    now: datetime = NOW

    def step(self, **changes: Any) -> Plan:
        self.observed = replace(self.observed, **changes)
        made = plan(self.job, self.observed, SETTINGS, self.now)
        self.job["status"] = made.status
        for action in made.actions:
            self._act(action)
        return made

    def _act(self, action: Any) -> None:
        if isinstance(action, Create):
            self._create(action.body)
        elif isinstance(action, SetOwners):
            claim = self.observed.claims[action.name]
            assert claim is not None
            self.observed = replace(self.observed, claims={**self.observed.claims, action.name: replace(claim, owners=action.owners)})
        elif isinstance(action, Delete) and action.kind == "Job":
            self.set_job(action.name, deleting=True)

    def _create(self, body: dict[str, Any]) -> None:
        metadata = body["metadata"]
        if body["kind"] == "Job":
            labels = metadata["labels"]
            fact = JobFact(
                metadata["name"],
                f"uid-{metadata['name']}",
                labels["finetune-operator.io/stage"],
                int(labels["finetune-operator.io/attempt"]),
                "Active",
                self.now,
            )
            self.observed = replace(self.observed, jobs=(*self.observed.jobs, fact))
        elif body["kind"] == "PersistentVolumeClaim":
            claim = ClaimFact(metadata["name"], "made", "1", owners=tuple(metadata.get("ownerReferences", ())))
            self.observed = replace(self.observed, claims={**self.observed.claims, metadata["name"]: claim})
        elif body["kind"] == "ModelVersion":
            lineage = body["spec"]["lineage"]
            version = VersionFact(metadata["name"], "mv-uid", body["spec"]["version"], lineage["runDigest"], lineage["jobUid"])
            self.observed = replace(self.observed, versions=(*self.observed.versions, version))

    def set_job(self, name: str, **changes: Any) -> None:
        self.observed = replace(self.observed, jobs=tuple(replace(j, **changes) if j.name == name else j for j in self.observed.jobs))

    def end(self, name: str, message: dict[str, Any] | None, exit_code: int = 0, **pod: Any) -> None:
        stage = next(job.stage for job in self.observed.jobs if job.name == name)
        text = json.dumps({"stage": stage, **message}) if message is not None else None
        fact = PodFact(
            f"{name}-0",
            "pod",
            "Succeeded" if exit_code == 0 else "Failed",
            node="n1",
            exit_code=exit_code if exit_code >= 0 else None,
            message=text,
        )
        state = "Complete" if exit_code == 0 else "Failed"
        self.set_job(name, state=state, finished_at=self.now, pods=(replace(fact, **pod),))

    def condition(self, type: str) -> Any:
        return next((condition for condition in self.job["status"]["conditions"] if condition["type"] == type), None)

    def live(self) -> list[str]:
        return [job.name for job in self.observed.jobs if job.state == "Active" and not job.deleting]


MEMORY_PLAN = dict.fromkeys(
    ["weightsBytes", "gradientsBytes", "optimizerBytes", "activationsBytes", "totalBytes", "trainableParameters", "totalParameters"], 1
) | {"perDeviceBatchSize": 1, "gradientAccumulationSteps": 1, "gradientCheckpointing": False, "learningRate": 1e-4, "totalSteps": 1}
ARTIFACT = {"name": "q8_0", "format": "GGUF", "uri": "pvc://c/x.gguf", "sha256": "a" * 64, "bytes": 9}
ANSWERS: dict[str, dict[str, Any]] = {
    "prepare": {"dataset": {"digest": "d", "rowsIn": 10, "rowsOut": {"train": 8}}, "baseModel": "pvc://base/model", "baseRevision": "r"},
    "train": {"steps": 5, "trainLoss": 1.5, "checkpoint": {"step": 5, "uri": "pvc://c/5", "digest": "e", "time": "t"}},
    "package": {"artifacts": [ARTIFACT]},
    "evaluate": {"evaluation": {"artifact": "q8_0", "metrics": [], "gates": []}},
}


def run_to(stage: str, world: World | None = None) -> World:
    """A world in which the Job of `stage` was just created."""
    world = world or World()
    for name in ANSWERS:
        world.step()
        world.step()
        if name == stage:
            return world
        world.end(f"job-{name}-1", ANSWERS[name])
    return world


def run_to_end(world: World | None = None) -> World:
    world = run_to("", world)
    for _ in range(8):
        world.step()
    return world


# ------------------------------------------------------------------------------------------------------------------ the good way


def test_a_run_goes_from_start_to_registered() -> None:
    world = run_to_end()
    status = world.job["status"]
    assert world.condition("Succeeded")["status"] == "True"
    assert status["modelVersionRef"] == {"name": "bot-v1", "version": 1}
    assert status["phase"] == "Succeeded"
    assert [job.name for job in world.observed.jobs] == ["job-prepare-1", "job-train-1", "job-package-1", "job-evaluate-1"]
    assert (world.condition("Reconciling")["status"], world.condition("Stalled")["status"]) == ("False", "False")


def test_start_is_durable_before_any_child_exists() -> None:
    first = World().step()
    assert first.status_first
    assert first.actions == ()
    assert first.status["startTime"] == "2030-01-01T12:00:00Z"
    assert first.status["attempt"] == {"stage": "prepare", "number": 1, "failures": 0}


def test_status_is_written_few_times() -> None:
    world, written = World(), []
    for name in ["", *ANSWERS]:
        if name:
            world.end(f"job-{name}-1", ANSWERS[name])
        for _ in range(4):
            made = world.step()
            written.append(json.dumps(made.status, sort_keys=True))
    distinct = sum(1 for before, after in zip(["", *written], written, strict=False) if before != after)
    assert distinct <= 6


def test_a_second_pass_changes_nothing() -> None:
    for stage in ANSWERS:
        world = run_to(stage)
        before = json.dumps(world.job["status"], sort_keys=True)
        again = world.step()
        assert json.dumps(again.status, sort_keys=True) == before
        assert again.actions == ()


def test_the_claim_changes_hands_before_the_job_may_go() -> None:
    world = run_to("evaluate")
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    owners = []
    for _ in range(6):
        world.step()
        claim = next(claim for name, claim in world.observed.claims.items() if name.startswith("job-") and claim)
        owners.append(tuple(owner["kind"] for owner in claim.owners))
        if world.condition("Published")["status"] == "True":
            assert owners[-1] == ("ModelVersion",)
    assert () in owners
    assert owners[-1] == ("ModelVersion",)


def test_without_publish_the_run_ends_after_its_stages() -> None:
    world = run_to_end(World(job=make_job({key: value for key, value in SPEC.items() if key != "publish"})))
    assert world.condition("Succeeded")["status"] == "True"
    assert world.condition("Published") is None


# ---------------------------------------------------------------------------------------------------------------- never again


def test_same_content_is_never_trained_again() -> None:
    digest = run_digest(FineTuneJobSpec.model_validate(SPEC), {})
    versions = (VersionFact("bot-v4", "u", 4, digest, "older-job"),)
    world = World(observed=Observed(claims={}, versions=versions))
    made = world.step()
    assert made.actions == ()
    assert world.condition("Succeeded")["reason"] == "AlreadyPublished"
    assert "runId" in world.condition("Succeeded")["message"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"suspend": True}, True),
        ({"ttlSecondsAfterFinished": 5}, True),
        ({"recovery": {"maxAttempts": 9}}, True),
        ({"podMetadata": {"labels": {"team": "a"}}}, True),
        ({"training": {"seed": 42}}, True),
        ({"training": {"seed": 43}}, False),
        ({"method": {"type": "SFT", "sft": {"loss": "AssistantTurns"}}}, True),
        ({"method": {"type": "SFT", "sft": {"loss": "Completion"}}}, False),
        ({"adapter": {"lora": {"targetModules": {"type": "AllLinear"}}}}, True),
        ({"runId": "again"}, False),
    ],
)
def test_the_run_digest_names_the_content(change: dict[str, Any], same: bool) -> None:
    before = run_digest(FineTuneJobSpec.model_validate(SPEC), {})
    after = run_digest(FineTuneJobSpec.model_validate({**SPEC, **change}), {})
    assert (before == after) is same


def test_a_started_run_does_not_go_on_with_another_content() -> None:
    world = run_to("prepare")
    world.job["spec"]["training"] = {"args": {"adam_beta1": 0.5}}
    world.end("job-prepare-1", ANSWERS["prepare"])
    assert world.step().actions == ()
    assert world.condition("Validated")["reason"] == "SpecChanged"
    assert world.job["status"]["phase"] == "Preparing", "a pod of it may still run"
    del world.job["spec"]["training"]
    world.step()
    assert world.condition("Prepared")["status"] == "True"


def test_terminal_never_leaves() -> None:
    world = run_to_end()
    world.observed = Observed()
    for _ in range(3):
        made = world.step()
        assert made.actions == ()
        assert world.condition("Succeeded")["status"] == "True"


# ------------------------------------------------------------------------------------------------------------------- refusals


@dataclass
class Refusal:
    reason: str
    says: str
    spec: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=dict)
    rechecks: bool = False


REFUSALS = {
    "an unknown training argument": Refusal(
        "InvalidArgument", "spec.training.args.learning_rat", {"training": {"args": {"learning_rat": 1}}}
    ),
    "an owned training argument": Refusal("InvalidArgument", "output_dir", {"training": {"args": {"output_dir": "/x"}}}),
    "an argument that a CPU cannot serve": Refusal(
        "InvalidArgument",
        "spec.training.args.tf32: true needs a GPU",
        {"training": {"args": {"tf32": True}}, "resources": {"gpusPerNode": 0}},
    ),
    "a claim that is missing": Refusal("ClaimNotFound", "base", observed={"claims": {}}, rechecks=True),
    "a template that is missing": Refusal(
        "ConfigMapNotFound",
        "chatTemplate",
        {"model": {**SPEC["model"], "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "t", "key": "k"}}}},
        rechecks=True,
    ),
    "a template key that is missing": Refusal(
        "ConfigMapNotFound",
        "no key k",
        {"model": {**SPEC["model"], "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "t", "key": "k"}}}},
        {"config_maps": {"t": {"other": ""}}},
        rechecks=True,
    ),
    "an image of strangers": Refusal("ForbiddenByPolicy", "spec.image", {"image": "evil.example/trainer:1"}),
    "an older job that is missing": Refusal("OlderJobNotFound", "resumeFrom", {"resumeFrom": {"jobName": "gone"}}, rechecks=True),
    "a version that is taken": Refusal(
        "VersionTaken", "bot-v2", {"publish": {"model": "bot", "version": 2}}, {"versions": (VersionFact("bot-v2", "u", 2, "x", "y"),)}
    ),
    "a spec that does not parse": Refusal("InvalidSpec", "datasets", {"datasets": []}),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_refused_before_anything_exists(case: Refusal) -> None:
    world = World(job=make_job({**SPEC, **case.spec}))
    made = world.step(**case.observed)
    assert made.actions == ()
    validated = world.condition("Validated")
    assert (validated["status"], validated["reason"]) == ("False", case.reason)
    assert case.says in validated["message"]
    assert "startTime" not in made.status
    assert world.condition("Stalled")["status"] == "True"
    assert (made.recheck_at is not None) is case.rechecks
    assert [event.reason for event in made.events] == [case.reason]
    assert world.step().events == ()


def test_the_charts_own_images_need_no_policy() -> None:
    own = Settings()
    spec = {**SPEC, "image": own.trainer_image, "publish": {"model": "bot", "serving": {"image": own.server_image}}}
    made = plan(make_job(spec), Observed(claims={"base": BASE_CLAIM}), own, NOW)
    assert made.status["startTime"]


def test_what_was_missing_is_picked_up() -> None:
    world = World(observed=Observed())
    assert world.step().status.get("startTime") is None
    assert world.step(claims={"base": BASE_CLAIM}).status["startTime"]


# ------------------------------------------------------------------------------------------------------------ failures and retries


def test_a_crash_is_tried_again_after_a_pause_up_to_max_attempts() -> None:
    world = run_to("train")
    for number in (1, 2, 3):
        world.end(f"job-train-{number}", None, exit_code=1)
        world.step()
        if number == 3:
            break
        assert world.job["status"]["attempt"]["number"] == number + 1
        assert world.live() == []
        world.step()
        assert world.live() == [], "the pause is kept"
        world.now += timedelta(minutes=6)
        world.step()
        assert world.live() == [f"job-train-{number + 1}"]
    assert world.condition("Succeeded")["status"] == "False"
    assert [attempt["counted"] for attempt in world.job["status"]["attempts"]] == [True, True, True]


@dataclass
class Ending:
    exit_code: int
    reason: str
    final: bool
    pod: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] | None = None
    counted: bool = True


ENDINGS = {
    "a gate that failed": Ending(11, "GateFailed", True, message={"reason": "GateFailed", "message": "m"}),
    "bad data": Ending(10, "InvalidDataset", True, message={"reason": "InvalidDataset", "message": "faq line 3"}),
    "a loss that is not finite": Ending(12, "Diverged", True, message={"reason": "Diverged", "message": "step 5"}),
    "an export that is not what was trained": Ending(16, "ParityFailed", True, message={"reason": "ParityFailed"}),
    "memory": Ending(137, "OutOfMemory", False, {"terminated_reason": "OOMKilled"}),
    "a kill": Ending(137, "Killed", False),
    "preemption": Ending(143, "Preempted", False, {"disruption": "PreemptionByScheduler"}, counted=False),
    "a pod deleted by hand": Ending(143, "Terminated", False, {"deleting": True}, counted=False),
    "a stop from outside": Ending(143, "Terminated", False),
    "a GPU that is not seen": Ending(14, "GPUNotVisible", False),
    "storage that fails": Ending(15, "StorageError", False),
    "no exit code": Ending(-1, "PodFailed", False),
    "a crash without a word": Ending(1, "Crashed", False),
    "a crash in native code": Ending(139, "Killed", False),
    "bad data without a word": Ending(10, "StageFailed", True),
    "an image's own word": Ending(10, "OutOfPatience", True, message={"reason": "OutOfPatience", "message": "m"}),
    "an image's own word for what may pass": Ending(15, "OutOfPatience", False, message={"reason": "OutOfPatience", "message": "m"}),
    "a code nobody knows": Ending(77, "StageFailed", True),
}


@pytest.mark.parametrize("case", ENDINGS.values(), ids=ENDINGS.keys())
def test_what_follows_an_ending(case: Ending) -> None:
    world = run_to("train")
    world.end("job-train-1", case.message, case.exit_code, **case.pod)
    world.step()
    record = world.job["status"]["attempts"][-1]
    assert (record["reason"], record["counted"]) == (case.reason, case.counted)
    if case.final:
        assert world.condition("Succeeded")["reason"] == case.reason
        assert world.condition("Trained")["reason"] == case.reason
    else:
        assert world.condition("Succeeded")["status"] == "Unknown"
        assert world.job["status"]["attempt"]["number"] == 2
        assert world.job["status"]["attempt"]["failures"] == int(case.counted)


def test_a_pod_that_vanished_with_its_node_does_not_count() -> None:
    world = run_to("train")
    world.set_job("job-train-1", state="Failed", reason="BackoffLimitExceeded")
    world.step()
    assert world.job["status"]["attempts"][-1]["reason"] == "NodeLost"
    assert world.job["status"]["attempt"]["failures"] == 0


def test_an_answer_that_vanished_is_read_again_without_a_gpu() -> None:
    world = run_to("train")
    world.set_job("job-train-1", state="Complete")
    world.step()
    made = world.step()
    (create,) = [action for action in made.actions if isinstance(action, Create)]
    container = create.body["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][-1] == "--report"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.parametrize("pods", [(PodFact("p", "u", "Running"),), ()], ids=["not seen to end", "never seen"])
@pytest.mark.parametrize(("state", "code"), [("Complete", 0), ("Failed", 11)])
def test_a_job_that_ends_before_its_pod_was_seen_to_is_waited_for(state: str, code: int, pods: tuple[PodFact, ...]) -> None:
    """Two watches: the news of the Job may come first, and the pod's last words decide what follows."""
    world = run_to("train")
    world.set_job("job-train-1", state=state, finished_at=world.now, pods=pods)
    made = world.step()
    assert world.job["status"]["attempt"]["number"] == 1
    assert made.recheck_at is not None
    world.end("job-train-1", {"reason": "GateFailed", "message": "m"} if code else ANSWERS["train"], code)
    world.step()
    assert world.condition("Trained")["reason"] == ("GateFailed" if code else "Completed")


def test_a_pod_that_is_never_seen_to_end_is_not_waited_for_long() -> None:
    world = run_to("train")
    world.set_job("job-train-1", state="Complete", finished_at=world.now, pods=(PodFact("p", "u", "Running"),))
    recheck_at = world.step().recheck_at
    assert recheck_at is not None
    world.now = recheck_at
    world.step()
    assert world.job["status"]["attempt"]["report"] is True


def test_an_answer_that_cannot_be_read_again_ends_the_run() -> None:
    """An image that says nothing would otherwise get one pod after another, for ever."""
    world = run_to("train")
    for number in (1, 2):
        world.end(f"job-train-{number}", None)
        world.step()
        world.step()
    assert world.condition("Succeeded")["reason"] == "AnswerUnreadable"
    assert "job-train-2-0" in world.condition("Succeeded")["message"]
    assert len(world.observed.jobs) == 3


def test_an_answer_whose_pod_vanishes_again_is_asked_for_once_more() -> None:
    world = run_to("train")
    for number in (1, 2, 3):
        world.set_job(f"job-train-{number}", state="Complete")
        world.step()
        world.step()
    assert world.live() == ["job-train-4"]


@pytest.mark.parametrize(
    ("code", "reason", "pod", "reports"),
    [
        (143, "Preempted", {"disruption": "PreemptionByScheduler"}, True),
        (1, "Crashed", {}, True),
        (15, "StorageError", {}, True),
        (15, "StageMissing", {}, False),
    ],
)
def test_a_report_that_failed_is_tried_again_without_a_gpu(code: int, reason: str, pod: dict[str, Any], reports: bool) -> None:
    world = run_to("train")
    world.set_job("job-train-1", state="Complete")
    world.step()
    world.step()
    world.end("job-train-2", {"reason": reason, "message": "m"}, code, **pod)
    world.step()
    assert world.job["status"]["attempt"].get("report", False) is reports


def test_numbers_of_an_answer_that_are_none_stay_out_of_status_and_version() -> None:
    """JSON has no NaN: the API server would refuse the status with every pass."""
    world = run_to("train")
    world.end("job-train-1", {**ANSWERS["train"], "trainLoss": float("nan")})
    world.step()
    world.step()
    world.end("job-package-1", ANSWERS["package"])
    world.step()
    world.step()
    tuned = {"value": float("inf"), "low": 1.0, "high": float("nan"), "n": 9}
    good = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 9}
    metrics = [{"name": "Perplexity", "tuned": tuned}, {"name": "ExactMatch", "tuned": good}]
    world.end("job-evaluate-1", {"evaluation": {"artifact": "q8_0", "metrics": metrics, "gates": []}})
    made: list[Any] = []
    for _ in range(8):
        plan = world.step()
        world.job["status"] = without_nulls(plan.status)
        json.dumps(plan.status, allow_nan=False)
        made += [action.body for action in plan.actions if isinstance(action, Create)]
    (version,) = [body for body in made if body["kind"] == "ModelVersion"]
    assert version["spec"]["lineage"]["metrics"] == {"ExactMatch": 0.9}


def test_a_failed_run_says_where_its_checkpoint_is() -> None:
    world = run_to("train")
    message = {"reason": "Diverged", "message": "loss at step 5", "checkpoint": ANSWERS["train"]["checkpoint"]}
    world.end("job-train-1", message, 12)
    world.step()
    assert "pvc://c/5" in world.condition("Succeeded")["message"]


HOSTILE: dict[str, dict[str, Any]] = {
    "a reason that is a novel": {"reason": "R" * 3000, "message": "m" * 3000},
    "more artifacts than status lists": {"artifacts": [{**ARTIFACT, "name": str(number)} for number in range(40)]},
    "more formats than status lists": {"parity": [{"format": "F", "meanKL": 0, "top1": 1, "verdict": "Passed"}] * 40},
    "a model without end": {"baseModel": "b" * 3000, "baseRevision": "r" * 3000},
    "numbers without end": {"dataset": {"digest": "d", "rowsIn": 10**30, "rowsOut": {"train": -(10**30)}}, "resumedFromStep": 10**30},
    "numbers that are none": {"plan": {**MEMORY_PLAN, "learningRate": float("nan")}, "quantizationGap": float("inf")},
    "more warnings than status lists": {"warnings": [f"{number}" + "w" * 60 for number in range(50)]},
    "a warning that is a novel": {"warnings": ["w" * 3500]},
    "a plan with more warnings than status lists": {"plan": {**MEMORY_PLAN, "warnings": [str(number) for number in range(50)]}},
    "an address without end": {"checkpoint": {"step": 1, "uri": "pvc://c/" + "u" * 2000, "digest": "d", "time": "t"}},
    "members nobody knows": {"dataset": {"digest": "d", "rowsIn": 1, "colour": "red"}, "colour": "blue"},
    "a split for every row": {"dataset": {"digest": "d", "rowsIn": 1, "rowsOut": {str(number): 1 for number in range(400)}}},
}


@pytest.mark.parametrize("code", [0, 1, 11])
@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_answer_makes_a_status_that_its_own_schema_refuses(message: dict[str, Any], code: int) -> None:
    """An image of the user's own may say what it likes within 4,096 bytes."""
    world = run_to("train")
    world.end("job-train-1", message, code)
    for _ in range(2):
        status = world.step().status
        assert isinstance(read_status({"status": status}), FineTuneJobStatus)
        assert list(violations(STATUS_SCHEMA, status)) == []


def test_a_run_that_told_of_no_artifacts_ends_with_words() -> None:
    """An answer over the size that a pod may say is cut to its reason."""
    world = run_to("package")
    world.end("job-package-1", {})
    for _ in range(2):
        world.step()
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    for _ in range(4):
        world.step()
    assert (world.condition("Published")["status"], world.condition("Succeeded")["reason"]) == ("False", "ArtifactsUnknown")
    assert "pvc://job-" in world.condition("Succeeded")["message"]


def test_a_number_that_another_run_took_is_reserved_anew() -> None:
    world = run_to("evaluate")
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    world.step()
    assert world.job["status"]["modelVersionRef"]["version"] == 1
    world.step(versions=(VersionFact("bot-v1", "u", 1, "other", "other-job"),))
    assert world.job["status"]["modelVersionRef"]["version"] == 2


# ---------------------------------------------------------------------------------------------------------- suspend, deadline, TTL


def test_suspend_stops_the_pod_and_going_on_starts_one() -> None:
    world = run_to("train")
    world.job["spec"]["suspend"] = True
    world.now += timedelta(seconds=100)
    made = world.step()
    assert [type(action) for action in made.actions] == [Delete]
    assert made.actions[0].propagation == "Foreground"  # type: ignore[union-attr]
    assert world.condition("Suspended")["status"] == "False"
    world.step(jobs=tuple(job for job in world.observed.jobs if job.stage != "train"))
    assert world.condition("Suspended")["status"] == "True"
    assert world.job["status"]["activeSeconds"] == 100
    assert world.job["status"]["phase"] == "Suspended"
    world.now += timedelta(hours=5)
    assert world.step().actions == ()
    world.job["spec"]["suspend"] = False
    world.step()
    assert world.live() == ["job-train-1"]
    assert world.condition("Suspended")["status"] == "False"
    assert [record["reason"] for record in world.job["status"]["attempts"]] == ["Suspended"]


def test_what_a_suspended_pod_saved_is_in_status() -> None:
    world = run_to("train")
    world.job["spec"]["suspend"] = True
    world.step()
    world.end("job-train-1", {"reason": "Terminated", "checkpoint": ANSWERS["train"]["checkpoint"]}, 143, deleting=True)
    world.step()
    assert world.condition("Suspended")["reason"] == "Suspending"
    assert world.job["status"]["checkpoint"]["step"] == 5


def test_suspended_time_does_not_count_towards_the_deadline() -> None:
    world = run_to("train")
    world.job["spec"] |= {"activeDeadlineSeconds": 1000, "suspend": True}
    world.step()
    world.step(jobs=())
    world.now += timedelta(days=2)
    world.step()
    world.job["spec"]["suspend"] = False
    world.step()
    assert world.condition("Succeeded")["status"] == "Unknown"
    world.now += timedelta(seconds=1001)
    world.step()
    assert world.condition("Succeeded")["reason"] == "DeadlineExceeded"
    assert world.live() == []


def test_ttl_counts_from_the_recorded_end() -> None:
    world = run_to_end()
    world.job["spec"]["ttlSecondsAfterFinished"] = 60
    assert world.step().recheck_at == NOW + timedelta(seconds=60)
    world.now += timedelta(seconds=61)
    (delete,) = world.step().actions
    assert isinstance(delete, Delete)
    assert (delete.kind, delete.uid) == ("FineTuneJob", "job-uid")


def test_a_job_under_deletion_gets_no_children() -> None:
    world = World(job=make_job(deletionTimestamp="2030-01-01T00:00:00Z"))
    assert world.step().actions == ()


# ------------------------------------------------------------------------------------------------------------------ while it waits


TROUBLE = {
    "a secret that is missing": (
        {"waiting": ("CreateContainerConfigError", 'secret "hub" not found')},
        "CreateContainerConfigError",
        'secret "hub" not found',
    ),
    "no node with a GPU": ({"unschedulable": "0/3 nodes: 3 Insufficient nvidia.com/gpu"}, "Unschedulable", "Insufficient nvidia.com/gpu"),
    "a lost node": ({"deleting": True, "disruption": "DeletionByTaintManager", "node": "n1"}, "NodeLost", "kubectl delete pod"),
}


@pytest.mark.parametrize("case", TROUBLE.values(), ids=TROUBLE.keys())
def test_what_keeps_a_pod_from_running_is_said_and_not_terminal(case: tuple[dict[str, Any], str, str]) -> None:
    pod, reason, words = case
    world = run_to("train")
    world.set_job("job-train-1", pods=(PodFact("p", "u", "Pending", **pod),))
    world.step()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", reason)
    assert words in stalled["message"]
    assert world.condition("Succeeded")["status"] == "Unknown"
    world.set_job("job-train-1", pods=(PodFact("p", "u", "Running"),))
    world.step()
    assert world.condition("Stalled")["status"] == "False"


def unschedulable_for(seconds: int, words: str = "0/3 nodes: 3 Insufficient nvidia.com/gpu") -> dict[str, Any]:
    return {"pods": (PodFact("p", "u", "Pending", unschedulable=words, unschedulable_since=NOW - timedelta(seconds=seconds)),)}


def test_a_pod_that_just_waits_for_a_node_is_said_once_and_stalls_only_when_it_lasts() -> None:
    world = run_to("train")
    world.set_job("job-train-1", **unschedulable_for(2))
    made = world.step()
    assert made.events == ()
    assert world.condition("Trained")["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in world.condition("Trained")["message"]
    assert (world.condition("Stalled")["status"], world.condition("Reconciling")["status"]) == ("False", "True")
    told = json.dumps(world.job["status"])
    world.now += timedelta(seconds=5)
    world.set_job("job-train-1", **unschedulable_for(2, "0/3 nodes: 2 Insufficient nvidia.com/gpu, 1 Insufficient cpu"))
    again = world.step()
    assert json.dumps(again.status) == told, "a status write for each change of the scheduler's words"
    assert again.recheck_at is not None
    world.now = again.recheck_at
    assert [event.reason for event in world.step().events] == ["Unschedulable"]
    assert world.condition("Stalled")["status"] == "True"
    assert "Insufficient cpu" in world.condition("Stalled")["message"]


@pytest.mark.parametrize("disruption", ["PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager", None])
def test_a_pod_that_is_stopped_may_save_its_work_before_its_node_counts_as_lost(disruption: str | None) -> None:
    world = run_to("train")
    stopping = PodFact("p", "u", "Running", "n1", deleting=True, disruption=disruption, gone_by=NOW + timedelta(seconds=120))
    world.set_job("job-train-1", pods=(stopping,))
    made = world.step()
    assert world.condition("Trained")["reason"] == "Stopping"
    assert world.condition("Stalled")["status"] == "False"
    assert "--force" not in json.dumps(made.status), "the advice would kill a pod that saves its checkpoint"
    assert made.recheck_at is not None
    assert made.recheck_at > NOW + timedelta(seconds=120)
    world.now = made.recheck_at
    world.step()
    assert (world.condition("Stalled")["status"], world.condition("Stalled")["reason"]) == ("True", "NodeLost")


def test_a_lost_node_is_told_of_while_a_run_is_being_suspended() -> None:
    world = run_to("train")
    world.job["spec"]["suspend"] = True
    gone_by = NOW + timedelta(seconds=120)
    world.set_job("job-train-1", pods=(PodFact("p", "u", "Running", "n1", deleting=True, gone_by=gone_by),))
    made = world.step()
    assert world.condition("Stalled")["status"] == "False"
    assert made.recheck_at is not None
    world.now = made.recheck_at
    world.step()
    assert "kubectl delete pod p" in world.condition("Stalled")["message"]
    world.step(jobs=())
    assert (world.condition("Suspended")["status"], world.condition("Stalled")["status"]) == ("True", "False")


def test_a_refused_pod_is_reported_in_the_apis_words() -> None:
    world = run_to("train")
    world.set_job("job-train-1", refused="violates PodSecurity")
    world.step()
    assert (world.condition("Stalled")["reason"], world.condition("Stalled")["message"]) == ("PodRefused", "violates PodSecurity")


def test_a_refused_write_is_a_condition_and_is_tried_again() -> None:
    world = World()
    world.step()
    problem = ActionProblem("Job", "job-prepare-1", "Forbidden", "violates PodSecurity")
    made = world.step(problems=(problem,))
    assert world.condition("ResourcesApplied")["reason"] == "Forbidden"
    assert "violates PodSecurity" in world.condition("Stalled")["message"]
    assert any(isinstance(action, Create) for action in made.actions)


@pytest.mark.parametrize("reason", ["ApiError", "WaitingForPreviousOwner"])
def test_what_the_api_may_do_in_a_moment_needs_no_person(reason: Any) -> None:
    world = World()
    world.step()
    world.step(problems=(ActionProblem("Job", "job-prepare-1", reason, "failed calling webhook"),))
    assert world.condition("ResourcesApplied")["status"] == "False"
    assert (world.condition("Stalled")["status"], world.condition("Reconciling")["status"]) == ("False", "True")


def test_a_quota_that_another_pod_is_about_to_free_needs_no_person() -> None:
    """The quota of a stage's pod is given back some moments after it ended, when the next one is already asked for."""
    world = World()
    world.step()
    problem = ActionProblem("Job", "job-prepare-1", "QuotaExceeded", "exceeded quota: team")
    made = world.step(problems=(problem,))
    assert world.condition("ResourcesApplied")["reason"] == "QuotaExceeded"
    assert world.condition("Stalled")["status"] == "False"
    assert made.recheck_at == NOW + timedelta(seconds=30)
    world.now = NOW + timedelta(seconds=30)
    world.step()
    assert (world.condition("Stalled")["status"], world.condition("Stalled")["reason"]) == ("True", "QuotaExceeded")
    world.step(problems=())
    assert (world.condition("ResourcesApplied")["status"], world.condition("Stalled")["status"]) == ("True", "False")


def report(percent: int, loss: str = "1.234") -> TrainerStatus:
    metrics = [Metric(name="loss", value=loss), Metric(name="step", value="7"), Metric(name="total_steps", value="20")]
    return TrainerStatus(progress_percentage=percent, estimated_remaining_seconds=5040, metrics=metrics)


def test_progress_reaches_status_and_columns_at_most_every_ten_seconds() -> None:
    world = run_to("train")
    world.step(progress=report(42))
    assert world.job["status"]["display"] == {"progress": "42%", "eta": "1h24m", "loss": "1.23"}
    world.now += timedelta(seconds=4)
    made = world.step(progress=report(43))
    assert world.job["status"]["progress"]["percent"] == 42
    assert made.recheck_at == NOW + timedelta(seconds=10)
    world.now += timedelta(seconds=7)
    world.step()
    assert world.job["status"]["progress"]["percent"] == 43


def test_the_phase_of_a_second_attempt_does_not_forget_that_it_trains() -> None:
    """Reports live in memory: after a restart of the operator only status tells of them."""
    world = run_to("train")
    world.step(progress=report(42))
    world.end("job-train-1", None, 1)
    world.step(progress=None)
    world.now += timedelta(seconds=30)
    world.step()
    world.step()
    assert world.job["status"]["phase"] == "Resuming"
    world.now += timedelta(seconds=30)
    world.step(progress=report(50))
    assert world.job["status"]["phase"] == "Training"
    told = json.dumps(world.job["status"])
    assert json.dumps(world.step(progress=None).status) == told


def test_the_loss_of_training_is_shown_beside_training_and_at_the_end() -> None:
    world = run_to("train")
    world.step(progress=report(42))
    world.end("job-train-1", ANSWERS["train"])
    world.step(progress=None)
    assert world.job["status"]["display"] == {"progress": "", "eta": "", "loss": ""}
    assert world.job["status"]["progress"]["loss"] == 1.234
    ended = run_to_end()
    assert ended.job["status"]["display"] == {"progress": "100%", "eta": "", "loss": "1.5"}


@pytest.mark.parametrize("loss", ["nan", "inf", "many"])
def test_numbers_that_are_none_stay_out_of_status(loss: str) -> None:
    world = run_to("train")
    world.step(progress=report(1, loss))
    assert "loss" not in world.job["status"]["progress"]


def test_more_gpus_than_a_node_has_is_a_warning_in_the_plan() -> None:
    spec = {**SPEC, "resources": {"gpusPerNode": 8}}
    world = World(job=make_job(spec))
    world.step(largest_node_gpus=2)
    world.step()
    world.end("job-prepare-1", ANSWERS["prepare"] | {"plan": MEMORY_PLAN})
    world.step()
    assert "8 GPUs" in world.job["status"]["plan"]["warnings"][0]
    assert "8 GPUs" in world.job["status"]["warnings"][0]["message"]


def warned(made: Plan) -> list[str]:
    return [event.message for event in made.events if event.reason == "StageWarning" and event.type == "Warning"]


def test_a_stages_warnings_are_in_status_and_said_once() -> None:
    world = run_to("prepare")
    plan = {**MEMORY_PLAN, "warnings": ["it fits B200", "two rows are long"]}
    world.end("job-prepare-1", ANSWERS["prepare"] | {"plan": plan, "warnings": ["two rows are long", "a row was cut"]})
    made = world.step()
    said = ["two rows are long", "a row was cut", "it fits B200"]
    assert world.job["status"]["warnings"] == [{"stage": "prepare", "message": message} for message in said]
    assert warned(made) == [f"stage prepare: {message}" for message in said]
    world.step()
    world.end("job-train-1", {"plan": plan, "warnings": ["checkpoint 5 was skipped"]}, 1)
    assert warned(world.step()) == ["stage train: checkpoint 5 was skipped"]
    assert world.job["status"]["warnings"][-1] == {"stage": "train", "message": "checkpoint 5 was skipped"}
    assert len(world.job["status"]["warnings"]) == 4


def test_warnings_beyond_what_status_holds_are_not_said_with_every_pass() -> None:
    world = run_to("train")
    world.job["spec"]["suspend"] = True
    world.step()
    world.end("job-train-1", {"reason": "Terminated", "warnings": [str(number) for number in range(30)]}, 143, deleting=True)
    assert len(warned(world.step())) == 20
    assert warned(world.step()) == []
    assert len(world.job["status"]["warnings"]) == 20


def test_resume_from_mounts_the_older_jobs_claim() -> None:
    world = World(job=make_job({**SPEC, "resumeFrom": {"jobName": "older"}}))
    world.step(older_job=OlderJob("older", "older-uid", "older-claim"))
    made = world.step()
    stage_job = next(action.body for action in made.actions if isinstance(action, Create) and action.body["kind"] == "Job")
    pod = stage_job["spec"]["template"]
    run = json.loads(pod["metadata"]["annotations"]["finetune-operator.io/run"])
    assert run["resumeFrom"] == {"root": "/resume", "prefix": "jobs/older-uid", "uri": "pvc://older-claim"}
    assert {"name": "resume", "mountPath": "/resume", "readOnly": True} in pod["spec"]["containers"][0]["volumeMounts"]


def test_plan_is_pure() -> None:
    job, observed = make_job(), Observed(claims={"base": BASE_CLAIM})
    before = copy.deepcopy(job)
    assert plan(job, observed, SETTINGS, NOW) == plan(job, observed, SETTINGS, NOW)
    assert job == before
