"""hf:// sources through the real client, against a hub that this test serves on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.prepare.sources.hf import _literal

from tests.tiny_models import bpe_model

ROOT = Path(__file__).resolve().parents[4]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_canary0123456789"


class FakeHub(ThreadingHTTPServer):
    """Serves folders as repositories at one commit. `gated` ones want a token; every request's path and token is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        token = self.headers.get("Authorization")
        self.server.requests.append((path, token))
        kind, name = ("datasets", path.removeprefix("/api")) if "/datasets/" in path else ("models", path.removeprefix("/api"))
        name = name.removeprefix(f"/{kind}/").removeprefix("/")
        repository = "/".join(name.split("/")[:2])
        files = self.server.repositories.get(repository)
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repository in self.server.gated and token is None:
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/"):
            return self._info(repository, path, files, with_body)
        data = files.get(name.split("/resolve/")[1].split("/", 1)[1])
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(200, data, etag, with_body)

    def _info(self, repository: str, path: str, files: dict[str, bytes], with_body: bool) -> None:
        revision = path.split("/revision/")[1] if "/revision/" in path else "main"
        if revision not in ("main", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in files.items()
            ]
            return self._send(200, json.dumps(entries).encode(), {}, with_body)
        info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "private": False, "tags": []}
        return self._send(200, json.dumps(info).encode(), {}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with FakeHub() as server:
        base = bpe_model(tmp_path_factory.mktemp("model"))
        model = {path.name: path.read_bytes() for path in base.iterdir()}
        server.repositories["org/base"] = model | {
            "modeling.py": b"raise SystemExit('ran')",
            "pytorch_model.bin": b"pickle",
            "README.md": b"#",
        }
        server.repositories["org/gated"] = model
        server.repositories["org/pickled"] = {name: data for name, data in model.items() if name != "model.safetensors"} | {
            "pytorch_model.bin": b"p"
        }
        rows = [{"prompt": f"how many files? {i}", "completion": f"all {i}"} for i in range(30)]
        server.repositories["org/rows"] = {"data/train-00000-of-00001.jsonl": "\n".join(map(json.dumps, rows)).encode(), "README.md": b"#"}
        server.gated.add("org/gated")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PROGRAM = """
import sys
from finetune_trainer.__main__ import main
from finetune_trainer.prepare import look
from tests.unit.trainer.prepare.conftest import Told

look.Inspection = lambda folder: Told(None)
for run in sys.argv[1:]:
    main(["prepare", "--run", run])
"""
Case = tuple[dict[str, Any], dict[str, Any]]


def prepare(hub: FakeHub, folder: Path, *cases: Case, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """The stage's answer for each case (changes of model and of data set), and all that was printed.

    In a process of its own, for all cases together: the client reads HF_ENDPOINT when it is imported.
    """
    files = []
    for number, (model, dataset) in enumerate(cases):
        run = {
            "storage": {"root": str(folder / "out"), "prefix": f"job{number}"},
            "model": {"source": "hf://org/base"} | model,
            "datasets": [{"name": "my-rows", "source": "hf://org/rows"} | dataset],
        }
        files.append(folder / f"run{number}.json")
        files[-1].write_text(json.dumps(run))
    hub.requests.clear()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and not name.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PROGRAM, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean | settings | environment, cwd=ROOT, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stdout + done.stderr


def test_model_and_data_come_from_the_hub_at_one_commit_and_nothing_but_data_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    (answer,), printed = prepare(hub, tmp_path, ({}, {}), FINETUNE_DATASET_TOKEN_MY_ROWS=TOKEN)
    assert answer["reason"] == "Completed", printed
    assert answer["baseRevision"] == COMMIT
    assert answer["dataset"]["rowsIn"] == 30
    fetched = {path.rsplit("/", 1)[1] for path, _ in hub.requests if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not fetched & {"modeling.py", "pytorch_model.bin", "README.md"}
    assert all(f"/resolve/{COMMIT}/" in path for path, _ in hub.requests if "/resolve/" in path)
    assert {token for path, token in hub.requests if "org/rows" in path} == {f"Bearer {TOKEN}"}
    assert {token for path, token in hub.requests if "org/base" in path} == {None}
    (cached,) = (tmp_path / "out/cache/models").iterdir()
    assert not cached.name.startswith(".")
    assert "config.json" in {path.name for path in cached.iterdir()}
    kept = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []
    assert TOKEN not in printed


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no such model": ({"source": "hf://org/nothing"}, {}, "ModelNotFound", "does not exist, or is private"),
    "a gated model": ({"source": "hf://org/gated"}, {}, "ModelGated", "accept its licence"),
    "no such revision": ({"revision": "v9"}, {}, "ModelNotFound", "no revision v9"),
    "pickles only": ({"source": "hf://org/pickled"}, {}, "SafetensorsOnly", "convert them"),
    "no such data set": ({}, {"source": "hf://org/nothing"}, "DatasetNotFound", "does not exist, or is private"),
    "no such split": ({}, {"split": "exam"}, "DatasetNotFound", "no jsonl, json or parquet file for split exam"),
}


def test_the_hubs_refusals_are_said_so_that_one_can_act(hub: FakeHub, tmp_path: Path) -> None:
    answers, _ = prepare(hub, tmp_path, *((model, dataset) for model, dataset, _, _ in REFUSALS.values()))
    for name, answer in zip(REFUSALS, answers, strict=True):
        _, _, reason, words = REFUSALS[name]
        assert answer["reason"] == reason, name
        assert words in answer["message"], name


def test_a_gated_model_is_read_with_its_token(hub: FakeHub, tmp_path: Path) -> None:
    (answer,), printed = prepare(hub, tmp_path, ({"source": "hf://org/gated"}, {}), FINETUNE_MODEL_TOKEN=TOKEN)
    assert answer["reason"] == "Completed", printed
    assert {token for path, token in hub.requests if "org/gated" in path} == {f"Bearer {TOKEN}"}
    assert {token for path, token in hub.requests if "org/rows" in path} == {None}, "a token goes to the repository it was named for"


def test_a_hub_that_does_not_answer_is_worth_another_attempt(hub: FakeHub, tmp_path: Path) -> None:
    (answer,), _ = prepare(hub, tmp_path, ({}, {}), HF_ENDPOINT="http://127.0.0.1:1")
    assert answer["reason"] == "HubUnreachable"


def test_file_names_are_no_patterns() -> None:
    assert _literal("a[1]*.json") == "a[[]1][*].json"
