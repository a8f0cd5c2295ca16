"""llama-server as it will serve, on loopback, for as long as a `with` block lasts."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError, refuse_killed
from finetune_trainer.llama.home import LlamaHome, threads_for

_START_TIMEOUT_S = 300.0
_REQUEST_TIMEOUT_S = 120.0
_LOG_TAIL_BYTES = 1500


class LlamaServer:
    """A llama-server process of our own. Errors: StageError(ServerFailed) with the end of its log, which never holds data."""

    def __init__(self, home: LlamaHome, model: Path, log: Path, context_tokens: int = 4096) -> None:
        self._command = [
            str(home.server), "--model", str(model), "--host", "127.0.0.1", "--ctx-size", str(context_tokens),
            "--parallel", "1", "--threads", str(threads_for(model)), "--jinja", "--no-webui", "--offline",
        ]  # fmt: skip
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def __enter__(self) -> LlamaServer:
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*self._command, "--port", str(port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a JSON request. Errors: StageError(ServerFailed)."""
        headers = {"Content-Type": "application/json"}
        return self._asked(path, urllib.request.Request(self._url + path, json.dumps(body).encode(), headers, method="POST"))

    def get(self, path: str) -> Any:
        """The JSON answer to a plain request. Errors: StageError(ServerFailed)."""
        return self._asked(path, urllib.request.Request(self._url + path))

    def _asked(self, path: str, request: urllib.request.Request) -> Any:
        try:
            with _open(request, _REQUEST_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise self._failed(f"it refused {path} with status {error.code}") from error
        except OSError as error:
            raise self._failed(f"it did not answer {path}") from error

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                refuse_killed("llama-server", self._process.returncode)
                raise self._failed(f"it ended with status {self._process.returncode}")
            try:
                with _open(urllib.request.Request(self._url + "/health"), 2.0):
                    return
            except OSError:
                time.sleep(0.05)
        raise self._failed(f"it was not ready within {_START_TIMEOUT_S:.0f} s")

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _failed(self, what: str) -> StageError:
        return StageError(Reason.SERVER_FAILED, f"llama-server: {what}; the end of its log: {tail(self._log)}")


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    return opener.open(request, timeout=timeout_s)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tail(log: Path) -> str:
    """The end of a program's log."""
    return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
