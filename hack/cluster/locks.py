"""One process changes a thing at a time: two at once would each take away what the other has just made.

A lock per thing and not one for all, so that images are built while Go compiles. They are taken in the order of `ORDER`
only, so that no two processes ever wait for each other; a lock that this process holds may be taken once more. The kernel
lets go of a killed process's.
"""

import contextlib
import fcntl
from collections.abc import Iterator

from .paths import Paths
from .progress import say

ORDER = ("cluster", "base", "engine", "tools", "packages")
_held: set[str] = set()


@contextlib.contextmanager
def locked(paths: Paths, *names: str) -> Iterator[None]:
    """Holds the locks of the things named; waits, and says so, while another process holds one."""
    with contextlib.ExitStack() as stack:
        for name in sorted(names, key=ORDER.index):
            stack.enter_context(_locked(paths, name))
        yield


@contextlib.contextmanager
def _locked(paths: Paths, name: str) -> Iterator[None]:
    if name in _held:
        yield
        return
    # An assertion and no comment: the wrong order hangs once in a hundred runs.
    assert all(ORDER.index(other) < ORDER.index(name) for other in _held), f"{name} after {_held}"
    with (paths.locks / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run of hack.cluster to let go of: {name} …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _held.add(name)
        try:
            yield
        finally:
            _held.remove(name)
