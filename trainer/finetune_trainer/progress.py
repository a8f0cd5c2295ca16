"""Progress, reported by one background thread and never by the work itself.

The wire format is Kubeflow Trainer's (KEP-2779), so that stock trainers report to the same endpoint.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from finetune_api.environment import STATUS_CA, STATUS_TOKEN, STATUS_URL
from finetune_api.progress import Metric, ProgressReport, TrainerStatus

log = logging.getLogger(__name__)

POST_INTERVAL_S = 5.0
LINE_INTERVAL_S = 10.0
_CONNECT_TIMEOUT_S = 3.0
_CLOSE_TIMEOUT_S = 1.5
Clock = Callable[[], float]


@dataclass(frozen=True)
class Endpoint:
    """Where progress goes. CA and token are paths: both rotate, so they are read again for each connection."""

    url: str
    ca_file: str | None = None
    token_file: str | None = None

    def post(self, body: bytes, timeout_s: float) -> None:
        """Errors: OSError, http.client.HTTPException, ValueError; the caller swallows them."""
        target = urlsplit(self.url)
        headers = {"Content-Type": "application/json"}
        if self.token_file:
            headers["Authorization"] = f"Bearer {Path(self.token_file).read_text().strip()}"
        connection = self._connection(target.scheme, target.hostname or "", target.port, timeout_s)
        try:
            connection.request("POST", (target.path or "/") + (f"?{target.query}" if target.query else ""), body, headers)
            response = connection.getresponse()
            response.read()
            if response.status >= 400:
                raise ValueError(f"the endpoint answered {response.status}")
        finally:
            connection.close()

    def _connection(self, scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
        if scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


@dataclass(frozen=True)
class _Note:
    """What was reported last, and when. `fraction`: of the whole stage."""

    time_s: float
    fraction: float | None
    metrics: dict[str, float] = field(default_factory=dict)


class Pace:
    """The time left, from the progress of this process alone: a resumed run starts at a share that it did not work for."""

    def __init__(self) -> None:
        self._start: tuple[float, float] | None = None
        self._last = 0.0

    def remaining_seconds(self, time_s: float, fraction: float) -> int | None:
        """None until there is a pace. A fraction that falls (a new phase) starts the measure anew."""
        if self._start is None or fraction < self._last:
            self._start = (time_s, fraction)
        self._last = fraction
        done, elapsed = fraction - self._start[1], time_s - self._start[0]
        if fraction >= 1:
            return 0
        if done <= 0 or elapsed <= 0:
            return None
        return round((1 - fraction) * elapsed / done)


class Progress:
    """Takes the latest value at any rate, without blocking; a thread posts it and prints a line."""

    def __init__(self, endpoint: Endpoint | None = None, post_interval_s: float = POST_INTERVAL_S, clock: Clock = time.monotonic) -> None:
        self._endpoint = endpoint
        self._post_interval_s = post_interval_s
        self._clock = clock
        self._latest: _Note | None = None
        self._pace = Pace()
        self._wake = threading.Event()
        self._closing = False
        self._posted: _Note | None = None
        self._printed_line = ""
        self._failing = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Progress:
        """Posts where KUBEFLOW_TRAINER_SERVER_URL says; prints lines only where it says nothing."""
        url = environ.get(STATUS_URL)
        if not url:
            return cls()
        return cls(Endpoint(url, environ.get(STATUS_CA), environ.get(STATUS_TOKEN)))

    def report(self, fraction: float | None = None, **metrics: float) -> None:
        """Notes the share done (0…1) and metrics by name; costs no I/O. What is left out keeps its last value."""
        with self._lock:
            before = self._latest
            if fraction is None and before is not None:
                fraction = before.fraction
            merged = {**(before.metrics if before else {}), **metrics}
            self._latest = _Note(self._clock(), min(1.0, max(0.0, fraction)) if fraction is not None else None, merged)
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Posts what was noted last, waiting at most two seconds."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        next_line = self._clock()
        while not self._closing:
            now = self._clock()
            self._tell(_CONNECT_TIMEOUT_S)
            if now >= next_line:
                self._print_line()
                next_line = now + LINE_INTERVAL_S
            self._wake.wait(self._post_interval_s)
        self._tell(_CLOSE_TIMEOUT_S)
        self._print_line()

    def _tell(self, timeout_s: float) -> None:
        note = self._latest
        if note is None or note is self._posted:
            return
        status = self._status(note)
        if self._endpoint is None:
            self._posted = note
            return
        body = ProgressReport(trainer_status=status).model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            self._endpoint.post(body, timeout_s)
            self._posted, self._failing = note, False
        except Exception as error:  # progress must never end the work
            if not self._failing:
                log.warning("progress cannot be posted (%s); the work goes on, tried again", type(error).__name__)
            self._failing = True

    def _status(self, note: _Note) -> TrainerStatus:
        remaining = self._pace.remaining_seconds(note.time_s, note.fraction) if note.fraction is not None else None
        return TrainerStatus(
            progress_percentage=int(note.fraction * 100) if note.fraction is not None else None,
            estimated_remaining_seconds=remaining,
            metrics=[Metric(name=name, value=_number(value)) for name, value in list(note.metrics.items())[:64]],
            last_updated_time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )

    def _print_line(self) -> None:
        note = self._latest
        if note is None:
            return
        status = self._status(note)
        share = f"{status.progress_percentage} %" if status.progress_percentage is not None else "working"
        left = status.estimated_remaining_seconds
        eta = f", about {_duration(left)} left" if left else ""
        line = f"progress: {share}{_figures(note.metrics)}{eta}"
        if line != self._printed_line:
            self._printed_line = line
            print(line, file=sys.stderr, flush=True)


def _figures(metrics: Mapping[str, float]) -> str:
    """What people watch of the metrics: `, step 20 of 46, loss 1.23, 118 tokens/s`."""
    told = []
    if metrics.get("total_steps"):
        told.append(f"step {metrics.get('step', 0):.0f} of {metrics['total_steps']:.0f}")
    if "loss" in metrics:
        told.append(f"loss {metrics['loss']:.3g}")
    if "tokens_per_second" in metrics:
        told.append(f"{metrics['tokens_per_second']:.0f} tokens/s")
    return "".join(f", {figure}" for figure in told)


def _number(value: float) -> str:
    """Counts in full, everything else to six digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _duration(seconds: int) -> str:
    """`1h24m`, `3m05s`, `12s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
