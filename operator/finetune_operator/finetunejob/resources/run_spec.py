"""The run that a stage's pod is told. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.environment import RESUME_ROOT, STORAGE_ROOT, claim_folder
from finetune_api.finetunejob import FineTuneJobSpec, Images
from finetune_api.run import Baseline, JobIdentity, RunSpec, Stage, StorageLocation
from finetune_api.uri import ClaimPath, claim_of

from finetune_operator.core.names import Object, claim_name, storage_prefix
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed, VersionFact
from finetune_operator.finetunejob.policies.digest import template_text


@dataclass(frozen=True)
class StageRequest:
    """A stage's attempt that is to be started. `report`: only re-emit the answer of a finished stage, without a GPU."""

    stage: Stage
    attempt: int
    image: str
    report: bool = False


def images_of(spec: FineTuneJobSpec, settings: Settings) -> Images:
    """The images that a run starting now keeps to its end."""
    server = spec.publish.serving.image if spec.publish else None
    return Images(trainer=spec.image or settings.trainer_image, server=server or settings.server_image)


def storage_claim(spec: FineTuneJobSpec, job: Object) -> str:
    """Name of the claim that holds the job's files: the one named, or the one that is made."""
    claim = spec.storage.persistent_volume_claim
    assert claim is not None  # CEL and checks.py
    return claim.claim_name or claim_name(job["metadata"]["name"], job["metadata"]["uid"])


def source_claims(spec: FineTuneJobSpec) -> list[str]:
    """Claims that model and data are read from, without repetition, in order."""
    return list(dict.fromkeys(claim for claim in map(claim_of, _sources(spec)) if claim))


def _sources(spec: FineTuneJobSpec) -> Iterator[str]:
    yield spec.model.source
    for dataset in spec.datasets:
        yield dataset.source


def mount_path(claim: str, storage: str) -> str:
    return STORAGE_ROOT if claim == storage else claim_folder(claim)


def production_version(spec: FineTuneJobSpec, observed: Observed) -> VersionFact | None:
    """The version in production, where a gate asks for it: its claim is mounted for no other reason."""
    if not any(gate.against == "Production" for gate in spec.evaluation.gates):
        return None
    return next((version for version in observed.versions if version.stage == "Production" and version.served_uri), None)


def stage_claims(spec: FineTuneJobSpec, job: Object, stage: Stage, observed: Observed) -> dict[str, str]:
    """Mount path of each claim that the stage reads or writes, the storage's own first."""
    storage = storage_claim(spec, job)
    claims = [storage, *source_claims(spec)]
    production = production_version(spec, observed)
    if stage.access.production and production and (claim := claim_of(production.served_uri)):
        claims.append(claim)
    return {claim: mount_path(claim, storage) for claim in dict.fromkeys(claims)}


def make_run_spec(spec: FineTuneJobSpec, job: Object, request: StageRequest, observed: Observed) -> RunSpec:
    stage = request.stage
    storage = storage_claim(spec, job)
    production = production_version(spec, observed) if stage.access.production else None
    return RunSpec(
        job=JobIdentity(namespace=job["metadata"]["namespace"], name=job["metadata"]["name"], uid=job["metadata"]["uid"]),
        attempt=request.attempt,
        storage=StorageLocation(root=STORAGE_ROOT, prefix=storage_prefix(job["metadata"]["uid"]), uri=str(ClaimPath(storage))),
        claims=stage_claims(spec, job, stage, observed),
        model=spec.model,
        datasets=spec.datasets,
        preparation=spec.preparation,
        method=spec.method,
        adapter=spec.adapter,
        quantization=spec.quantization,
        training=spec.training,
        checkpoints=spec.checkpoints,
        retention=spec.retention.checkpoints,
        evaluation=spec.evaluation,
        export=spec.export,
        served_artifact=spec.publish.serving.artifact if spec.publish else None,
        # later stages have what prepare made of it
        chat_template_text=template_text(spec, observed.config_maps) if stage is Stage.PREPARE else None,
        gpus_per_node=spec.resources.gpus_per_node,
        image=request.image,
        production=Baseline(name=production.name, uri=production.served_uri, sha256=production.served_sha256) if production else None,
        resume_from=_resume_location(spec, job, observed),
    )


def _resume_location(spec: FineTuneJobSpec, job: Object, observed: Observed) -> StorageLocation | None:
    older = observed.older_job
    if spec.resume_from is None or older is None or older.claim is None:
        return None
    root = STORAGE_ROOT if older.claim == storage_claim(spec, job) else RESUME_ROOT
    return StorageLocation(root=root, prefix=storage_prefix(older.uid), uri=str(ClaimPath(older.claim)))
