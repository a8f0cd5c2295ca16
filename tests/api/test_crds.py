"""What the API server makes of the CRDs themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import finetunejob, modelversion

from tests.api.client import CRD_PATH, GROUP_PATH, Api
from tests.api.conftest import CRDS
from tests.api.manifests import JOBS, VERSIONS, job, version

NAMES = {"FineTuneJob": ("finetunejobs", "ftj"), "ModelVersion": ("modelversions", "mver")}


@pytest.mark.parametrize("kind", NAMES)
def test_crd_is_accepted_and_structural(api: Api, crds: dict[str, Any], kind: str) -> None:
    assert crds[kind].ok, crds[kind].message
    crd = api.call("GET", f"{CRD_PATH}/{NAMES[kind][0]}.finetune-operator.io").body
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert conditions["NamesAccepted"] == "True"
    assert not crd["spec"].get("preserveUnknownFields")


def test_applying_the_crds_again_changes_nothing(server: Api, crds: dict[str, Any]) -> None:
    for file in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        path = f"{CRD_PATH}/{crd['metadata']['name']}"
        before = server.call("GET", path).body["metadata"]["resourceVersion"]
        assert server.apply(path, crd, force="true").body["metadata"]["resourceVersion"] == before


@pytest.mark.parametrize("kind", NAMES)
def test_names_by_which_people_call_it(api: Api, kind: str) -> None:
    plural, short = NAMES[kind]
    resources = {resource["name"]: resource for resource in api.call("GET", GROUP_PATH).body["resources"]}
    assert resources[plural]["shortNames"] == [short]
    assert resources[plural]["categories"] == ["finetune"]
    assert resources[plural]["namespaced"]
    assert f"{plural}/status" in resources


@pytest.mark.parametrize(
    ("path", "make", "columns", "shown"),
    [
        (JOBS, job, finetunejob.COLUMNS, ["Name", "Phase", "Progress", "ETA", "Loss", "Method", "Model", "Age"]),
        (VERSIONS, version, modelversion.COLUMNS, ["Name", "Model", "Version", "Stage", "Weight", "Ready", "Score", "Job", "Age"]),
    ],
)
def test_columns(api: Api, path: str, make: Any, columns: list[Any], shown: list[str]) -> None:
    body = make()
    assert api.create(path, body).ok
    table = api.table(path).body
    assert [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0] == shown
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", *(name for name, *_ in columns)]


def test_columns_show_what_status_says(api: Api) -> None:
    body = version(lineage={"baseModel": "hf://org/base", "runDigest": "ab" * 32, "jobRef": "faq"})
    live = api.create(VERSIONS, body).body
    live["status"] = {
        "stage": "Canary",
        "weight": 5,
        "display": {"score": "0.93", "weight": "5%"},
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
    }
    assert api.call("PUT", f"{VERSIONS}/{body['metadata']['name']}/status", live).ok
    table = api.table(VERSIONS).body
    titles = [column["name"] for column in table["columnDefinitions"]]
    cells = next(row["cells"] for row in table["rows"] if row["cells"][0] == body["metadata"]["name"])
    row = dict(zip(titles, cells, strict=True))
    assert (row["Model"], row["Stage"], row["Weight"], row["Ready"], row["Score"], row["Job"]) == (
        "bot",
        "Canary",
        "5%",
        "True",
        "0.93",
        "faq",
    )


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("finetunejob.spec.training.globalBatchSize", "Samples per optimizer step"),
        ("ftj.spec.datasets.source", "pvc://claim/path"),
        ("ftj.spec.quantization.nf4.computeDtype", "Default: BFloat16"),
        ("ftj.spec.publish.serving.resources.memory", "in bytes. Default: 1Gi for LlamaCpp"),
        ("mver.spec.serving.llamaCpp.contextLength", "Context of a request in tokens"),
        ("mver.spec.rollout.steps.weight", "Share of traffic in percent"),
        ("modelversion.status.replacedBy", "took production over"),
    ],
)
def test_kubectl_explains_members(api: Api, kubeconfig: Path, kubectl: Path, member: str, words: str) -> None:
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", "explain", member]
    explained = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert words in " ".join(explained.split())  # kubectl breaks lines


def test_kubectl_refuses_an_unknown_member(api: Api, kubeconfig: Path, kubectl: Path) -> None:
    body = job()
    body["spec"]["trainning"] = {"epochs": 1}
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", "apply", "-f", "-"]
    said = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=60)
    assert said.returncode != 0
    assert 'unknown field "spec.trainning"' in said.stderr
