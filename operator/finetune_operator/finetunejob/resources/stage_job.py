"""The batch Job of a stage: one pod, restricted, told its run by an annotation. Pure."""

from __future__ import annotations

import json

from finetune_api import environment
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.outcome import FINAL_EXIT_CODES
from finetune_api.run import Stage

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.core.restricted import restricted_container, restricted_pod
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.resources.placement import placement, tolerations
from finetune_operator.finetunejob.resources.pod_resources import pod_resources
from finetune_operator.finetunejob.resources.run_spec import StageRequest, make_run_spec, mount_path, stage_claims, storage_claim

STATUS_CA_ANNOTATION = f"{names.GROUP}/status-ca"
CONTAINER = "trainer"


def make_stage_job(spec: FineTuneJobSpec, job: Object, request: StageRequest, observed: Observed, settings: Settings) -> Object:
    """Indexed, never retried by the Job controller itself: attempts are ours to count."""
    labels = _labels(job, request)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.stage_job_name(job["metadata"]["name"], request.stage, request.attempt),
            "namespace": job["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [names.owner_reference(job)],
        },
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [int(code) for code in FINAL_EXIT_CODES]},
                    }
                ]
            },
            "template": _pod_template(spec, job, request, observed, settings),
        },
    }


def make_dry_run_pod(stage_job: Object) -> Object:
    """The pod that the Job controller would create, for a dry-run create: admission answers before a Job exists."""
    template = stage_job["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **template["metadata"],
            "name": stage_job["metadata"]["name"],  # a random one would make each refusal differ from the last
            "namespace": stage_job["metadata"]["namespace"],
        },
        "spec": template["spec"],
    }


def shape_of(pod: Object) -> str:
    """What admission looks at in a pod of `make_dry_run_pod`: the same of two stages where one answer is good for both."""
    spec = pod["spec"]
    (container,) = spec["containers"]
    asked = {name: member for name, member in container.items() if name not in ("command", "env", "volumeMounts")}
    return json.dumps({**spec, "containers": [asked], "volumes": [sorted(volume) for volume in spec["volumes"]]})


def _labels(job: Object, request: StageRequest) -> dict[str, str]:
    return names.job_labels(job, **{names.STAGE_LABEL: request.stage.value, names.ATTEMPT_LABEL: str(request.attempt)})


def _pod_template(spec: FineTuneJobSpec, job: Object, request: StageRequest, observed: Observed, settings: Settings) -> Object:
    run = make_run_spec(spec, job, request, observed)
    annotations = {**spec.pod_metadata.annotations, names.RUN_ANNOTATION: json.dumps(run.wire(), separators=(",", ":"), ensure_ascii=False)}
    if observed.status_ca:
        annotations[STATUS_CA_ANNOTATION] = observed.status_ca
    return {
        "metadata": {"labels": {**spec.pod_metadata.labels, **_labels(job, request)}, "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            **restricted_pod(),
            "terminationGracePeriodSeconds": settings.termination_grace_s,
            "tolerations": tolerations(spec, request, observed),
            **placement(spec, request, observed),
            **({"imagePullSecrets": [secret.wire() for secret in spec.image_pull_secrets]} if spec.image_pull_secrets else {}),
            "volumes": _volumes(spec, job, request.stage, observed, settings),
            "containers": [_container(spec, job, request, observed, settings)],
        },
    }


def _volumes(spec: FineTuneJobSpec, job: Object, stage: Stage, observed: Observed, settings: Settings) -> list[Object]:
    storage = storage_claim(spec, job)
    claims = [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(stage_claims(spec, job, stage, observed))
    ]
    files = [_annotation_file(environment.RUN_FILE_NAME, names.RUN_ANNOTATION)]
    if observed.status_ca:
        files.append(_annotation_file(environment.STATUS_CA_NAME, STATUS_CA_ANNOTATION))
    volumes: list[Object] = [
        *claims,
        {"name": "run", "downwardAPI": {"items": files}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}},
    ]
    older = observed.older_job
    if spec.resume_from and older and older.claim and older.claim != storage:
        volumes.append({"name": "resume", "persistentVolumeClaim": {"claimName": older.claim}})
    if settings.status_url:
        audience = progress_audience(settings, job)
        source = {"serviceAccountToken": {"audience": audience, "expirationSeconds": 3600, "path": environment.TOKEN_NAME}}
        volumes.append({"name": "token", "projected": {"sources": [source]}})
    return volumes


def progress_audience(settings: Settings, job: Object) -> str:
    """Audience of a pod's token: names the one job whose progress it may write."""
    return f"{settings.status_audience}/{job['metadata']['namespace']}/{job['metadata']['name']}"


def _annotation_file(path: str, annotation: str) -> Object:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


def _container(spec: FineTuneJobSpec, job: Object, request: StageRequest, observed: Observed, settings: Settings) -> Object:
    storage = storage_claim(spec, job)
    claims = stage_claims(spec, job, request.stage, observed)
    mounts: list[Object] = [
        {"name": f"claim-{number}", "mountPath": path, **({} if claim == storage else {"readOnly": True})}
        for number, (claim, path) in enumerate(claims.items())
    ]
    mounts += [
        {"name": "run", "mountPath": environment.RUN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    older = observed.older_job
    if spec.resume_from and older and older.claim and mount_path(older.claim, storage) != mount_path(storage, storage):
        mounts.append({"name": "resume", "mountPath": environment.RESUME_ROOT, "readOnly": True})
    if settings.status_url:
        mounts.append({"name": "token", "mountPath": environment.TOKEN_FOLDER, "readOnly": True})
    return {
        "name": CONTAINER,
        "image": request.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": _command(request),
        "env": _environment(spec, job, request, observed, settings),
        "resources": pod_resources(spec, request),
        "securityContext": restricted_container(),
        "volumeMounts": mounts,
    }


def _command(request: StageRequest) -> list[str]:
    """One command for any number of GPUs: the trainer itself starts a process for each, and ends with its one answer and exit code."""
    return ["python", "-m", "finetune_trainer", request.stage.value, *(["--report"] if request.report else [])]


def _environment(spec: FineTuneJobSpec, job: Object, request: StageRequest, observed: Observed, settings: Settings) -> list[Object]:
    variables: list[Object] = [
        {"name": environment.RUN_FILE, "value": f"{environment.RUN_FOLDER}/{environment.RUN_FILE_NAME}"},
        {"name": environment.POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
    ]
    if settings.status_url:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        authorities = f"{environment.RUN_FOLDER}/{environment.STATUS_CA_NAME}" if observed.status_ca else ""
        variables += [
            {"name": environment.STATUS_URL, "value": f"{settings.status_url}/v1/namespaces/{namespace}/finetunejobs/{name}/status"},
            {"name": environment.STATUS_CA, "value": authorities},
            {"name": environment.STATUS_TOKEN, "value": f"{environment.TOKEN_FOLDER}/{environment.TOKEN_NAME}"},
        ]
    if not request.stage.access.hub:
        return [*variables, {"name": environment.HUB_OFFLINE, "value": "1"}]
    return variables + _hub_tokens(spec)


def _hub_tokens(spec: FineTuneJobSpec) -> list[Object]:
    """Where the hub may be reached, which is on CPU only, tokens are held; nowhere else."""
    references = {environment.MODEL_TOKEN: spec.model.token_secret_ref}
    for dataset in spec.datasets:
        references[environment.dataset_token(dataset.name)] = dataset.token_secret_ref
    return [{"name": name, "valueFrom": {"secretKeyRef": reference.wire()}} for name, reference in references.items() if reference]
