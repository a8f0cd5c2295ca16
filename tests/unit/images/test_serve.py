"""images/server/serve.sh with a stand-in for llama-server: what it refuses, and what it hands on."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVE = Path(__file__).resolve().parents[3] / "images/server/serve.sh"
MODEL = b"GGUF, as far as this test is concerned"
DIGEST = hashlib.sha256(MODEL).hexdigest()


@dataclass
class Served:
    code: int
    arguments: list[str]
    message: str
    error: str


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model.gguf"
        self.model.write_bytes(MODEL)
        self.llama = folder / "llama-server"
        self.llama.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        self.llama.chmod(0o755)

    def start(self, *arguments: str, **environment: str | Path) -> Served:
        """Runs serve.sh with a good model and digest unless the environment says otherwise."""
        message = self.folder / "termination-log"
        message.touch()
        variables = {
            "PATH": "/usr/bin:/bin",
            "LLAMA_SERVER": self.llama,
            "TERMINATION_LOG": message,
            "MODEL_PATH": self.model,
            "MODEL_SHA256": DIGEST,
            **environment,
        }
        done = subprocess.run(
            ["sh", SERVE, *arguments],
            env={name: str(value) for name, value in variables.items()},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return Served(done.returncode, done.stdout.split("\0")[:-1], message.read_text(), done.stderr)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_the_expected_model_is_served_on_8080_with_metrics(server: Server) -> None:
    served = server.start()
    assert served.code == 0
    assert served.arguments == ["--model", str(server.model), "--host", "0.0.0.0", "--port", "8080", "--metrics"]
    assert served.message == ""


def test_a_changed_model_is_refused_with_both_digests(server: Server) -> None:
    server.model.write_bytes(MODEL + b"!")
    served = server.start()
    found = hashlib.sha256(MODEL + b"!").hexdigest()
    assert served.code == 78
    assert served.arguments == []
    assert served.message == f"{server.model} has SHA-256 {found}, expected {DIGEST}: not served\n"
    assert served.error == f"serve: {served.message}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MODEL_PATH": ""}, "MODEL_PATH is not set"),
        ({"MODEL_SHA256": ""}, "MODEL_SHA256 is not a SHA-256"),
        ({"MODEL_SHA256": DIGEST.upper()}, "MODEL_SHA256 is not a SHA-256"),
        ({"MODEL_SHA256": DIGEST[:-1]}, "has 63 digits instead of 64"),
        ({"MODEL_SHA256": f"{DIGEST}\n"}, "MODEL_SHA256 is not a SHA-256"),
        ({"MODEL_SHA256": "*"}, "MODEL_SHA256 is not a SHA-256"),
        ({"MODEL_PATH": "missing.gguf"}, "missing.gguf is not a readable file"),
        ({"MODEL_PATH": "/"}, "/ is not a readable file"),
    ],
)
def test_what_cannot_be_checked_is_refused(server: Server, environment: dict[str, str], message: str) -> None:
    served = server.start(**environment)
    assert served.code == 78
    assert message in served.message
    assert served.arguments == []


def test_extra_arguments_are_handed_on_as_they_are(server: Server) -> None:
    hostile = ["--ctx-size", "2048", "--alias", "a b", "$(touch pwned)", "`touch pwned`", "; touch pwned", "*", ""]
    served = server.start(*hostile)
    assert served.arguments[7:] == hostile
    assert not (server.folder / "pwned").exists()


@pytest.mark.parametrize("name", ["-model.gguf", "a b.gguf", "$(touch pwned).gguf", "back\\nslash.gguf", "new\nline.gguf"])
def test_a_model_s_name_is_data(server: Server, name: str) -> None:
    server.model.rename(server.folder / name)
    served = server.start(MODEL_PATH=name)
    assert served.code == 0
    assert served.arguments[:2] == ["--model", name]
    assert not (server.folder / "pwned").exists()


def test_without_a_termination_log_the_refusal_is_still_printed(server: Server) -> None:
    served = server.start(MODEL_PATH="", TERMINATION_LOG=server.folder / "no" / "log")
    assert served.code == 78
    assert "MODEL_PATH is not set" in served.error


def test_where_there_is_no_openssl_the_digest_is_checked_all_the_same(server: Server) -> None:
    programs = server.folder / "programs"
    programs.mkdir()
    for name in ("sh", "sha256sum"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    assert server.start(PATH=programs).code == 0
    assert server.start(PATH=programs, MODEL_SHA256="0" * 64).code == 78
