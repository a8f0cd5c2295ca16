"""The ModelVersion that a proven run becomes. Pure."""

from __future__ import annotations

from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.section import digest_of

from finetune_operator.core import names
from finetune_operator.core.names import Object


def make_model_version(spec: FineTuneJobSpec, job: Object, status: FineTuneJobStatus) -> Object:
    """Owned by nobody: the job's deletion never takes production down. `status` has the evidence, and the number that was reserved."""
    publish, reference, images, metadata = spec.publish, status.model_version_ref, status.images, job["metadata"]
    assert publish is not None
    assert reference is not None
    serving = publish.serving.model_copy(
        update={
            "artifact": publish.serving.artifact or spec.export.gguf[0],
            "image": publish.serving.image or (images.server if images else None),
        }
    )
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.MODELVERSION,
        "metadata": {
            "name": reference.name,
            "namespace": metadata["namespace"],
            "labels": names.labels(**{names.MODEL_LABEL: publish.model, names.JOB_LABEL: metadata["name"]}),
        },
        "spec": {
            "model": publish.model,
            "version": reference.version,
            "artifacts": [artifact.wire() for artifact in status.artifacts],
            "lineage": {
                "baseModel": status.base_model or spec.model.source,
                "baseRevision": status.base_revision or "",
                "datasetDigest": status.dataset.digest if status.dataset else "",
                "runDigest": status.run_digest,
                "configDigest": digest_of(spec.training.wire()),
                "image": images.trainer if images else "",
                "jobRef": metadata["name"],
                "jobUid": metadata["uid"],
                **({"scoreMetric": spec.evaluation.gates[0].metric} if spec.evaluation.gates else {}),
                "metrics": {metric.name: metric.tuned.value for metric in status.evaluation.metrics} if status.evaluation else {},
            },
            "serving": serving.wire(),
            "rollout": publish.rollout.wire(),
        },
    }
