"""What a waiting person sees: a line per step, life signs from long ones, and the end of the log that explains a failure."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Everything started here carries this variable, so that `down` finds what a killed run left (see processes.py).
MARKER = "FINETUNE_CLUSTER_CACHE"
LIFE_SIGN_S = 20
TAIL_LINES = 30

_started = time.monotonic()


class CommandFailed(Exception):
    """A program failed; the text names it and holds the end of what it wrote."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - _started:6.1f}s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announces a step and says afterwards how long it took."""
    say(f"{text} …")
    began = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - began:.1f} s")


def end_with_parent() -> None:
    """For a child: it is killed when its parent dies, however that is. On Linux; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG. Source: prctl(2)


def run(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 3600,
) -> None:
    """Runs a program with its output in `log`; shows the log's last line now and then, its end on failure."""
    with log.open("ab") as output:
        before = output.tell()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            preexec_fn=end_with_parent,
        )
        try:
            code = _wait(process, log, before, timeout_s)
        except BaseException:  # interrupted: leave nothing running behind us
            process.kill()
            process.wait()
            raise
    if code:
        raise CommandFailed(f"{_shown(command)} ended with {code}; the end of {log}:\n{tail(log, before)}")


def _wait(process: subprocess.Popen[bytes], log: Path, before: int, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return process.wait(min(LIFE_SIGN_S, max(deadline - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired as error:
            if time.monotonic() > deadline:
                raise CommandFailed(f"no end after {timeout_s:.0f} s; the end of {log}:\n{tail(log, before)}") from error
            last = tail(log, before, lines=1)
            say(f"    … {last[:100] or 'it runs, and has written nothing yet'}")


def output(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    folder: Path | None = None,
    timeout_s: float = 120,
) -> str:
    """What a short program prints; CommandFailed with its error text if it fails or hangs."""
    feed: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            list(command), capture_output=True, env=environment, cwd=folder, timeout=timeout_s, **feed
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{_shown(command)} did not end within {timeout_s:.0f} s") from error
    if done.returncode:
        text = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise CommandFailed(f"{_shown(command)} ended with {done.returncode}: {text[-3000:]}")
    return str(done.stdout.decode(errors="replace")).strip()


def tail(log: Path, start: int = 0, lines: int = TAIL_LINES) -> str:
    """The last lines that were written to `log` after the byte `start`."""
    with log.open("rb") as text:
        size = text.seek(0, os.SEEK_END)
        text.seek(max(start, size - 16_384))
        return "\n".join(text.read().decode(errors="replace").rstrip().splitlines()[-lines:])


def _shown(command: Sequence[str | Path]) -> str:
    text = " ".join(str(word) for word in command)
    return text if len(text) < 200 else text[:200] + "…"
