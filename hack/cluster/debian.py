"""Debian root file systems by debootstrap, from where this machine's own apt gets its packages."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import mounts, processes
from .packages import ensure_programs, read_debian_sources, with_apt_proxy
from .paths import Paths
from .progress import CommandFailed, end_with_parent, tail

# bookworm: the last Debian whose systemd runs on cgroup v1, which some of the machines have.
SUITE = "bookworm"


class Bootstrap:
    """A debootstrap that runs beside other work."""

    def __init__(self, paths: Paths, folder: Path, packages: Sequence[str]) -> None:
        self.folder = folder
        self._log = paths.logs / f"debootstrap-{folder.parent.name}.log"
        ensure_programs(["debootstrap"], self._log)
        clear_folder(self.folder)
        self._sources = read_debian_sources(SUITE, self._log)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(self.folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, self._sources[0].split()[1]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=with_apt_proxy(os.environ),
                preexec_fn=end_with_parent,
            )

    def __enter__(self) -> "Bootstrap":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it where it still runs: something else has failed, or somebody has lost patience."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def wait(self) -> Path:
        """The finished root file system."""
        if self._process.wait():
            raise CommandFailed(f"debootstrap failed; the end of {self._log}:\n{tail(self._log)}")
        return self.folder

    def write_sources(self) -> None:
        """Lets apt in the file system find updates and security fixes, where this machine finds them."""
        (self.folder / "etc/apt/sources.list").write_text("\n".join(self._sources) + "\n")


def slim_down(root: Path) -> None:
    """Removes what only a person at a terminal, or a second apt-get, would need."""
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/*.log"):
        for file in root.glob(pattern):
            if file.is_file():
                file.unlink()
    for folder in ("doc", "man", "locale", "info"):
        shutil.rmtree(root / "usr/share" / folder, ignore_errors=True)


def clear_folder(folder: Path) -> None:
    """Removes a folder with what is mounted in it: a debootstrap that was killed leaves /proc and /sys there."""
    processes.end(processes.inside(folder), grace_s=2)
    mounts.unmount_below(folder)
    if mounts.mounted_below(folder):
        raise CommandFailed(f"cannot unmount {mounts.mounted_below(folder)}; nothing below it is removed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
