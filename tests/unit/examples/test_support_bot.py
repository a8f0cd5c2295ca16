"""examples/support-bot: what it writes, what it asks for, and how it counts. No torch."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import LocalRunSpec
from finetune_operator.core.names import API_VERSION
from finetune_trainer.prepare.splitting import draw

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "support-bot"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"support_bot_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


manual = load("manual")
check = load("check")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def job_spec(name: str) -> dict[str, Any]:
    (manifest,) = manifests(name)
    assert (manifest["apiVersion"], manifest["kind"]) == (API_VERSION, "FineTuneJob")
    return dict(manifest["spec"])


# ---------------------------------------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    manual.write_data(folder)
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[tuple[str, str]]:
    return list(check.read_facts(path.read_text().splitlines()))


def test_facts_and_tickets_share_no_document(data: Path) -> None:
    facts, tickets = ({row["document"] for row in read(data / name / "train.jsonl")} for name in ("facts", "questions"))
    assert (len(facts), len(tickets)) == (len(manual.FACTS), sum(map(len, manual.TICKETS.values())))
    assert not facts & tickets


def test_no_ticket_is_written_twice_or_names_a_desk() -> None:
    written = [ticket for tickets in manual.TICKETS.values() for ticket in tickets]
    assert len(set(written)) == len(written)
    assert not [ticket for ticket in written if any(desk in ticket for desk in manual.TICKETS)]


def test_data_is_the_same_every_time(data: Path, tmp_path: Path) -> None:
    manual.write_data(tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert written == {path.relative_to(data): path.read_bytes() for path in data.rglob("*.jsonl")}
    assert len(written) == 6


def test_facts_are_tested_in_phrasings_that_are_never_trained(data: Path) -> None:
    trained, tested = rows(data / "facts/train.jsonl"), rows(data / "facts/test.jsonl")
    assert not set(manual.HELD_OUT_PHRASINGS) & set(manual.FACT_PHRASINGS)
    assert not {question for question, _ in tested} & {question for question, _ in trained}
    assert {answer for _, answer in tested} == {answer for _, answer in trained}
    assert len(tested) >= 32


@pytest.mark.parametrize(("name", "kept"), [("facts", 0.0), ("questions", 1 / 5)])
def test_the_control_deals_the_answers_anew(data: Path, name: str, kept: float) -> None:
    """A desk answers one ticket of ten: about as many keep it by chance."""
    true, shuffled = (dict(rows(folder / name / "train.jsonl")) for folder in (data, data / "shuffled"))
    assert list(true) == list(shuffled)
    assert sorted(true.values()) == sorted(shuffled.values())
    assert sum(true[question] == shuffled[question] for question in true) <= kept * len(true)


def test_the_control_is_tested_on_true_facts(data: Path) -> None:
    assert rows(data / "facts/test.jsonl") == rows(data / "shuffled/facts/test.jsonl")


def test_the_split_trains_every_desk_and_holds_enough_out_to_judge() -> None:
    spec = FineTuneJobSpec.model_validate(job_spec("finetunejob.yaml"))
    drawn: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter(), "test": Counter()}
    for ticket in manual.tickets():
        drawn[draw(f"group:{ticket.name}", spec.preparation.split)][ticket.answer] += 1
    assert min(drawn["train"].values()) >= 3
    assert len(drawn["train"]) == len(manual.TICKETS)
    assert drawn["test"].total() >= 30
    assert drawn["test"].total() * len(manual.TICKET_PHRASINGS) >= spec.evaluation.min_samples >= 64


# ---------------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("name", ["finetunejob.yaml", "shuffled.yaml"])
def test_jobs_are_valid(name: str) -> None:
    spec = FineTuneJobSpec.model_validate(job_spec(name))
    assert [(gate.metric, gate.against, gate.min_improvement) for gate in spec.evaluation.gates] == [("AnswerChoice", "Base", 0)]
    assert spec.publish is not None


def test_the_control_differs_by_its_data_alone() -> None:
    true, control = job_spec("finetunejob.yaml"), job_spec("shuffled.yaml")
    for dataset in control["datasets"]:
        assert "/shuffled/" in dataset["source"]
        dataset["source"] = dataset["source"].replace("/shuffled/", "/")
    assert control == true


def test_the_run_file_asks_for_what_the_job_asks_for() -> None:
    run = LocalRunSpec.model_validate_json((EXAMPLE / "run.json").read_text())
    job = job_spec("finetunejob.yaml")
    told = json.loads(json.dumps(job).replace("pvc://support-bot/", "support-bot/"))
    expected = {key: told[key] for key in ("model", "datasets", "preparation", "adapter", "training", "evaluation", "export")}
    assert run == LocalRunSpec.model_validate(
        {"storage": run.storage, "servedArtifact": told["publish"]["serving"]["artifact"], **expected}
    )


def test_numbers_in_manifests_are_numbers() -> None:
    """`2e-3` is a string in YAML 1.1, which some tools still read."""
    assert isinstance(job_spec("finetunejob.yaml")["training"]["learningRate"], float)


def test_the_base_job_satisfies_restricted_pod_security() -> None:
    (namespace,) = manifests("namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    claim, job = manifests("base-job.yaml")
    assert f"pvc://{claim['metadata']['name']}/base" == job_spec("finetunejob.yaml")["model"]["source"]
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"persistentVolumeClaim"}


# --------------------------------------------------------------------------------------------------------- how it is counted


def test_exact_match_forgives_space_and_unicode_form_only() -> None:
    answers = {"a": " Café.\n", "b": "yes.", "c": "No"}
    assert check.count_exact([("a", "Café."), ("b", "Yes."), ("c", "No.")], answers.__getitem__) == 1
