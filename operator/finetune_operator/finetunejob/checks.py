"""Facts that must hold before a run starts; each names the field, what was expected and what to do. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.arguments import training_findings
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.outcome import Reason
from finetune_api.run import Stage
from finetune_api.uri import ClaimPath
from pydantic import ValidationError

from finetune_operator.core.names import Object, version_name
from finetune_operator.core.refusal import is_quota, never_fits
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.policies.digest import template_text
from finetune_operator.finetunejob.policies.refusal import field_of
from finetune_operator.finetunejob.resources.run_spec import StageRequest, images_of, source_claims
from finetune_operator.finetunejob.resources.stage_job import make_stage_job

ANNOTATIONS_BYTES = 256 * 1024
"""Source: k8s.io/apimachinery, TotalAnnotationSizeLimitB."""


@dataclass(frozen=True)
class Finding:
    """A check that failed. `passing` findings may heal without an edit."""

    reason: Reason
    message: str
    passing: bool = False


@dataclass(frozen=True)
class Subject:
    spec: FineTuneJobSpec
    job: Object
    observed: Observed
    settings: Settings


def parse(spec: Any) -> FineTuneJobSpec | Finding:
    """The spec, or what is wrong with it by field path: only what schema and CEL cannot see comes this far."""
    try:
        return FineTuneJobSpec.model_validate(spec)
    except ValidationError as error:
        lines = [f"spec.{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]]
        return Finding(Reason.INVALID_SPEC, "; ".join(lines))


def training_arguments_are_known(subject: Subject) -> Iterator[Finding]:
    for key, problem in training_findings(subject.spec.training, subject.spec.resources.gpus_per_node):
        yield Finding(Reason.INVALID_ARGUMENT, f"spec.training.args.{key}: {problem}")


def images_are_allowed(subject: Subject) -> Iterator[Finding]:
    namespace = subject.job["metadata"]["namespace"]
    allowed = subject.settings.policy(namespace).images
    own = (subject.settings.trainer_image, subject.settings.server_image)
    wanted = {"spec.image": subject.spec.image}
    if subject.spec.publish:
        wanted["spec.publish.serving.image"] = subject.spec.publish.serving.image
    for field, image in wanted.items():
        if image and image not in own and not image.startswith(allowed):
            yield Finding(
                Reason.FORBIDDEN_BY_POLICY,
                f"{field}: {image} is not allowed in namespace {namespace}; the chart's policies.{namespace}.images lists what is",
            )


def claims_exist(subject: Subject) -> Iterator[Finding]:
    claim = subject.spec.storage.persistent_volume_claim
    named = {"spec.storage.persistentVolumeClaim.claimName": claim.claim_name} if claim and claim.claim_name else {}
    fields = named | {f"source {ClaimPath(name, '…')}": name for name in source_claims(subject.spec)}
    for field, name in fields.items():
        fact = subject.observed.claims.get(name)
        if fact is None:
            yield Finding(
                Reason.CLAIM_NOT_FOUND,
                f"{field}: there is no PersistentVolumeClaim {name} in this namespace; create it or name another one, the job goes on by itself",
                passing=True,
            )
        elif fact.deleting:
            yield Finding(Reason.CLAIM_NOT_FOUND, f"{field}: PersistentVolumeClaim {name} is being deleted", passing=True)


def storage_class_exists(subject: Subject) -> Iterator[Finding]:
    template = subject.spec.storage.persistent_volume_claim
    if template and subject.observed.storage_class_missing:
        yield Finding(
            Reason.STORAGE_CLASS_NOT_FOUND,
            f"spec.storage.persistentVolumeClaim.storageClassName: there is no StorageClass {template.storage_class_name}; name one that is there "
            "(kubectl get storageclass), leave it out for the cluster's default, or create it (volumes made by hand need one as well, "
            "with provisioner kubernetes.io/no-provisioner)",
            passing=True,
        )


def chat_template_exists(subject: Subject) -> Iterator[Finding]:
    reference = subject.spec.model.chat_template.config_map
    if reference is None:
        return
    data = subject.observed.config_maps.get(reference.name)
    field = "spec.model.chatTemplate.configMap"
    if data is None:
        yield Finding(
            Reason.CONFIG_MAP_NOT_FOUND,
            f"{field}: there is no ConfigMap {reference.name} in this namespace; create it or name another one, the job goes on by itself",
            passing=True,
        )
    elif reference.key not in data:
        yield Finding(
            Reason.CONFIG_MAP_NOT_FOUND,
            f"{field}: ConfigMap {reference.name} has no key {reference.key}; add it or name one of {', '.join(sorted(data)[:5]) or 'another'}, the job goes on by itself",
            passing=True,
        )


def run_fits_into_annotations(subject: Subject) -> Iterator[Finding]:
    """The run travels in an annotation, and all of a pod's together are bounded."""
    text = template_text(subject.spec, subject.observed.config_maps)
    # escaped, a character takes at most six bytes
    if 6 * (len(json.dumps(subject.job.get("spec"))) + len(text or "")) < ANNOTATIONS_BYTES // 2:
        return
    request = StageRequest(Stage.PREPARE, 1, images_of(subject.spec, subject.settings).trainer)
    body = make_stage_job(subject.spec, subject.job, request, subject.observed, subject.settings)
    annotations = body["spec"]["template"]["metadata"]["annotations"]
    size = sum(len(name.encode()) + len(value.encode()) for name, value in annotations.items())
    if size <= ANNOTATIONS_BYTES:
        return
    reference = subject.spec.model.chat_template.config_map
    if reference is None or not text:
        message = f"spec: the run and spec.podMetadata.annotations take {size} bytes, and a pod's annotations hold {ANNOTATIONS_BYTES}; shorten them"
        yield Finding(Reason.INVALID_SPEC, message)
        return
    message = (
        f"spec.model.chatTemplate.configMap: key {reference.key} of ConfigMap {reference.name} holds {len(text.encode())} bytes; with the rest "
        f"of the run that is {size}, and a pod's annotations hold {ANNOTATIONS_BYTES}: shorten the template, its comments first"
    )
    yield Finding(Reason.CONFIG_MAP_TOO_LARGE, message, passing=True)


def pods_are_accepted(subject: Subject) -> Iterator[Finding]:
    told: dict[tuple[Reason, str, str], list[str]] = {}
    for stage, problem in subject.observed.refused_pods.items():
        if is_quota(problem.message) and not never_fits(problem.message):
            continue  # another pod has the room now: the stage itself will wait for it
        words = _OF_STAGE.sub("", problem.message)
        told.setdefault((problem.reason, field_of(Stage(stage), problem.message), words), []).append(stage)
    for (reason, field, words), stages in told.items():
        pods = f"the pod of stage {stages[0]} is" if len(stages) == 1 else f"the pods of stages {', '.join(stages)} are"
        yield Finding(reason, f"{field}: {pods} refused: {words}", passing=True)


_OF_STAGE = re.compile(rf"-(?:{'|'.join(Stage)})-\d+(?=\")")
"""What a pod's name says of its stage: stages whose pods are alike are asked for once."""


def claim_is_accepted(subject: Subject) -> Iterator[Finding]:
    problem = subject.observed.refused_claim
    if problem:
        field = "spec.storage.persistentVolumeClaim" + (".size" if _OF_SIZE.search(problem.message) else "")
        yield Finding(problem.reason, f"{field}: the job's PersistentVolumeClaim is refused: {problem.message}", passing=True)


_OF_SIZE = re.compile(r"storage usage|requests\.storage|resources\[storage\]")


def older_job_exists(subject: Subject) -> Iterator[Finding]:
    resume = subject.spec.resume_from
    if resume and subject.observed.older_job is None:
        yield Finding(
            Reason.OLDER_JOB_NOT_FOUND,
            f"spec.resumeFrom.jobName: there is no FineTuneJob {resume.job_name} in this namespace; name one that is there, or leave resumeFrom out",
            passing=True,
        )


def version_is_free(subject: Subject) -> Iterator[Finding]:
    publish = subject.spec.publish
    if publish is None or publish.version is None:
        return
    if any(version.version == publish.version for version in subject.observed.versions):
        taken = version_name(publish.model, publish.version)
        yield Finding(
            Reason.VERSION_TAKEN, f"spec.publish.version: {taken} exists and was made by another run; name another version or leave it out"
        )


CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    training_arguments_are_known,
    images_are_allowed,
    claims_exist,
    storage_class_exists,
    chat_template_exists,
    run_fits_into_annotations,
    older_job_exists,
    version_is_free,
    claim_is_accepted,
    pods_are_accepted,
)


def findings(subject: Subject) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(subject)]
