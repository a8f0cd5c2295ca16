"""Progress: posted by one thread, never by the work, and never in its way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetune_api.progress import ProgressReport
from finetune_trainer.progress import Endpoint, Pace, Progress, _duration


class Recorder(HTTPServer):
    """Keeps every report, with its headers; answers `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reports: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.status = 200
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/progress/job"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.reports.append(json.loads(body))
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_the_last_value_arrives_in_the_wire_format(recorder: Recorder) -> None:
    progress = Progress(Endpoint(recorder.url))
    progress.report(0.1, step=1, loss=2.5)
    progress.report(0.426, step=12_345_678, loss=1.23456789)
    progress.close()
    report = ProgressReport.model_validate(recorder.reports[-1])
    assert report.trainer_status.progress_percentage == 42
    assert {metric.name: metric.value for metric in report.trainer_status.metrics} == {"step": "12345678", "loss": "1.23457"}
    assert report.trainer_status.last_updated_time is not None
    assert set(recorder.reports[-1]) == {"trainerStatus"}
    assert len(recorder.reports) <= 2, "values in between are not queued"


def test_what_is_left_out_keeps_its_last_value(recorder: Recorder) -> None:
    progress = Progress(Endpoint(recorder.url))
    progress.report(0.5, loss=1.0)
    progress.report(eval_loss=0.9)
    progress.close()
    status = ProgressReport.model_validate(recorder.reports[-1]).trainer_status
    assert status.progress_percentage == 50
    assert {metric.name for metric in status.metrics} == {"loss", "eval_loss"}


def test_a_rotated_token_is_read_again(recorder: Recorder, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    progress = Progress(Endpoint(recorder.url, token_file=str(token)), post_interval_s=0.01)
    progress.report(0.1)
    assert recorder.arrived.wait(10)
    token.write_text("second\n")
    progress.report(0.2)
    progress.close()
    assert recorder.tokens[0] == "Bearer first"
    assert recorder.tokens[-1] == "Bearer second"


def test_nothing_is_posted_while_nothing_is_new(recorder: Recorder) -> None:
    progress = Progress(Endpoint(recorder.url), post_interval_s=0.005)
    progress.report(0.1)
    assert recorder.arrived.wait(10)
    time.sleep(0.2)
    progress.close()
    assert len(recorder.reports) == 1


def test_a_refusing_endpoint_is_tried_again_and_harms_nothing(recorder: Recorder) -> None:
    recorder.status = 503
    progress = Progress(Endpoint(recorder.url), post_interval_s=0.01)
    progress.report(0.1)
    assert recorder.arrived.wait(10)
    recorder.arrived.clear()
    assert recorder.arrived.wait(10), "posted again, though nothing is new, because the first was refused"
    recorder.status = 200
    progress.close()


def test_the_reporting_thread_touches_no_socket(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        threads.append(threading.current_thread().name)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    progress = Progress(Endpoint(recorder.url), post_interval_s=0.01)
    for step in range(200):
        progress.report(step / 200, step=step)
    progress.close()
    assert recorder.reports
    assert set(threads) == {"progress"}


def test_a_silent_endpoint_costs_the_work_nothing(silent: str) -> None:
    progress = Progress(Endpoint(silent), post_interval_s=0.01)
    start = time.perf_counter()
    for step in range(1000):
        progress.report(step / 1000, step=step, loss=1.0)
    reporting = time.perf_counter() - start
    start = time.perf_counter()
    progress.close()
    assert reporting < 1.0, "milliseconds on an idle machine; one blocking post alone would take three seconds"
    assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://no-such-host.invalid/", "nonsense", "http://[broken"])
def test_no_endpoint_can_end_the_work(url: str) -> None:
    progress = Progress(Endpoint(url, ca_file="/nowhere", token_file=None))
    progress.report(0.5)
    progress.close()


def test_without_an_endpoint_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress.from_environment({})
    progress.report(0.25, loss=1.5)
    progress.close()
    assert "25 %" in capsys.readouterr().err


def test_the_endpoint_comes_from_kubeflows_variables() -> None:
    progress = Progress.from_environment(
        {"KUBEFLOW_TRAINER_SERVER_URL": "https://x/y", "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/ca", "KUBEFLOW_TRAINER_SERVER_TOKEN": "/token"}
    )
    assert progress._endpoint == Endpoint("https://x/y", "/ca", "/token")


def test_the_time_left_follows_this_attempts_own_pace() -> None:
    pace = Pace()
    assert pace.remaining_seconds(100.0, 0.4) is None, "a resumed run starts at 40 % that it did not work for"
    assert pace.remaining_seconds(110.0, 0.5) == 50
    assert pace.remaining_seconds(120.0, 0.5) == 100
    assert pace.remaining_seconds(130.0, 1.0) == 0


def test_a_share_that_falls_starts_the_measure_anew() -> None:
    pace = Pace()
    pace.remaining_seconds(0.0, 0.0)
    assert pace.remaining_seconds(10.0, 0.9) == 1
    assert pace.remaining_seconds(11.0, 0.1) is None
    assert pace.remaining_seconds(12.0, 0.2) == 8


def test_shares_outside_their_range_are_cut(recorder: Recorder) -> None:
    progress = Progress(Endpoint(recorder.url))
    progress.report(1.7)
    progress.close()
    assert recorder.reports[-1]["trainerStatus"]["progressPercentage"] == 100


@pytest.mark.parametrize(("seconds", "want"), [(12, "12s"), (185, "3m05s"), (5040, "1h24m")])
def test_durations_are_read_at_a_glance(seconds: int, want: str) -> None:
    assert _duration(seconds) == want
