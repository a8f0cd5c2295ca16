"""From a proven run to a registered ModelVersion: the number is reserved, the claim handed over, the version created. Pure.

Order (nothing is lost wherever it is interrupted): the claim loses its job owner → the ModelVersion is POSTed → the claim gets it
as owner → Published=True. A claim left without an owner in between is finished by the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec, VersionRef
from finetune_api.outcome import Reason
from finetune_api.sections.publish import Publish
from finetune_api.uri import ClaimPath

from finetune_operator.core import names
from finetune_operator.core.facts import ClaimFact
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Create, SetOwners
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.observed import VersionFact
from finetune_operator.finetunejob.resources.model_version import make_model_version
from finetune_operator.finetunejob.resources.run_spec import storage_claim


@dataclass(frozen=True)
class Refused:
    """The run cannot be registered as asked."""

    reason: Reason
    message: str


def run(draft: Draft, spec: FineTuneJobSpec) -> bool | Refused:
    """True: the pass ends here; False: registered; Refused: nothing is known to register, or the wanted number is another run's."""
    assert spec.publish is not None
    draft.reconciling = Reason.PUBLISHED_PENDING
    if not draft.status.artifacts:
        where = ClaimPath(storage_claim(spec, draft.job), names.storage_prefix(_uid(draft)))
        return Refused(
            Reason.ARTIFACTS_UNKNOWN, f"stage package told of no artifacts, so there is nothing to register; its files are under {where}"
        )
    reference = draft.status.model_version_ref
    holder = _holder(draft, reference)
    if reference is None or (holder and holder.job_uid != draft.job["metadata"]["uid"]):
        return _reserve(draft, spec.publish)
    claim = _own_claim(draft, spec)
    if holder is None:
        if claim and _owned_by_job(draft, claim):
            draft.actions.append(_set_owners(draft, claim, [owner for owner in claim.owners if owner.get("uid") != _uid(draft)]))
            return True
        draft.actions.append(Create(make_model_version(spec, draft.job, draft.before)))
        return True
    if claim and spec.retention.artifacts == "Delete" and holder.uid not in {owner.get("uid") for owner in claim.owners}:
        owner = {"apiVersion": names.API_VERSION, "kind": names.MODELVERSION, "name": holder.name, "uid": holder.uid}
        draft.actions.append(_set_owners(draft, claim, [*claim.owners, owner]))
        return True
    draft.set(ConditionType.PUBLISHED, "True", Reason.REGISTERED, f"registered as {holder.name}")
    draft.event(Reason.PUBLISHED, f"registered as {holder.name}")
    return False


def _reserve(draft: Draft, publish: Publish) -> bool | Refused:
    taken = {version.version for version in draft.observed.versions}
    if publish.version is not None and publish.version in taken:
        message = f"spec.publish.version: {names.version_name(publish.model, publish.version)} was made by another run meanwhile"
        return Refused(Reason.VERSION_TAKEN, message)
    version = publish.version or max(taken, default=0) + 1
    draft.status.model_version_ref = VersionRef(name=names.version_name(publish.model, version), version=version)
    draft.set(ConditionType.PUBLISHED, "False", Reason.REGISTERING, f"number {version} is reserved")
    draft.status_first = True
    draft.recheck(draft.now)
    return True


def _holder(draft: Draft, reference: VersionRef | None) -> VersionFact | None:
    return next((version for version in draft.observed.versions if reference and version.name == reference.name), None)


def _uid(draft: Draft) -> str:
    return str(draft.job["metadata"]["uid"])


def _own_claim(draft: Draft, spec: FineTuneJobSpec) -> ClaimFact | None:
    """The claim that was made for this job; None for one that a user brought."""
    template = spec.storage.persistent_volume_claim
    if template is None or template.claim_name:
        return None
    return draft.observed.claims.get(names.claim_name(draft.job["metadata"]["name"], _uid(draft)))


def _owned_by_job(draft: Draft, claim: ClaimFact) -> bool:
    return _uid(draft) in {owner.get("uid") for owner in claim.owners}


def _set_owners(draft: Draft, claim: ClaimFact, owners: list[Object]) -> SetOwners:
    namespace = draft.job["metadata"]["namespace"]
    return SetOwners("v1", "PersistentVolumeClaim", namespace, claim.name, claim.uid, claim.resource_version, tuple(owners))
