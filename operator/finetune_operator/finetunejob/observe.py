"""What exists for a FineTuneJob: API objects become facts at this door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec, FineTuneJobStatus
from finetune_api.progress import TrainerStatus

from finetune_operator.core import names
from finetune_operator.core.conditions import find, moment, parse_timestamp
from finetune_operator.core.facts import ClaimFact, claim_fact, conditions_of, number, unschedulable
from finetune_operator.core.names import Object
from finetune_operator.core.unreadable import Unreadable
from finetune_operator.engine.store import MODEL, Key
from finetune_operator.engine.world import World
from finetune_operator.finetunejob import checks
from finetune_operator.finetunejob.observed import JobFact, Observed, OlderJob, PodFact, VersionFact
from finetune_operator.finetunejob.resources.run_spec import source_claims, storage_claim
from finetune_operator.finetunejob.resources.stage_job import CONTAINER
from finetune_operator.finetunejob.status import read_status
from finetune_operator.kube.resources import CLAIM, CONFIGMAP, JOB, MODELVERSION, POD, REFUSAL

_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


async def observe(job: Object, world: World) -> Observed:
    """Facts about a job. Reads beside the store: what the spec names, cached, and nothing once the job has ended."""
    metadata = job["metadata"]
    key = Key(names.FINETUNEJOB, metadata["namespace"], metadata["name"])
    jobs = _job_facts(world, key, metadata["uid"])
    spec, status = checks.parse(job.get("spec") or {}), read_status(job)
    if isinstance(spec, checks.Finding) or isinstance(status, Unreadable) or _has_ended(status):
        return Observed(jobs=jobs, problems=world.problems.get(key, ()))
    return Observed(
        jobs=jobs,
        claims=_own_claims(world, key, metadata["uid"])
        | (await _named_claims(spec, metadata["namespace"], world) if status.start_time is None else {}),
        config_maps=await _config_maps(spec, metadata["namespace"], world),
        versions=_versions(spec, metadata["namespace"], world),
        older_job=_older_job(spec, metadata["namespace"], world),
        progress=_progress(key, jobs, world),
        largest_node_gpus=await _largest_node(spec, world),
        status_ca=world.status_ca(),
        problems=world.problems.get(key, ()),
    )


def _has_ended(status: FineTuneJobStatus) -> bool:
    succeeded = find(status.conditions, ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded.status != "Unknown"


# ------------------------------------------------------------------------------------------------------------ jobs and pods


def _job_facts(world: World, key: Key, uid: str) -> tuple[JobFact, ...]:
    pods = world.store.of(key, POD.kind)
    refusals = world.store.of(key, REFUSAL.kind)
    own = [live for live in world.store.of(key, JOB.kind) if _controller(live) == uid]
    return tuple(job_fact(live, [pod for pod in pods if _controller(pod) == live["metadata"]["uid"]], refusals) for live in own)


def _controller(live: Object) -> str | None:
    owners = live["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def job_fact(live: Object, pods: Iterable[Object], refusals: Iterable[Object]) -> JobFact:
    metadata, status = live["metadata"], live.get("status") or {}
    labels = metadata.get("labels") or {}
    ended = {type: condition for type, condition in conditions_of(status).items() if condition["status"] == "True"}
    # with a rank on a lost node Failed never comes: FailureTarget ends the attempt
    failed = ended.get("Failed") or ended.get("FailureTarget")
    end = ended.get("Complete") or failed or {}
    return JobFact(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=labels.get(names.STAGE_LABEL, ""),
        attempt=number(labels.get(names.ATTEMPT_LABEL)),
        state="Complete" if "Complete" in ended else "Failed" if failed else "Active",
        created_at=parse_timestamp(metadata["creationTimestamp"]),
        finished_at=moment(status.get("completionTime") or end.get("lastTransitionTime")),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        deleting="deletionTimestamp" in metadata,
        pods=tuple(sorted(map(pod_fact, pods), key=lambda pod: (pod.index, pod.name))),
        refused=_refusal(metadata["uid"], refusals),
    )


def pod_fact(pod: Object) -> PodFact:
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    own: Mapping[str, Any] = next((container for container in containers if container["name"] == CONTAINER), {})
    ended = (own.get("state") or {}).get("terminated") or {}
    conditions = conditions_of(status)
    disrupted, (words, since) = conditions.get("DisruptionTarget", {}), unschedulable(conditions)
    return PodFact(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=cast(Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"], status.get("phase", "Pending")),
        node=(pod.get("spec") or {}).get("nodeName"),
        index=number((metadata.get("labels") or {}).get(_INDEX_LABEL)),
        waiting=_waiting([*(status.get("initContainerStatuses") or []), *containers]),
        unschedulable=words or None,
        unschedulable_since=since,
        exit_code=ended.get("exitCode"),
        terminated_reason=ended.get("reason") or status.get("reason"),
        message=ended.get("message"),
        disruption=disrupted.get("reason") if disrupted.get("status") == "True" else None,
        deleting="deletionTimestamp" in metadata,
        gone_by=moment(metadata.get("deletionTimestamp")),
    )


def _waiting(containers: Iterable[Object]) -> tuple[str, str] | None:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason"):
            return waiting["reason"], waiting.get("message", "")
    return None


def _refusal(uid: str, refusals: Iterable[Object]) -> str | None:
    """The Job controller's last words on why it cannot create a pod."""
    own = [refusal for refusal in refusals if refusal["involvedObject"].get("uid") == uid]
    last = max(own, key=lambda refusal: str(refusal.get("lastTimestamp") or refusal.get("eventTime") or ""), default=None)
    return str(last.get("message", "")) if last else None


# ------------------------------------------------------------------------------------------------------- what the spec names


def _own_claims(world: World, key: Key, uid: str) -> dict[str, ClaimFact | None]:
    claims = world.store.of(key, CLAIM.kind)
    own = [claim for claim in claims if (claim["metadata"].get("labels") or {}).get(names.JOB_UID_LABEL) == uid]
    return {claim["metadata"]["name"]: claim_fact(claim) for claim in own}


async def _named_claims(spec: FineTuneJobSpec, namespace: str, world: World) -> dict[str, ClaimFact | None]:
    """Claims of users, which no watch tells of. They matter before the start only."""
    template = spec.storage.persistent_volume_claim
    wanted = [*source_claims(spec), *([template.claim_name] if template and template.claim_name else [])]
    found = {name: await world.lookups.find(CLAIM, namespace, name) for name in wanted}
    return {name: claim_fact(claim) if claim else None for name, claim in found.items()}


async def _config_maps(spec: FineTuneJobSpec, namespace: str, world: World) -> dict[str, Mapping[str, str] | None]:
    reference = spec.model.chat_template.config_map
    if reference is None:
        return {}
    found = await world.lookups.find(CONFIGMAP, namespace, reference.name)
    return {reference.name: (found.get("data") or {}) if found else None}


def _versions(spec: FineTuneJobSpec, namespace: str, world: World) -> tuple[VersionFact, ...]:
    if spec.publish is None:
        return ()
    return tuple(map(version_fact, world.store.of(Key(MODEL, namespace, spec.publish.model), MODELVERSION.kind)))


def version_fact(live: Object) -> VersionFact:
    spec = live["spec"]
    lineage = spec.get("lineage") or {}
    served_name = (spec.get("serving") or {}).get("artifact")
    served: Object = next((artifact for artifact in spec.get("artifacts") or [] if artifact["name"] == served_name), {})
    return VersionFact(
        name=live["metadata"]["name"],
        uid=live["metadata"]["uid"],
        version=spec["version"],
        run_digest=lineage.get("runDigest", ""),
        job_uid=lineage.get("jobUid", ""),
        stage=(live.get("status") or {}).get("stage", ""),
        served_uri=served.get("uri", ""),
        served_sha256=served.get("sha256", ""),
    )


def _older_job(spec: FineTuneJobSpec, namespace: str, world: World) -> OlderJob | None:
    if spec.resume_from is None:
        return None
    older = world.store.get(names.FINETUNEJOB, namespace, spec.resume_from.job_name)
    if older is None:
        return None
    older_spec, status = checks.parse(older.get("spec") or {}), read_status(older)
    has_started = isinstance(status, Unreadable) or status.start_time is not None
    claim = storage_claim(older_spec, older) if has_started and isinstance(older_spec, FineTuneJobSpec) else None
    return OlderJob(older["metadata"]["name"], older["metadata"]["uid"], claim)


def _progress(key: Key, jobs: Iterable[JobFact], world: World) -> TrainerStatus | None:
    """The newest report, if it is by a pod of a live attempt."""
    report = world.reports(key.namespace, key.name)
    live = {pod.uid for job in jobs if job.state == "Active" for pod in job.pods}
    return report.status if report and report.pod_uid in live else None


async def _largest_node(spec: FineTuneJobSpec, world: World) -> int | None:
    resources = spec.resources
    return await world.lookups.largest_node(resources.gpu_resource_name) if resources.gpus_per_node else None
