"""`make test`: every suite, the cluster brought up for those that need it and taken down however the run ends.

    python3 -m tests.run [suite ...]        suites: static unit sim trainer api e2e, all of them without a name; control by its name only

Prints each suite's own summary line again at the end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import FrameType

from hack import environment, install

REPOSITORY = environment.REPOSITORY
_SUMMARY = re.compile(r"^=*\s*(\d+ (passed|failed|error|skipped|deselected|warning)[^=]*)\s*=*$")


_running: set[subprocess.Popen[str]] = set()


@dataclass
class Report:
    lines: list[str] = field(default_factory=list)
    failed: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def total(self) -> str:
        counts = self.counts
        return f"{counts['passed']} passed, {counts['failed']} failed" + (f", {counts['skipped']} skipped" if counts["skipped"] else "")

    def add(self, suite: str, code: int, seconds: float, summary: str) -> None:
        self.failed = self.failed or code != 0
        for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", summary):
            self.counts["failed" if outcome == "error" else outcome] += int(count)
        if code != 0 and "failed" not in summary and "error" not in summary:
            self.counts["failed"] += 1  # a suite that could not even be run
        self.lines.append(f"{suite:8} {'ok' if code == 0 else 'FAILED':7} {seconds:7.1f} s   {summary}")


def _stream(command: list[str], extra: dict[str, str]) -> tuple[int, str]:
    """Runs a program, its output shown as it comes; its exit code and the test runner's summary line."""
    summary = ""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **extra}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    _running.add(process)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := _SUMMARY.match(line.strip()):
                summary = found[1].strip()
        return process.wait(), summary
    finally:
        _running.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def pytest(folder: str, extra: dict[str, str] | None = None, options: Sequence[str] = ()) -> tuple[int, str]:
    return _stream([".venv/bin/pytest", "-q", "--durations=5", *options, f"tests/{folder}"], extra or {})


def on_all_cpus(spread: str) -> list[str]:
    """A worker for each CPU, at most four: one with torch takes 2 to 3 GB. `spread`: what goes to one worker together, as xdist names it."""
    return ["-n", str(min(4, len(os.sched_getaffinity(0)))), "--dist", spread, "--no-loadscope-reorder"]


def static() -> tuple[int, str]:
    """Formatting, lint, layers, types, generated files."""
    bin = ".venv/bin"
    checks = [
        [f"{bin}/ruff", "format", "--check", "--quiet", "."],
        [f"{bin}/ruff", "check", "--quiet", "."],
        [f"{bin}/lint-imports"],
        [f"{bin}/mypy"],
        [f"{bin}/python", "-m", "finetune_operator.crdgen"],
        [f"{bin}/python", "-m", "finetune_api.arguments"],
        [f"{bin}/python", "-m", "hack.docs"],
        ["git", "diff", "--exit-code", "--", "crds", "api", "docs", "charts"],
    ]
    bad = [command for command in checks if _stream(command, {})[0] != 0]
    return len(bad), f"{len(checks) - len(bad)} checks passed, {len(bad)} failed"


def _llama_home() -> dict[str, str]:
    shown = subprocess.run([sys.executable, "images/build.py", "llama"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return {"FINETUNE_LLAMA_HOME": shown.stdout.strip().splitlines()[-1].partition("=")[2] or shown.stdout.strip().splitlines()[-1]}


def bring_up() -> tuple[int, str]:
    """Cluster and images at once, before the first suite that needs one of them."""
    taken = install.bring_up()
    return 0, ", ".join(f"{part} stands after {seconds:.0f} s" for part, seconds in taken.items())


def trainer() -> tuple[int, str]:
    install.cluster("engine")
    return pytest("trainer", _llama_home(), on_all_cpus("loadfile"))  # a file's tests share models made once


def api() -> tuple[int, str]:
    install.cluster("up")
    install.cluster("tools", "--all")  # kstatus as well
    return pytest("api", install.cluster_environment())


def e2e(folder: str = "e2e") -> tuple[int, str]:
    install.cluster("up")
    images = install.install()
    return pytest(folder, {**install.cluster_environment(), **{f"FINETUNE_IMAGE_{name.upper()}": tag for name, tag in images.items()}})


SUITES: dict[str, Callable[[], tuple[int, str]]] = {
    "static": static,
    "unit": lambda: pytest("unit", options=on_all_cpus("worksteal")),
    "sim": lambda: pytest("sim", options=on_all_cpus("worksteal")),
    "trainer": trainer,
    "api": api,
    "e2e": e2e,
}
BY_NAME: dict[str, Callable[[], tuple[int, str]]] = {"control": lambda: e2e("e2e/control.py")}
"""What takes as long as it takes and is no part of `make test`."""
_NEED_CLUSTER = {"trainer", "api", "e2e", "control"}
_USE_PROGRAMS = _NEED_CLUSTER | {"unit"}
"""Suites with tests that run Helm or the cluster, and skip or fail without them."""


def main(wanted: list[str]) -> int:
    known = SUITES | BY_NAME
    unknown = set(wanted) - set(known)
    if unknown:
        print(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    suites = wanted or list(SUITES)
    on_cluster = [suite for suite in suites if suite in _NEED_CLUSTER]
    report = Report()
    environment.sync()
    try:
        rest = _beside_bringing_up(suites, report) if "e2e" in suites else suites
        for suite in rest:
            _run(suite, known[suite], report)
    finally:
        if on_cluster and not os.environ.get("FINETUNE_KEEP_CLUSTER"):
            install.cluster("down")
    print("\n" + "\n".join(report.lines))
    print(report.total(), flush=True)
    return 1 if report.failed else 0


def _beside_bringing_up(suites: list[str], report: Report) -> list[str]:
    """Suites that are left once the cluster stands: those that need nothing of it ran meanwhile, as it mostly waits."""
    with ThreadPoolExecutor(1) as beside:
        done = [beside.submit(_run, suite, SUITES[suite], report) for suite in suites if suite not in _USE_PROGRAMS]
        _run("bring up", bring_up, report)
        for suite in done:
            suite.result()
    return [suite for suite in suites if suite in _USE_PROGRAMS]


def _run(name: str, suite: Callable[[], tuple[int, str]], report: Report) -> None:
    print(f"\n######## {name}", flush=True)
    began = time.monotonic()
    try:
        code, summary = suite()
    except subprocess.CalledProcessError as error:
        code, summary = 1, f"could not be run: {error.cmd[:4]} ended with {error.returncode}"
    report.add(name, code, time.monotonic() - began, summary)


def _interrupted(number: int, frame: FrameType | None) -> None:
    for process in tuple(_running):
        process.terminate()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
