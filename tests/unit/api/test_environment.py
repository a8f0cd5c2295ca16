"""Names of variables and paths: each spelled once, and spelled alike where Python cannot import them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finetune_api import environment

REPOSITORY = Path(__file__).resolve().parents[3]
VALUES = {name: value for name, value in vars(environment).items() if name.isupper()}
VARIABLES = [value for value in VALUES.values() if re.fullmatch(r"[A-Z][A-Z0-9_]+", value)]


def test_nothing_is_named_twice() -> None:
    assert len(set(VALUES.values())) == len(VALUES)
    assert len(VARIABLES) >= 10


@pytest.mark.parametrize("variable", [*VARIABLES, "FINETUNE_DATASET_TOKEN"])
def test_a_variable_is_spelled_in_one_file(variable: str) -> None:
    """As code: docstrings may speak of it."""
    code = [file for part in ("operator", "trainer") for file in (REPOSITORY / part).rglob("*.py")]
    quoted = re.compile(rf"""["']{variable}""")
    assert not [str(file) for file in code if quoted.search(file.read_text())]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("images/server/serve.sh", [environment.MODEL_PATH, environment.MODEL_SHA256, environment.TERMINATION_LOG_FILE]),
        ("images/trainer/Dockerfile", [f"{environment.LLAMA_HOME}={environment.LLAMA_HOME_FOLDER}"]),
        ("hack/cluster/go/cmd/gpu-plugin/main.go", [environment.DEVICE, f'"{environment.DEVICE_CPU}"']),
    ],
)
def test_files_that_are_no_python_spell_them_alike(file: str, words: list[str]) -> None:
    text = (REPOSITORY / file).read_text()
    assert [word for word in words if word not in text] == []


def test_data_sets_have_tokens_of_their_own() -> None:
    assert environment.dataset_token("my-faq") == "FINETUNE_DATASET_TOKEN_MY_FAQ"
