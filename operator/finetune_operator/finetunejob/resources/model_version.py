"""The ModelVersion that a proven run becomes. Pure."""

from __future__ import annotations

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.section import digest_of

from finetune_operator.core import names
from finetune_operator.core.names import Object


def make_model_version(spec: FineTuneJobSpec, job: Object) -> Object:
    """Owned by nobody: the job's deletion never takes production down. `job` has the evidence in its status."""
    assert spec.publish is not None
    status, metadata = job["status"], job["metadata"]
    reference = status["modelVersionRef"]
    serving = spec.publish.serving.model_copy(
        update={
            "artifact": spec.publish.serving.artifact or spec.export.gguf[0],
            "image": spec.publish.serving.image or status["images"]["server"],
        }
    )
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.MODELVERSION,
        "metadata": {
            "name": reference["name"],
            "namespace": metadata["namespace"],
            "labels": names.labels(**{names.MODEL_LABEL: spec.publish.model, names.JOB_LABEL: metadata["name"]}),
        },
        "spec": {
            "model": spec.publish.model,
            "version": reference["version"],
            "artifacts": status["artifacts"],
            "lineage": {
                "baseModel": status.get("baseModel", spec.model.source),
                "baseRevision": status.get("baseRevision", ""),
                "datasetDigest": status.get("dataset", {}).get("digest", ""),
                "runDigest": status["runDigest"],
                "configDigest": digest_of(spec.training.wire()),
                "image": status["images"]["trainer"],
                "jobRef": metadata["name"],
                "jobUid": metadata["uid"],
                **({"scoreMetric": spec.evaluation.gates[0].metric} if spec.evaluation.gates else {}),
                "metrics": _metrics(status),
            },
            "serving": serving.wire(),
            "rollout": spec.publish.rollout.wire(),
        },
    }


def _metrics(status: Object) -> dict[str, float]:
    """Values of the tuned model by name; one that is no number has none."""
    metrics = status.get("evaluation", {}).get("metrics", [])
    return {metric["name"]: metric["tuned"]["value"] for metric in metrics if metric["tuned"].get("value") is not None}
