"""Finding and ending what was started here, however the run that started it ended."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .progress import MARKER, CommandFailed

PROC = Path("/proc")


def marked_processes(cache: Path) -> set[int]:
    """Processes whose environment says that they belong to this cache: dockerd, containerd, shims, builds.

    Not ourselves, nor those that started us.
    """
    wanted = f"{MARKER}={cache}".encode()
    mine = _ancestors(os.getpid())
    return {pid for pid in _all_pids() if pid not in mine and wanted in _read(PROC / str(pid) / "environ").split(b"\0")}


def inside(folder: Path) -> set[int]:
    """Processes that have the folder, or one below it, as root or as working folder: a killed debootstrap's."""
    return {pid for pid in _all_pids() if any(_is_below(PROC / str(pid) / link, folder) for link in ("root", "cwd"))}


def _is_below(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:  # it ended while we looked, or it is the kernel's
        return False


def _ancestors(pid: int) -> set[int]:
    """The process and those above it."""
    found = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        fields = _stat_fields(pid)
        pid = int(fields[1]) if len(fields) > 1 else 0
    return found


def is_running(pid: int, *words: str) -> bool:
    """Whether the process lives and its command line holds all the words: pids are used again."""
    command = _read(PROC / str(pid) / "cmdline")
    return bool(command) and all(word.encode() in command for word in words)


def read_pid(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def end(pids: Iterable[int], *, grace_s: float = 10) -> None:
    """Ends processes: SIGTERM first, SIGKILL for those still there after the grace."""
    left = set(pids)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        left = _signal(left, number)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = {pid for pid in left if _is_alive(pid)}
    if left:
        raise CommandFailed(f"processes {sorted(left)} survive SIGKILL (frozen, or stuck in the kernel)")


def _signal(pids: set[int], number: signal.Signals) -> set[int]:
    reached = set()
    for pid in pids:
        try:
            os.kill(pid, number)
            reached.add(pid)
        except ProcessLookupError:
            pass
    return reached


def _is_alive(pid: int) -> bool:
    """A zombie counts as dead: nothing of it runs, and only its parent can take it away."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def _stat_fields(pid: int) -> list[bytes]:
    """State, parent and so on, after the name, which may itself hold spaces. Source: proc(5)."""
    return _read(PROC / str(pid) / "stat").rpartition(b")")[2].split()


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended while we looked
        return b""
