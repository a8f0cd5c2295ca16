"""Debian packages, and how this machine reaches them."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from .progress import CommandFailed, output, run, step

# What to install for a program that is missing.
PACKAGE_OF = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "busybox": "busybox-static",
    "iptables": "iptables",
    "ip": "iproute2",
    "zstd": "zstd",
    "mount": "mount",
}
SYSTEM_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + SYSTEM_FOLDERS)


def ensure_programs(names: Iterable[str], log: Path) -> None:
    """Installs the packages of the programs that are missing; root on Debian or a relative of it is needed for that."""
    missing = sorted({PACKAGE_OF[name] for name in names if find_program(name) is None})
    if not missing:
        return
    if find_program("apt-get") is None or os.geteuid() != 0:
        raise CommandFailed(f"install {', '.join(missing)} (this can do it by itself only as root and with apt-get)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"install {', '.join(missing)}"):
        run(["apt-get", "update"], log, environment=environment)
        run(["apt-get", "install", "-y", "--no-install-recommends", *missing], log, environment=environment)


def debian_sources(index_targets: str, suite: str) -> list[str]:
    """The sources.list lines for a suite, its updates and its security fixes, from where this machine has them.

    `index_targets` is what `apt-get indextargets` prints with INDEX_FORMAT; others' archives are left out.
    """
    lines = []
    for target in index_targets.splitlines():
        repository, codename, component, origin = target.split("|")
        if origin == "Debian" and component == "main" and codename.split("-")[0] == suite:
            lines.append(f"deb {repository.rstrip('/')} {codename} main")
    return sorted(set(lines), key=lambda line: (line.split()[2], line))


INDEX_FORMAT = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)"


def read_debian_sources(suite: str, log: Path) -> list[str]:
    """This machine's own sources for a suite; apt's lists are fetched first where they are not there."""
    command = ["apt-get", "indextargets", "--format", INDEX_FORMAT, "Created-By: Packages"]
    sources = debian_sources(output(command), suite)
    if not sources:
        run(["apt-get", "update"], log)
        sources = debian_sources(output(command), suite)
    if not sources:
        raise CommandFailed(f"apt on this machine knows no Debian archive with {suite}")
    return sources


def with_apt_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with apt's proxy, if one is set: debootstrap reads the variable, not apt's configuration."""
    proxy = output(["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"])
    return {**environment, "http_proxy": proxy} if proxy else dict(environment)
