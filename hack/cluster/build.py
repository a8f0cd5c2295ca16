"""docker build, with what a build needs to reach packages from this machine and elsewhere needs not."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import base
from .engine import Engine
from .paths import Paths
from .progress import say, step

SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")
PIP_CONFIGURATIONS = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf")


def host_arguments(environment: Mapping[str, str], exists: Mapping[str, bool]) -> list[str]:
    """docker build's arguments for this machine: its network, certificates, package indexes and proxies. Pure.

    `exists` says of each file that may be used whether it is there.
    """
    words = ["--network", "host", "--build-arg", f"BASE={base.IMAGE}"]
    certificates = environment.get("SSL_CERT_FILE") or SYSTEM_CERTIFICATES
    if exists.get(certificates):
        words += ["--secret", f"id=ca,src={certificates}"]
    pip = environment.get("PIP_CONFIG_FILE") or next((file for file in PIP_CONFIGURATIONS if exists.get(file)), "")
    if exists.get(pip):
        words += ["--secret", f"id=pip,src={os.path.expanduser(pip)}"]
    for name in PROXY_VARIABLES:
        if value := environment.get(name) or environment.get(name.upper()):
            words += ["--build-arg", f"{name}={value}"]
    return words


def build(paths: Paths, engine: Engine, words: Sequence[str]) -> int:
    """Runs docker build with its output on the terminal; returns its exit code."""
    files = [SYSTEM_CERTIFICATES, *PIP_CONFIGURATIONS]
    files += [os.environ[name] for name in ("SSL_CERT_FILE", "PIP_CONFIG_FILE") if os.environ.get(name)]
    exists = {file: Path(file).expanduser().is_file() for file in files}
    command = [engine.client, "build", *host_arguments(os.environ, exists), *words]
    say(" ".join(command))
    with step("docker build"):
        return subprocess.run(command, env=engine.environment).returncode
