"""What the operator's process is measured on: a real API server, a kubelet and a Gateway that only say what real ones would, itself."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml
from finetune_api.run import Stage
from finetune_api.status import timestamp
from finetune_operator.core import names
from finetune_operator.core.names import Object

from tests.api.control_plane import free_ports, kubeconfig_of, running
from tests.bench.audit import OPERATOR
from tests.sim.kubelet import answer

REPOSITORY = Path(__file__).resolve().parents[2]
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
IN_FLIGHT = 32
"""Requests at a time where many are made."""

_CALM_CORES = 0.03
_LONGEST_EVENT = 4 << 20
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
T = TypeVar("T")

# The operator listens on every interface, for in a pod it must; imported by Python before the operator is.
_ONLY_LOOPBACK = """
from asyncio import base_events

listen = base_events.BaseEventLoop.create_server


def on_loopback(loop, protocol, host=None, port=None, **options):
    return listen(loop, protocol, host or "127.0.0.1", port, **options)


base_events.BaseEventLoop.create_server = on_loopback
"""

# The operator's own settings of kopf, and a handler that does nothing.
_BARE_KOPF = """
import sys

import kopf

left = int(sys.argv[1])


@kopf.on.startup()
def configure(settings, **_):
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.queueing.worker_limit = 1000
    settings.queueing.idle_timeout = 0.1


@kopf.on.login()
def login(**kwargs):
    return kopf.login_with_kubeconfig(**kwargs)


@kopf.on.event("finetune-operator.io", "v1alpha1", "finetunejobs")
async def see(**_):
    global left
    left -= 1
    if left == 0:
        print("all are seen", flush=True)


kopf.run(standalone=True, clusterwide=True)
"""


class Refused(Exception):
    """The API server's words."""


@dataclass
class Api:
    """An API server for many requests at a time."""

    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, given: Object | None = None, /, *, type: str = JSON, **query: str) -> Object:
        async with self.session.request(method, path, params=query, json=given, headers={"Content-Type": type}) as reply:
            body = await reply.read()
            if reply.status >= 300:
                raise Refused(f"{method} {path}: {body.decode(errors='replace')[:2000]}")
            found: Object = json.loads(body)
            return found

    async def create(self, path: str, bodies: Iterable[Object]) -> list[Object]:
        """Creates objects, IN_FLIGHT at a time; what the API server answered, in order."""
        return await bounded(self.call("POST", path, body) for body in bodies)

    async def serves(self, path: str) -> bool:
        try:
            await self.call("GET", path, limit="1")
        except Refused:
            return False
        return True

    async def items(self, path: str, **query: str) -> list[Object]:
        return list((await self.call("GET", path, **query))["items"])

    async def pages(self, path: str) -> None:
        """Reads every object, as operators do when they start."""
        token = ""
        while True:
            page = await self.call("GET", path, limit="500", **({"continue": token} if token else {}))
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def changes(self, path: str) -> AsyncIterator[Object]:
        """Each object as it is, and again whenever it changes."""
        listing = await self.call("GET", path)
        for item in listing["items"]:
            yield item
        query = {"watch": "1", "resourceVersion": listing["metadata"]["resourceVersion"]}
        async with self.session.get(path, params=query, timeout=aiohttp.ClientTimeout()) as reply:
            async for line in reply.content:
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"]


@asynccontextmanager
async def connection(folder: Path, user: str) -> AsyncIterator[Api]:
    """To the control plane in `folder`."""
    config = _config(kubeconfig_of(folder, user))
    cluster, token = config["clusters"][0]["cluster"], config["users"][0]["user"]["token"]
    connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=cluster["certificate-authority"]))
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(cluster["server"], connector=connector, headers=headers, read_bufsize=_LONGEST_EVENT) as session:
        yield Api(session)


def _config(kubeconfig: Path) -> Object:
    config: Object = yaml.safe_load(kubeconfig.read_text())
    return config


async def bounded(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; IN_FLIGHT at a time."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def one(part: Coroutine[Any, Any, T]) -> T:
        async with free:
            return await part

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(part)) for part in work]
    return [task.result() for task in tasks]


async def until(probe: Callable[[], Awaitable[T | None]], what: str, timeout_s: float = 120, every_s: float = 0.1) -> T:
    """The first value of `probe` that is true. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = await probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` goes on while the block does; should it fail, the block is ended."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


# ---------------------------------------------------------------------------------------------------------------------- kubelet


@dataclass
class Kubelet:
    """Pods of stages run for `stage_s` and end well, servers become ready, and routes are accepted by their Gateway."""

    api: Api
    stage_s: float = 0.2
    _seen: set[str] = field(default_factory=set)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._routes())
            async for pod in self.api.changes("/api/v1/pods"):
                if pod["metadata"]["uid"] not in self._seen:
                    self._seen.add(pod["metadata"]["uid"])
                    group.create_task(self._live(pod))

    async def _live(self, pod: Object) -> None:
        await self._write("pods", "/api/v1", pod, _pod_status(pod, "Running", {"running": {"startedAt": _now()}}))
        stage = pod["metadata"]["labels"].get(names.STAGE_LABEL)
        if stage:
            await asyncio.sleep(self.stage_s)
            message = answer(Stage(stage), json.loads(pod["metadata"]["annotations"][names.RUN_ANNOTATION])).termination_message()
            ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": _now(), "finishedAt": _now()}
            await self._write("pods", "/api/v1", pod, _pod_status(pod, "Succeeded", {"terminated": ended}))

    async def _routes(self) -> None:
        async for route in self.api.changes("/apis/gateway.networking.k8s.io/v1/httproutes"):
            if _accepted_generation(route) != route["metadata"]["generation"]:
                await self._write("httproutes", "/apis/gateway.networking.k8s.io/v1", route, _route_status(route))

    async def _write(self, plural: str, group: str, live: Object, status: Object) -> None:
        metadata = live["metadata"]
        path = f"{group}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status"
        await self.api.call("PATCH", path, {"status": status}, type=MERGE_PATCH)


def _now() -> str:
    return timestamp(datetime.now(UTC))


def _pod_status(pod: Object, phase: str, state: Object) -> Object:
    """With the one container that pods of the operator have."""
    container = pod["spec"]["containers"][0]
    running = phase == "Running"
    conditions = {"PodScheduled": True, "Initialized": True, "ContainersReady": running, "Ready": running}
    return {
        "phase": phase,
        "startTime": pod["metadata"]["creationTimestamp"],
        "conditions": [
            {"type": type, "status": str(true), "lastTransitionTime": _now(), **({} if true else {"reason": "PodCompleted"})}
            for type, true in conditions.items()
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": f"sha256:{'f' * 64}",
                "containerID": f"containerd://{'e' * 64}",
                "ready": running,
                "started": running,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


def _accepted_generation(route: Object) -> int:
    parents = (route.get("status") or {}).get("parents") or []
    return parents[0]["conditions"][0]["observedGeneration"] if parents else 0


def _route_status(route: Object) -> Object:
    conditions = [
        {
            "type": type,
            "status": "True",
            "reason": type,
            "message": "",
            "lastTransitionTime": _now(),
            "observedGeneration": route["metadata"]["generation"],
        }
        for type in ("Accepted", "ResolvedRefs")
    ]
    references = route["spec"]["parentRefs"]
    return {"parents": [{"parentRef": one, "controllerName": "bench.test/gateway", "conditions": conditions} for one in references]}


# --------------------------------------------------------------------------------------------------------------------- operator


@dataclass
class Process:
    """A program that is measured."""

    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic, kw_only=True)

    def age_s(self) -> float:
        """Raises RuntimeError where it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}")
        return time.monotonic() - self.started_at

    def memory_mib(self, member: str = "VmRSS") -> float:
        """Member of /proc/<pid>/status: VmRSS now, VmHWM the most so far."""
        return mib_of(Path(f"/proc/{self.process.pid}/status").read_text(), member)

    def cpu_s(self) -> float:
        return _Stat.of(Path(f"/proc/{self.process.pid}")).cpu_s

    def others_cpu_s(self) -> float:
        """Of everything else that this program has started and that still runs: the control plane."""
        stats = [_Stat.of(folder) for folder in Path("/proc").glob("[0-9]*") if folder.name != str(self.process.pid)]
        return sum(stat.cpu_s for stat in stats if stat.parent == os.getpid())

    async def is_calm(self) -> bool:
        """Whether it hardly used the processor for a second."""
        before = self.cpu_s()
        await asyncio.sleep(1)
        return self.cpu_s() - before < _CALM_CORES


@dataclass(frozen=True)
class _Stat:
    parent: int
    cpu_s: float

    @classmethod
    def of(cls, folder: Path) -> _Stat:
        """Of /proc/<pid>; nobody's and nothing where the process has just ended."""
        try:
            members = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return cls(0, 0)
        return cls(int(members[1]), (int(members[11]) + int(members[12])) / _CLOCK_TICKS)


@dataclass
class BareKopf(Process):
    """The least that a kopf operator can be: it gets every FineTuneJob told, and counts them up to `wanted`."""

    log: Path
    wanted: int

    async def has_seen_all(self) -> bool:
        self.age_s()
        return self.wanted == 0 or "all are seen" in self.log.read_text()


@dataclass
class Operator(Process):
    """The operator's process."""

    health_port: int
    metrics_port: int
    session: aiohttp.ClientSession

    async def is_ready(self) -> bool:
        return (await self._get(self.health_port, "readyz"))[0] == 200

    async def is_working(self) -> bool:
        """Whether it leads and has nothing to do."""
        metrics = await self.metrics()
        return metrics.get("finetune_operator_leader") == 1 and metrics["finetune_operator_queue_depth"] == 0

    async def metrics(self) -> dict[str, float]:
        """Values by series, as Prometheus would read them; empty before it listens."""
        _, text = await self._get(self.metrics_port, "metrics")
        pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in pairs}

    async def _get(self, port: int, path: str) -> tuple[int, str]:
        self.age_s()
        try:
            async with self.session.get(f"http://127.0.0.1:{port}/{path}") as reply:
                return reply.status, await reply.text()
        except aiohttp.ClientConnectionError:
            return 0, ""


@asynccontextmanager
async def operator(folder: Path) -> AsyncIterator[Operator]:
    """Runs against the control plane in `folder`; entered as soon as the process is there, long before it is ready."""
    health, metrics = free_ports(2)
    command = ["-m", "finetune_operator", f"--health-port={health}", f"--metrics-port={metrics}"]
    (folder / "sitecustomize.py").write_text(_ONLY_LOOPBACK)
    async with aiohttp.ClientSession() as session:
        with _python(folder, folder / "operator.log", command) as process:
            yield Operator(process, health, metrics, session)


@contextmanager
def bare_kopf(folder: Path, wanted: int) -> Iterator[BareKopf]:
    log = folder / "kopf.log"
    with _python(folder, log, ["-c", _BARE_KOPF, str(wanted)]) as process:
        yield BareKopf(process, log, wanted)


@contextmanager
def _python(folder: Path, log: Path, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process as the operator's user; should the block fail, its last words are shown."""
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig_of(folder, OPERATOR)), "PYTHONPATH": str(folder)}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    with running(log, [sys.executable, *command], environment) as process:
        try:
            yield process
        except Exception:
            print(f"the last words of {command[1][:40]}:\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise


def mib_of(status: str, member: str) -> float:
    """MiB of a member of /proc/<pid>/status."""
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(member + ":"))) / 1024
