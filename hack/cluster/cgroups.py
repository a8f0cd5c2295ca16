"""The cgroups of our engine's containers, on cgroup v1 and v2. The engine puts all of them below one parent of its own."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def parent(cache: Path) -> str:
    """The name of the cgroup that holds all containers of the engine with this cache, and no others."""
    return f"finetune-operator-{hashlib.sha256(os.fsencode(cache)).hexdigest()[:8]}"


def trees(parent: str, root: Path = ROOT) -> list[Path]:
    """The parent's folder in every hierarchy that has one: one on v2, one for each controller on v1."""
    if not root.is_dir():
        return []
    return [folder for folder in (root / parent, *sorted(root.glob(f"*/{parent}"))) if folder.is_dir()]


def thaw(parent: str, root: Path = ROOT) -> int:
    """Wakes frozen cgroups; returns how many there were.

    A runc that is killed while it changes a pod's cgroup leaves it frozen, and SIGKILL never reaches what is frozen.
    """
    count = 0
    for tree in trees(parent, root):
        for folder in _folders(tree):
            count += _write_unless(folder / "freezer.state", "THAWED") + _write_unless(folder / "cgroup.freeze", "0")
    return count


def members(parent: str, root: Path = ROOT) -> set[int]:
    """The processes of all our containers."""
    pids: set[int] = set()
    for tree in trees(parent, root):
        for folder in _folders(tree):
            with contextlib.suppress(OSError, ValueError):
                pids.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return pids


def remove(parent: str, root: Path = ROOT) -> None:
    """Removes the emptied cgroups, inner ones first."""
    for tree in trees(parent, root):
        for folder in reversed(list(_folders(tree))):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _folders(tree: Path) -> Iterator[Path]:
    """The folder and all below it, outer ones first."""
    for folder, _, _ in os.walk(tree):
        yield Path(folder)


def _write_unless(file: Path, wanted: str) -> bool:
    with contextlib.suppress(OSError):  # no such file on this version, or the cgroup has just gone
        if file.read_text().strip() != wanted:
            file.write_text(wanted)
            return True
    return False
