"""The Docker engine: the user's where one answers, otherwise a dockerd of our own, with all its files in the cache."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroups, gotools, mounts, packages, processes
from .paths import Paths
from .progress import CommandFailed, output, run, say, step, tail

START_TIMEOUT_S = 60
INOTIFY_INSTANCES = 1024
# Debian's client: another one on PATH may be newer and refuse to build without a plugin that is not there.
DEBIAN_CLIENT = "/usr/bin/docker"
# kind puts this label, with the cluster's name, on its node containers.
KIND_LABEL = "io.x-k8s.kind.cluster"
_LIST_NODES = ("ps", "--all", "--filter")


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers, and how to talk to it."""

    client: str
    host: str  # DOCKER_HOST; empty for the user's own default
    is_ours: bool
    _info: dict[str, Any] = field(repr=False, compare=False)

    @property
    def environment(self) -> dict[str, str]:
        settings = {"DOCKER_BUILDKIT": "1"}
        if self.host:
            settings["DOCKER_HOST"] = self.host
        return {**os.environ, **settings}

    @property
    def has_cgroup_v1(self) -> bool:
        return str(self._info.get("CgroupVersion", "2")) == "1"

    def docker(self, *words: str | Path, stdin: bytes | None = None, timeout_s: float = 300) -> str:
        return output([self.client, *words], environment=self.environment, stdin=stdin, timeout_s=timeout_s)

    def run(self, *words: str | Path, log: Path, timeout_s: float = 3600) -> None:
        run([self.client, *words], log, environment=self.environment, timeout_s=timeout_s)

    def has_image(self, name: str) -> bool:
        with contextlib.suppress(CommandFailed):
            return bool(self.docker("image", "inspect", "-f", "{{.Id}}", name))
        return False

    def load(self, archive: Path, log: Path) -> None:
        """Loads an image archive; one that ends in .zst is unpacked on the way."""
        if archive.suffix != ".zst":
            self.run("load", "-i", archive, log=log)
            return
        with log.open("ab") as errors, subprocess.Popen(["zstd", "-dc", archive], stdout=subprocess.PIPE, stderr=errors) as unpack:
            loaded = subprocess.run([self.client, "load"], stdin=unpack.stdout, stdout=errors, stderr=errors, env=self.environment)
        if loaded.returncode or unpack.returncode:
            raise CommandFailed(f"docker load of {archive} failed:\n{tail(log)}")

    def drop_other_tags(self, image: str) -> None:
        """Removes former versions of an image; one that a container still uses stays."""
        for other in self.docker("images", "--format", "{{.Repository}}:{{.Tag}}", image.partition(":")[0]).split():
            if other != image:
                with contextlib.suppress(CommandFailed):
                    self.docker("rmi", other)

    def pull(self, image: str, log: Path) -> bool:
        """Whether a registry gave the image. No retries: where there is none, the answer comes at once."""
        with contextlib.suppress(CommandFailed):
            self.run("pull", image, log=log, timeout_s=900)
            return True
        return False

    def nodes(self, cluster: str) -> list[str]:
        """The node containers of a kind cluster, running or not."""
        return self.docker(*_LIST_NODES, f"label={KIND_LABEL}={cluster}", "--format", "{{.Names}}").split()

    def wake_nodes(self, cluster: str) -> bool:
        """Starts nodes that a test has stopped or paused; False if there is none, or all are down: a killed engine's."""
        listed = self.docker(*_LIST_NODES, f"label={KIND_LABEL}={cluster}", "--format", "{{.Names}} {{.State}}")
        states = dict(line.split() for line in listed.splitlines())
        if "running" not in states.values():
            return False
        for node, state in states.items():
            if state != "running":
                say(f"    {node} was {state}")
                self.docker("unpause" if state == "paused" else "start", node)
        return True

    def remove_nodes(self, cluster: str) -> None:
        if nodes := self.nodes(cluster):
            self.docker("rm", "--force", "--volumes", *nodes)


def find(paths: Paths) -> Engine | None:
    """The engine that answers now: our own if it runs, otherwise the user's."""
    ours = f"unix://{paths.socket}"
    if paths.socket.exists() and (engine := _ask(DEBIAN_CLIENT, ours, is_ours=True)):
        return engine
    client = shutil.which("docker")
    host = os.environ.get("DOCKER_HOST", "")
    if client is None or host == ours:
        return None
    return _ask(client, host, is_ours=False)


def _ask(client: str, host: str, *, is_ours: bool) -> Engine | None:
    environment = {**os.environ, "DOCKER_HOST": host} if host else {**os.environ}
    try:
        info = json.loads(output([client, "info", "--format", "{{json .}}"], environment=environment, timeout_s=20))
    except (CommandFailed, OSError, ValueError):
        return None
    # Newer clients exit with 0 and name the failure in the answer.
    if info.get("ServerErrors") or not info.get("ServerVersion"):
        return None
    return Engine(client, host, is_ours, info)


def ensure(paths: Paths) -> Engine:
    """An engine that answers, started if need be."""
    if engine := find(paths):
        say(f"engine: {'our own' if engine.is_ours else 'yours'}, Docker {engine._info['ServerVersion']}")
        return engine
    if os.geteuid() != 0:
        raise CommandFailed("no Docker engine answers, and only root can start one: start Docker, or run this as root")
    packages.ensure_programs(["dockerd", "containerd", "iptables", "ip", "zstd", "mount"], paths.logs / "packages.log")
    # Where there is an init system, the package has just started an engine.
    return find(paths) or _start(paths)


def daemon_configuration(paths: Paths) -> dict[str, Any]:
    """dockerd's configuration: nothing outside the cache, nothing that needs systemd or CAP_SYS_RESOURCE."""
    return {
        "data-root": str(paths.engine_data),
        "exec-root": str(paths.run / "exec"),
        "pidfile": str(paths.engine_pid),
        "hosts": [f"unix://{paths.socket}"],
        "storage-driver": "overlay2",
        # systemd's driver on cgroup v1 left frozen cgroups behind when nodes were killed; this one did not.
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{paths.cgroup}",
        "default-runtime": "runc-drop-caps",
        "runtimes": {"runc-drop-caps": {"path": str(paths.bin / "runc-drop-caps")}},
        "oom-score-adjust": 0,
        "log-driver": "json-file",
        "log-opts": {"max-size": "20m", "max-file": "2"},
        "shutdown-timeout": 5,
    }


def _start(paths: Paths) -> Engine:
    gotools.ensure_tools(paths, gotools.FOR_ENGINE)
    _clear_remains(paths)
    raise_inotify_limit()
    with step("start dockerd"):
        log = paths.logs / "dockerd.log"
        configuration = paths.run / "docker.json"
        configuration.write_text(json.dumps(daemon_configuration(paths), indent=2))
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{packages.SYSTEM_FOLDERS}"}
        environment.pop("DOCKER_HOST", None)
        with log.open("wb") as text:
            # A session of its own: it outlives us, and an interrupt at the terminal does not reach it.
            daemon = subprocess.Popen(
                [packages.find_program("dockerd") or "dockerd", "--config-file", configuration],
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        engine = _wait_until_it_answers(paths, daemon, log)
        _link_client(paths)
    return engine


def raise_inotify_limit(setting: Path = Path("/proc/sys/fs/inotify/max_user_instances")) -> None:
    """Lets more than one or two clusters' worth of systemds and kubelets watch files.

    Without, the last ones to start fail with "too many open files". Source: kind's documentation, "Known Issues".
    """
    with contextlib.suppress(OSError):  # read-only, or not Linux: a small cluster gets by
        if int(setting.read_text()) < INOTIFY_INSTANCES:
            setting.write_text(str(INOTIFY_INSTANCES))


def _wait_until_it_answers(paths: Paths, daemon: subprocess.Popen[bytes], log: Path) -> Engine:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise CommandFailed(f"dockerd ended with {daemon.returncode}; the end of {log}:\n{tail(log)}")
        if paths.socket.exists() and (engine := _ask(DEBIAN_CLIENT, f"unix://{paths.socket}", is_ours=True)):
            return engine
        time.sleep(0.3)
    processes.end([daemon.pid])
    raise CommandFailed(f"dockerd does not answer after {START_TIMEOUT_S} s; the end of {log}:\n{tail(log)}")


def _link_client(paths: Paths) -> None:
    """The matching client comes first on the PATH that `env` prints."""
    link = paths.bin / "docker"
    link.unlink(missing_ok=True)
    link.symlink_to(DEBIAN_CLIENT)


def _clear_remains(paths: Paths) -> None:
    """Takes away what a dockerd that was killed left: its containers' processes, mounts, sockets and pid files."""
    cgroups.thaw(paths.cgroup)
    pid = processes.read_pid(paths.engine_pid)
    daemons = {pid} if pid and processes.is_running(pid, "dockerd", str(paths.run)) else set()
    # dockerd first: it would start again what is ended under its eyes.
    processes.end(daemons, grace_s=20)
    # A container's first process does not heed SIGTERM, so that waiting long is in vain.
    processes.end(processes.marked_processes(paths.cache) | cgroups.members(paths.cgroup), grace_s=2)
    cgroups.remove(paths.cgroup)
    mounts.unmount_below(paths.run)
    mounts.unmount_below(paths.engine_data)
    shutil.rmtree(paths.run / "exec", ignore_errors=True)
    for file in (paths.socket, paths.engine_pid, paths.run / "docker.json"):
        file.unlink(missing_ok=True)


def remove_containers(engine: Engine) -> None:
    """Empties our own engine of containers and networks; images and the build cache stay."""
    if containers := engine.docker("ps", "-aq").split():
        engine.docker("rm", "--force", "--volumes", *containers)
    engine.docker("network", "prune", "--force")
    engine.docker("volume", "prune", "--force")


def stop(paths: Paths) -> None:
    """Ends our own engine and everything that it ran; safe to call whatever is left of it."""
    engine = find(paths)
    if engine is not None and engine.is_ours:
        try:
            cgroups.thaw(paths.cgroup)
            remove_containers(engine)
        except CommandFailed as error:
            say(f"    {error}; its processes are ended one by one")
    elif any((paths.engine_data / "containers").glob("*")):
        _empty_dead_engine(paths)
    _clear_remains(paths)
    _remove_bridge(paths)


def _empty_dead_engine(paths: Paths) -> None:
    """A dockerd that was killed has its containers' layers still on disk: only a dockerd can let go of them."""
    try:
        remove_containers(_start(paths))
    except CommandFailed as error:
        say(f"    the dead engine's containers stay on disk until the next start: {error}")


def _remove_bridge(paths: Paths) -> None:
    """dockerd leaves its bridge behind; it goes unless another engine's address or container is on it."""
    if paths.engine_data.exists() and packages.find_program("ip") and os.geteuid() == 0 and not _other_dockerd():
        subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)


def _other_dockerd() -> bool:
    return any(processes.is_running(int(entry.name), "dockerd") for entry in Path("/proc").iterdir() if entry.name.isdigit())
