"""A client without retries: at least 20 requests a second, every answer counted."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from types import TracebackType

from hack.demo import GATEWAY, HOSTNAME

_PERIOD_S = 0.04


class Load:
    """Requests `/v1/models` of a model through the gateway from a thread, until the block ends; bounded in time."""

    def __init__(self, hostname: str = HOSTNAME, longest_s: float = 300) -> None:
        self._hostname = hostname
        self.answers: Counter[str] = Counter()
        self._longest_s = longest_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def failed(self) -> int:
        return sum(count for answer, count in self.answers.items() if answer != "200")

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)
        self.seconds = time.monotonic() - self._began

    def _run(self) -> None:
        request = urllib.request.Request(f"{GATEWAY}/v1/models", headers={"Host": self._hostname})
        while not self._stop.is_set() and time.monotonic() - self._began < self._longest_s:
            due = time.monotonic() + _PERIOD_S
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    self.answers[str(answer.status)] += 1
            except urllib.error.HTTPError as error:
                self.answers[str(error.code)] += 1
            except OSError as error:
                self.answers[type(error).__name__] += 1
            time.sleep(max(0.0, due - time.monotonic()))
