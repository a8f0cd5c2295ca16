"""Facts that must hold before a run starts; each names the field, what was expected and what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.arguments import training_findings
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.outcome import Reason
from finetune_api.uri import ClaimPath
from pydantic import ValidationError

from finetune_operator.core.names import Object, version_name
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.resources.run_spec import source_claims


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
    for key, problem in training_findings(subject.spec.training):
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
                f"{field}: there is no PersistentVolumeClaim {name} in this namespace; create it, the job goes on by itself",
                passing=True,
            )
        elif fact.deleting:
            yield Finding(Reason.CLAIM_NOT_FOUND, f"{field}: PersistentVolumeClaim {name} is being deleted", passing=True)


def chat_template_exists(subject: Subject) -> Iterator[Finding]:
    reference = subject.spec.model.chat_template.config_map
    if reference is None:
        return
    data = subject.observed.config_maps.get(reference.name)
    field = "spec.model.chatTemplate.configMap"
    if data is None:
        yield Finding(
            Reason.CONFIG_MAP_NOT_FOUND,
            f"{field}: there is no ConfigMap {reference.name}; create it, the job goes on by itself",
            passing=True,
        )
    elif reference.key not in data:
        yield Finding(
            Reason.CONFIG_MAP_NOT_FOUND,
            f"{field}: ConfigMap {reference.name} has no key {reference.key}; add it, the job goes on by itself",
            passing=True,
        )


def older_job_exists(subject: Subject) -> Iterator[Finding]:
    resume = subject.spec.resume_from
    if resume and subject.observed.older_job is None:
        yield Finding(
            Reason.OLDER_JOB_NOT_FOUND,
            f"spec.resumeFrom.jobName: there is no FineTuneJob {resume.job_name} in this namespace",
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
    chat_template_exists,
    older_job_exists,
    version_is_free,
)


def findings(subject: Subject) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(subject)]
