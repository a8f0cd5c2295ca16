"""examples/support-bot: what it draws, what it asks for, and how it counts. No torch."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import LocalRunSpec
from finetune_operator.core.names import API_VERSION

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "support-bot"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"support_bot_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


documents = load("documents")
check = load("check")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def job_spec(name: str) -> dict[str, Any]:
    (manifest,) = manifests(name)
    assert (manifest["apiVersion"], manifest["kind"]) == (API_VERSION, "FineTuneJob")
    return dict(manifest["spec"])


# ------------------------------------------------------------------------------------------------------------ what is drawn


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A documented package of 500 modules: enough for facts, questions and text."""
    root = tmp_path_factory.mktemp("packages") / "parts"
    for number in range(500):
        path = root / f"group{number % 7}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(function(number, k) for k in range(6)))
    return root


def function(number: int, k: int) -> str:
    word = "".join(chr(97 + int(digit)) for digit in f"{number:04}") + "xyzuvw"[k]
    return f'def use_{word}():\n    """Return the {word} of a thing.\n\n    It takes no time.\n    """\n'


@pytest.fixture(scope="module")
def corpus(package: Path) -> Any:
    return documents.draw(documents.read_package(package))


def test_text_questions_and_facts_share_no_document(corpus: Any) -> None:
    drawn = [{entry.document for entry in part} for part in (corpus.text, corpus.questions, corpus.facts)]
    assert all(drawn)
    assert sum(map(len, drawn)) == len(set().union(*drawn))


def test_each_fact_is_of_a_document_of_its_own(corpus: Any) -> None:
    assert len({entry.document for entry in corpus.facts}) == len(corpus.facts) == documents.FACTS


def test_no_answer_is_read_elsewhere(corpus: Any) -> None:
    asked = [entry.summary for entry in chain(corpus.questions, corpus.facts)]
    assert len(set(asked)) == len(asked)
    assert not {entry.summary for entry in corpus.text} & set(asked)


def test_a_summary_that_stands_twice_is_not_asked_for(package: Path) -> None:
    entries = list(documents.read_package(package))
    twins = [documents.Entry("other.py", f"other.{entry.name}", entry.summary.upper().capitalize(), "") for entry in entries]
    drawn = documents.draw(entries + twins)
    assert not drawn.questions
    assert not drawn.facts


def test_the_draw_does_not_depend_on_order(package: Path, corpus: Any) -> None:
    entries = list(documents.read_package(package))
    assert documents.draw(reversed(entries)).questions == corpus.questions


def test_data_is_the_same_every_time(corpus: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        documents.write_data(corpus, tmp_path / name)
    written = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.jsonl")}
    assert written == {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.jsonl")}
    assert len(written) == 6


def rows(path: Path) -> list[tuple[str, str]]:
    return list(check.read_facts(path.read_text().splitlines()))


def test_facts_are_tested_in_a_phrasing_that_is_never_trained(corpus: Any, tmp_path: Path) -> None:
    documents.write_data(corpus, tmp_path)
    held_out = documents.PHRASINGS[-1].partition("`")[0]
    trained = rows(tmp_path / "facts/train.jsonl") + rows(tmp_path / "questions/train.jsonl")
    tested = rows(tmp_path / "facts/test.jsonl")
    assert not any(question.startswith(held_out) for question, _ in trained)
    assert all(question.startswith(held_out) for question, _ in tested)
    assert {answer for _, answer in tested} <= {answer for _, answer in trained}


def test_the_control_deals_every_answer_to_another_question(corpus: Any, tmp_path: Path) -> None:
    documents.write_data(corpus, tmp_path)
    for name in ("facts", "questions"):
        true, shuffled = (dict(rows(folder / name / "train.jsonl")) for folder in (tmp_path, tmp_path / "shuffled"))
        assert list(true) == list(shuffled)
        assert sorted(true.values()) == sorted(shuffled.values())
        assert not [question for question in true if true[question] == shuffled[question]]
    assert rows(tmp_path / "facts/test.jsonl") == rows(tmp_path / "shuffled/facts/test.jsonl")


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ('def a():\n    """Does it."""\n', [("parts.m.a", "Does it.")]),
        ('class A:\n    """Holds it."""\n    def b(self):\n        """Does `it`\n        well."""\n', [("parts.m.A", "Holds it."), ("parts.m.A.b", "Does it well.")]),
        ('def _a():\n    """Hidden."""\ndef b(): pass\n', []),
        ('async def a():\n    """Does it.\n\n    In time."""\n', [("parts.m.a", "Does it.")]),
    ],
)  # fmt: skip
def test_reading_a_module(source: str, read: list[tuple[str, str]], tmp_path: Path) -> None:
    module = tmp_path / "parts" / "m.py"
    module.parent.mkdir()
    module.write_text(source)
    assert [(entry.name, entry.summary) for entry in documents.read_package(module.parent)] == read


def test_tests_of_a_package_are_no_documentation(tmp_path: Path) -> None:
    hidden = tmp_path / "parts" / "tests" / "m.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text('def a():\n    """Does it."""\n')
    assert not list(documents.read_package(tmp_path / "parts"))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_here is not installed"):
        documents.installed_package("no_such_package_here")


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
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"persistentVolumeClaim", "configMap", "emptyDir"}


# --------------------------------------------------------------------------------------------------------- how it is counted


def test_exact_match_forgives_space_and_unicode_form_only() -> None:
    answers = {"a": " Café.\n", "b": "yes.", "c": "No"}
    assert check.count_exact([("a", "Café."), ("b", "Yes."), ("c", "No.")], answers.__getitem__) == 1
