"""Facts that must hold before a version is served; each names the field, what was expected and what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_api.outcome import Reason

from finetune_operator.core.names import version_name
from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.versions import Version


@dataclass(frozen=True)
class Finding:
    """A check that failed."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Subject:
    version: Version
    observed: Observed
    settings: Settings


def name_is_that_of_the_version(subject: Subject) -> Iterator[Finding]:
    """The CRD says so too; this one holds on a cluster whose CRD is older."""
    spec = subject.version.spec
    wanted = version_name(spec.model, spec.version)
    if subject.version.name != wanted:
        yield Finding(Reason.DUPLICATE_VERSION, f"metadata.name must be {wanted}: create the version under that name and delete this one")


def artifact_is_published(subject: Subject) -> Iterator[Finding]:
    version = subject.version
    if version.artifact is None:
        names = ", ".join(artifact.name for artifact in version.spec.artifacts if artifact.format == "GGUF") or "none"
        wanted = version.spec.serving.artifact or "a GGUF"
        yield Finding(Reason.ARTIFACT_MISSING, f"spec.serving.artifact: {wanted} is not among the published GGUF files ({names})")


def artifact_path_stays_in_its_claim(subject: Subject) -> Iterator[Finding]:
    artifact = subject.version.artifact
    if artifact and not artifact.location.stays_inside:
        yield Finding(Reason.UNSAFE_PATH, f"spec.artifacts[{artifact.name}].uri must be a plain path below its claim, without '.' or '..'")


def image_is_allowed(subject: Subject) -> Iterator[Finding]:
    """A version keeps the image it was registered with: every tag of the chart's own repository counts, and what already runs."""
    version = subject.version
    image = version.spec.serving.image
    running = subject.observed.deployments.get(version.name)
    if image is None or (running and running.image == image):
        return
    prefixes = subject.settings.policy(version.namespace).images
    if repository_of(image) != repository_of(subject.settings.server_image) and not image.startswith(prefixes):
        yield Finding(
            Reason.FORBIDDEN_BY_POLICY,
            f"spec.serving.image: {image} is not allowed in namespace {version.namespace}; the chart's policies say what is",
        )


CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    name_is_that_of_the_version,
    artifact_is_published,
    artifact_path_stays_in_its_claim,
    image_is_allowed,
)


def first_finding(version: Version, observed: Observed, settings: Settings) -> Finding | None:
    subject = Subject(version, observed, settings)
    return next((finding for check in CHECKS for finding in check(subject)), None)


def repository_of(image: str) -> str:
    """An image reference without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
