"""What exists for a FineTuneJob: API objects become facts at this door."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec, FineTuneJobStatus
from finetune_api.progress import TrainerStatus
from finetune_api.quantity import amount_of
from finetune_api.run import Stage
from finetune_api.section import digest_of

from finetune_operator.core import names
from finetune_operator.core.conditions import find, moment, parse_timestamp
from finetune_operator.core.facts import ClaimFact, claim_fact, conditions_of, number, unschedulable
from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem
from finetune_operator.core.refusal import steady
from finetune_operator.core.unreadable import Unreadable
from finetune_operator.engine.store import MODEL, Key
from finetune_operator.engine.world import World
from finetune_operator.finetunejob import checks
from finetune_operator.finetunejob.observed import JobFact, Observed, OlderJob, PodFact, VersionFact
from finetune_operator.finetunejob.policies.room import small_hosts
from finetune_operator.finetunejob.policies.trouble import waits_for_a_volume
from finetune_operator.finetunejob.resources.claim import make_claim
from finetune_operator.finetunejob.resources.pod_resources import largest_request
from finetune_operator.finetunejob.resources.run_spec import StageRequest, images_of, source_claims, storage_claim
from finetune_operator.finetunejob.resources.stage_job import CONTAINER, make_dry_run_pod, make_stage_job, shape_of
from finetune_operator.finetunejob.status import read_status
from finetune_operator.kube.resources import CLAIM, CONFIGMAP, JOB, MODELVERSION, POD, REFUSAL, STORAGECLASS

_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


async def observe(job: Object, world: World) -> Observed:
    """Facts about a job. Reads beside the store: what the spec names, cached, and nothing once the job has ended."""
    metadata = job["metadata"]
    key = Key(names.FINETUNEJOB, metadata["namespace"], metadata["name"])
    jobs, orphans = _job_facts(world, key, metadata["uid"]), _orphans(world, key, metadata["uid"])
    spec, status = checks.parse(job.get("spec") or {}), read_status(job)
    if isinstance(spec, checks.Finding) or isinstance(status, Unreadable) or _has_ended(status):
        return Observed(jobs=jobs, orphans=orphans, problems=world.problems.get(key, ()))
    claims = await _claims(spec, job, status, world)
    observed = Observed(
        jobs=jobs,
        orphans=orphans,
        claims=claims,
        config_maps=await _config_maps(spec, status, jobs, metadata["namespace"], world),
        versions=_versions(spec, metadata["namespace"], world),
        older_job=_older_job(spec, metadata["namespace"], world),
        progress=_progress(key, jobs, world),
        largest_node_gpus=await _largest_node(spec, world),
        shares_one_node=_shares_one_node(spec),
        small_hosts=await _small_hosts(spec, status, claims, world),
        storage_class_missing=await _storage_class_missing(spec, status, world),
        claim_words=await _claim_words(claims, jobs, metadata["namespace"], world),
        status_ca=world.status_ca(),
        problems=world.problems.get(key, ()),
    )
    if status.start_time is not None:
        return observed
    refused = await _refused(spec, job, observed, world)
    return replace(observed, refused_claim=refused.pop(_CLAIM, None), refused_pods=refused)


def _has_ended(status: FineTuneJobStatus) -> bool:
    succeeded = find(status.conditions, ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded.status != "Unknown"


# ------------------------------------------------------------------------------------------------------------ jobs and pods


def _job_facts(world: World, key: Key, uid: str) -> tuple[JobFact, ...]:
    pods = world.store.of(key, POD.kind)
    refusals = world.store.of(key, REFUSAL.kind)
    own = _own_jobs(world, key, uid)
    return tuple(job_fact(live, [pod for pod in pods if _controller(pod) == live["metadata"]["uid"]], refusals) for live in own)


def _own_jobs(world: World, key: Key, uid: str) -> list[Object]:
    return [live for live in world.store.of(key, JOB.kind) if _controller(live) == uid]


def _orphans(world: World, key: Key, uid: str) -> tuple[PodFact, ...]:
    owners = {live["metadata"]["uid"] for live in _own_jobs(world, key, uid)}
    own = [pod for pod in world.store.of(key, POD.kind) if (pod["metadata"].get("labels") or {}).get(names.JOB_UID_LABEL) == uid]
    return tuple(pod_fact(pod) for pod in own if _controller(pod) not in owners)


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
        began=any(set(container.get("state") or {}) & {"running", "terminated"} for container in containers),
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
    return steady(str(last.get("message", ""))) if last else None


# ------------------------------------------------------------------------------------------------------- what the spec names


async def _claims(spec: FineTuneJobSpec, job: Object, status: FineTuneJobStatus, world: World) -> dict[str, ClaimFact | None]:
    """Those that users named until prepare is done, and the job's own. That one is gone is believed after a look by its name only."""
    metadata = job["metadata"]
    key = Key(names.FINETUNEJOB, metadata["namespace"], metadata["name"])
    named = {} if _is_prepared(status) else await _named_claims(spec, metadata["namespace"], world)
    claims = named | _own_claims(world, key, metadata["uid"])
    template = spec.storage.persistent_volume_claim
    name = storage_claim(spec, job)
    if template and template.size and status.first_pod_time and name not in claims:
        # afresh: one that a person restored without our label is in no watch, and its owners are about to be changed
        found = await world.lookups.read(CLAIM, metadata["namespace"], name)
        claims[name] = claim_fact(found) if found else None
    return claims


def _is_prepared(status: FineTuneJobStatus) -> bool:
    prepared = find(status.conditions, ConditionType.PREPARED)
    return prepared is not None and prepared.status == "True"


def _own_claims(world: World, key: Key, uid: str) -> dict[str, ClaimFact | None]:
    claims = world.store.of(key, CLAIM.kind)
    own = [claim for claim in claims if (claim["metadata"].get("labels") or {}).get(names.JOB_UID_LABEL) == uid]
    return {claim["metadata"]["name"]: claim_fact(claim) for claim in own}


async def _claim_words(claims: Mapping[str, ClaimFact | None], jobs: Iterable[JobFact], namespace: str, world: World) -> dict[str, str]:
    """Why claims have no volume, where a pod waits for one."""
    if not any(waits_for_a_volume(pod) for job in jobs for pod in job.pods):
        return {}
    pending = [name for name, claim in claims.items() if claim and claim.phase == "Pending"]
    return {name: words for name in pending if (words := await world.lookups.last_warning(CLAIM.kind, namespace, name))}


async def _storage_class_missing(spec: FineTuneJobSpec, status: FineTuneJobStatus, world: World) -> bool:
    template = spec.storage.persistent_volume_claim
    if status.start_time or template is None or template.storage_class_name is None:
        return False
    return await world.lookups.find_cluster_wide(STORAGECLASS, template.storage_class_name) is None


def _shares_one_node(spec: FineTuneJobSpec) -> bool:
    template = spec.storage.persistent_volume_claim
    return bool(template and template.size and "ReadWriteMany" not in template.access_modes)


async def _small_hosts(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, claims: Mapping[str, ClaimFact | None], world: World
) -> tuple[str, ...]:
    template = spec.storage.persistent_volume_claim
    claim = claims.get(template.claim_name or "") if template else None
    is_bound_elsewhere = bool(template and template.claim_name) and (claim is None or claim.phase == "Bound")
    if _is_prepared(status) or is_bound_elsewhere or (claim and "ReadWriteMany" in claim.access_modes):
        return ()
    if not _shares_one_node(spec) and claim is None:
        return ()
    return small_hosts(largest_request(spec), await world.lookups.nodes() or ())


async def _named_claims(spec: FineTuneJobSpec, namespace: str, world: World) -> dict[str, ClaimFact | None]:
    """Claims of users, which no watch tells of. They matter before the start only."""
    template = spec.storage.persistent_volume_claim
    wanted = [*source_claims(spec), *([template.claim_name] if template and template.claim_name else [])]
    found = {name: await world.lookups.find(CLAIM, namespace, name) for name in wanted}
    return {name: claim_fact(claim) if claim else None for name, claim in found.items()}


async def _config_maps(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, jobs: Iterable[JobFact], namespace: str, world: World
) -> dict[str, Mapping[str, str] | None]:
    """As they are until the start; then the text that the run was started with, until prepare has made use of it."""
    reference = spec.model.chat_template.config_map
    if reference is None:
        return {}
    if status.start_time is None:
        found = await world.lookups.read(CONFIGMAP, namespace, reference.name)
        return {reference.name: (found.get("data") or {}) if found else None}
    if status.chat_template_digest and _is_prepared(status):
        return {}
    found = await world.lookups.find(CONFIGMAP, namespace, reference.name)
    data: Mapping[str, str] | None = (found.get("data") or {}) if found else None
    if status.chat_template_digest and digest_of((data or {}).get(reference.key)) != status.chat_template_digest:
        text = await _text_of_an_earlier_pod(status.chat_template_digest, jobs, namespace, world)
        data = {reference.key: text} if text is not None else None
    return {reference.name: data}


async def _text_of_an_earlier_pod(digest: str, jobs: Iterable[JobFact], namespace: str, world: World) -> str | None:
    for job in jobs:
        live = await world.lookups.find(JOB, namespace, job.name) if job.stage == Stage.PREPARE else None
        template = ((live or {}).get("spec") or {}).get("template") or {}
        run = json.loads((template.get("metadata") or {}).get("annotations", {}).get(names.RUN_ANNOTATION, "{}"))
        if digest_of(run.get("chatTemplateText")) == digest:
            return str(run["chatTemplateText"])
    return None


_CLAIM = "claim"
"""Beside the stages' names."""


async def _refused(spec: FineTuneJobSpec, job: Object, observed: Observed, world: World) -> dict[str, ActionProblem]:
    """The job's claim and the pods of all stages are asked for before the start, once nothing else is wrong."""
    if checks.findings(checks.Subject(spec, job, observed, world.settings)):
        return {}
    image = images_of(spec, world.settings).trainer
    pods = {
        stage.value: make_dry_run_pod(make_stage_job(spec, job, StageRequest(stage, 1, image), observed, world.settings)) for stage in Stage
    }
    first_alike = {shape_of(pod): stage for stage, pod in reversed(pods.items())}
    key = Key(names.FINETUNEJOB, job["metadata"]["namespace"], job["metadata"]["name"])
    asked = {stage: pods[stage] for stage in sorted(first_alike.values(), key=list(pods).index)}
    template = spec.storage.persistent_volume_claim
    if template and template.size and observed.claims.get(storage_claim(spec, job)) is None:
        asked |= {_CLAIM: make_claim(template, spec.retention, job)}
    refused = await world.admission.refused(key, asked)
    alike = {stage: refused[first] for stage, pod in pods.items() if (first := first_alike[shape_of(pod)]) in refused}
    return alike | {name: problem for name, problem in refused.items() if name == _CLAIM}


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
    nodes = await world.lookups.nodes() if spec.resources.gpus_per_node else None
    name = spec.resources.gpu_resource_name
    return max((int(amount_of(node.allocatable.get(name, "0")) or 0) for node in nodes), default=0) if nodes is not None else None
