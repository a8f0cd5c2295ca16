"""The claim that the operator makes for a job's files. Pure."""

from __future__ import annotations

from finetune_api.sections.storage import ClaimTemplate, Retention

from finetune_operator.core import names
from finetune_operator.core.names import Object


def make_claim(template: ClaimTemplate, retention: Retention, job: Object) -> Object:
    metadata = job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.claim_name(metadata["name"], metadata["uid"]),
            "namespace": metadata["namespace"],
            "labels": names.job_labels(job, **{names.ARTIFACTS_LABEL: retention.artifacts}),
            **({"ownerReferences": [names.owner_reference(job)]} if retention.artifacts == "Delete" else {}),
        },
        "spec": {
            "accessModes": list(template.access_modes),
            "resources": {"requests": {"storage": template.size}},
            **({"storageClassName": template.storage_class_name} if template.storage_class_name else {}),
        },
    }
