"""What a job's children look like: the golden manifests, and what must hold of them whatever the spec says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.answer import METRICS_KEPT
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.modelversion import ModelVersionSpec
from finetune_api.run import LocalRunSpec, Stage
from finetune_operator import crdgen
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed, VersionFact
from finetune_operator.finetunejob.resources.claim import make_claim
from finetune_operator.finetunejob.resources.model_version import make_model_version
from finetune_operator.finetunejob.resources.run_spec import StageRequest
from finetune_operator.finetunejob.resources.stage_job import make_dry_run_pod, make_stage_job

from tests.schema import violations

GOLDEN = Path(__file__).resolve().parents[3] / "golden"
SETTINGS = Settings(status_url="https://finetune-status.finetune-system.svc:8443")
SPEC: dict[str, Any] = {
    "model": {"source": "hf://org/base", "tokenSecretRef": {"name": "hub", "key": "token"}},
    "datasets": [{"name": "my-faq", "source": "pvc://data/faq", "tokenSecretRef": {"name": "hub", "key": "faq"}}],
    "evaluation": {"gates": [{"name": "no-worse", "metric": "ExactMatch", "against": "Production", "maxRegression": 0.02}]},
    "export": {"gguf": ["Q8_0"]},
    "resources": {"gpusPerNode": 1, "cpu": "2", "memory": "16Gi"},
    "stages": {"package": {"memory": "6Gi"}},
    "scheduling": {"nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "priorityClassName": "batch"},
    "podMetadata": {"labels": {"team": "a", "app.kubernetes.io/managed-by": "stolen"}, "annotations": {"note": "n"}},
    "storage": {"persistentVolumeClaim": {"size": "10Gi"}},
    "publish": {"model": "bot"},
}
JOB: dict[str, Any] = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {
        "name": "faq",
        "namespace": "demo",
        "uid": "11111111-2222-3333-4444-555555555555",
        "labels": {"app.kubernetes.io/instance": "argo-app", "argocd.argoproj.io/instance": "argo-app"},
    },
    "status": {
        "images": {"trainer": "trainer:1", "server": "server:1"},
        "runDigest": "d" * 64,
        "baseModel": "hf://org/base",
        "baseRevision": "c0ffee",
        "dataset": {"digest": "abc", "rowsIn": 10},
        "artifacts": [{"name": "q8_0", "format": "GGUF", "uri": "pvc://faq-x/jobs/u/q8.gguf", "sha256": "a" * 64, "bytes": 9}],
        "evaluation": {"metrics": [{"name": "ExactMatch", "tuned": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 100}}]},
        "modelVersionRef": {"name": "bot-v1", "version": 1},
    },
}
STATUS = FineTuneJobStatus.model_validate(JOB["status"])
IMAGE = JOB["status"]["images"]["trainer"]
OBSERVED = Observed(status_ca="PEM", versions=(VersionFact("bot-v0", "u", 0, "r", "j", "Production", "pvc://old/q8.gguf", "b" * 64),))


def make(stage: Stage, **request: Any) -> dict[str, Any]:
    spec = FineTuneJobSpec.model_validate(SPEC)
    return make_stage_job(spec, JOB, StageRequest(stage, 1, IMAGE, **request), OBSERVED, SETTINGS)


def assert_golden(name: str, body: dict[str, Any]) -> None:
    text = yaml.safe_dump(body, sort_keys=True, width=140)
    path = GOLDEN / name
    if os.environ.get("FINETUNE_WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("stage", list(Stage))
def test_stage_jobs_are_as_reviewed(stage: Stage) -> None:
    assert_golden(f"job-{stage}.yaml", make(stage))


def test_claim_and_version_are_as_reviewed() -> None:
    spec = FineTuneJobSpec.model_validate(SPEC)
    template = spec.storage.persistent_volume_claim
    assert template is not None
    assert_golden("claim.yaml", make_claim(template, spec.retention, JOB))
    assert_golden("model-version.yaml", make_model_version(spec, JOB, STATUS))


def test_the_version_we_make_is_one_we_can_read() -> None:
    ModelVersionSpec.model_validate(make_model_version(FineTuneJobSpec.model_validate(SPEC), JOB, STATUS)["spec"])


def test_all_the_evidence_that_a_status_holds_fits_into_a_version() -> None:
    """Else a run that passed its gates is refused when it is registered, for ever."""
    estimate = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 100}
    metrics = [{"name": f"{number:03}{'x' * 300}", "tuned": estimate} for number in range(200)]
    artifacts = [JOB["status"]["artifacts"][0] | {"name": f"{number:02}" + "x" * 62} for number in range(20)]
    texts = {"baseModel": "b" * 2000, "baseRevision": "r" * 2000, "dataset": {"digest": "d" * 256, "rowsIn": 10}}
    status = FineTuneJobStatus.model_validate(JOB["status"] | texts | {"evaluation": {"metrics": metrics}, "artifacts": artifacts})
    made = make_model_version(FineTuneJobSpec.model_validate(SPEC), JOB, status)
    assert len(made["spec"]["lineage"]["metrics"]) == METRICS_KEPT
    schema = crdgen.make_crd(crdgen.kinds()[1])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert list(violations(schema["properties"]["spec"], made["spec"])) == []
    ModelVersionSpec.model_validate(made["spec"])


@pytest.mark.parametrize("stage", list(Stage))
def test_pods_hold_to_pod_security_restricted(stage: Stage) -> None:
    pod = make(stage)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(pod)
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
        "persistentVolumeClaim", "downwardAPI", "emptyDir", "projected",
    }  # fmt: skip


@pytest.mark.parametrize(("stage", "gpus"), [(Stage.PREPARE, None), (Stage.TRAIN, "1"), (Stage.PACKAGE, None), (Stage.EVALUATE, None)])
def test_only_training_takes_a_gpu(stage: Stage, gpus: str | None) -> None:
    container = make(stage)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus


def test_a_report_takes_no_gpu_and_goes_where_the_volume_is() -> None:
    pod = make(Stage.TRAIN, report=True)["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]


def test_productions_claim_is_mounted_only_where_a_gate_asks_for_it() -> None:
    spec = FineTuneJobSpec.model_validate(SPEC | {"evaluation": {}})
    assert "claimName: old" in yaml.safe_dump(make(Stage.EVALUATE))
    assert "claimName: old" not in yaml.safe_dump(make_stage_job(spec, JOB, StageRequest(Stage.EVALUATE, 1, IMAGE), OBSERVED, SETTINGS))


def test_only_prepare_holds_tokens_and_only_by_reference() -> None:
    for stage in Stage:
        body = make(stage)
        secrets = [
            entry for entry in body["spec"]["template"]["spec"]["containers"][0]["env"] if "secretKeyRef" in entry.get("valueFrom", {})
        ]
        wanted = ["FINETUNE_MODEL_TOKEN", "FINETUNE_DATASET_TOKEN_MY_FAQ"] if stage is Stage.PREPARE else []
        assert [entry["name"] for entry in secrets] == wanted


def test_the_run_in_the_annotation_is_one_the_trainer_reads() -> None:
    for stage in Stage:
        run = LocalRunSpec.model_validate_json(make(stage)["spec"]["template"]["metadata"]["annotations"]["finetune-operator.io/run"])
        assert run.storage.prefix == f"jobs/{JOB['metadata']['uid']}"
        assert (run.production is not None) is (stage is Stage.EVALUATE)


def test_the_users_labels_do_not_replace_ours_and_argo_cds_are_not_copied() -> None:
    body = make(Stage.TRAIN)
    labels = body["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "finetune-operator"
    assert labels["team"] == "a"
    assert "argo" not in json.dumps(body)


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_the_trainer_itself_starts_a_process_for_each_gpu(gpus: int) -> None:
    """torchrun as the pod's own command would end with 1 whatever its processes ended with, and a final error be tried again."""
    spec = FineTuneJobSpec.model_validate(SPEC | {"resources": {"gpusPerNode": gpus}})
    body = make_stage_job(spec, JOB, StageRequest(Stage.TRAIN, 1, IMAGE), OBSERVED, SETTINGS)
    template = body["spec"]["template"]
    assert template["spec"]["containers"][0]["command"] == ["python", "-m", "finetune_trainer", "train"]
    assert json.loads(template["metadata"]["annotations"]["finetune-operator.io/run"]).get("gpusPerNode", 0) == gpus


def test_prepare_is_told_of_the_gpus_that_it_plans_for_and_gets_none() -> None:
    pod = make(Stage.PREPARE)["spec"]["template"]
    assert json.loads(pod["metadata"]["annotations"]["finetune-operator.io/run"])["gpusPerNode"] == 1
    assert "nvidia.com/gpu" not in pod["spec"]["containers"][0]["resources"]["limits"]


def test_a_storage_claim_that_is_a_source_as_well_is_mounted_once() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "data"}}
    spec = FineTuneJobSpec.model_validate(SPEC | {"storage": claim})
    pod = make_stage_job(spec, JOB, StageRequest(Stage.PREPARE, 1, IMAGE), OBSERVED, SETTINGS)["spec"]["template"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == ["data"]
    assert json.loads(pod["metadata"]["annotations"]["finetune-operator.io/run"])["claims"] == {"data": "/storage"}


def test_the_dry_run_pod_is_the_pod() -> None:
    body = make(Stage.TRAIN)
    pod = make_dry_run_pod(body)
    assert pod["spec"] == body["spec"]["template"]["spec"]
    assert pod["metadata"]["namespace"] == "demo"


def test_kept_artifacts_have_no_owner() -> None:
    spec = FineTuneJobSpec.model_validate(SPEC | {"retention": {"artifacts": "Keep"}})
    template = spec.storage.persistent_volume_claim
    assert template is not None
    assert "ownerReferences" not in make_claim(template, spec.retention, JOB)["metadata"]
