"""The operator's process on a real kube-apiserver, etcd and kube-controller-manager: writes per job, time to a pod, memory.

    python tests/bench/bench_operator.py --burst 200 --objects 1000 10000

Pods are said to run, and to have ended well, by a kubelet of the benchmark's own; requests and their moments are those of the API
server's audit log. Time to a pod is compared with that of a plain batch/v1 Job of the same pod and the same Job controller, which no
operator that uses Jobs can beat; a start with that of a kopf operator that does nothing, and with `import kopf`. Ratios only: the
machine may be busy. The Job controller's limit of 20 requests per second is lifted, for it would hide the operator, and etcd does not
wait for its disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from finetune_api.run import Stage
from finetune_operator.core import names
from finetune_operator.core.names import Object

from hack.cluster import gotools
from hack.cluster.paths import Paths, cache_folder
from tests.api.client import CRD_PATH, GROUP_PATH
from tests.api.control_plane import AUDIT_LOG, CONTROLLER_MANAGER, Extras, control_plane
from tests.bench.audit import BENCH, KUBELET, OPERATOR, POLICY, AuditLog, Call
from tests.bench.bed import (
    MERGE_PATCH,
    REPOSITORY,
    Api,
    Kubelet,
    Operator,
    Process,
    Refused,
    bare_kopf,
    beside,
    connection,
    mib_of,
    operator,
    until,
)
from tests.sim.scenario import NAMESPACE, make_job

SYSTEM = "finetune-system"
JOBS = f"{GROUP_PATH}/namespaces/{NAMESPACE}/finetunejobs"
VERSIONS = f"{GROUP_PATH}/namespaces/{NAMESPACE}/modelversions"
ROUTES = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes"
PLAIN_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
CONTROLLERS = ("job-controller", "deployment-controller", "replicaset-controller")
CONTROLLER_QPS = 1000

REGISTERED_WRITES, PRODUCTION_WRITES, EVENTS, DRY_RUNS, LEASES_PER_S = 15, 14, 10, 6, 0.5
ALONE_MS, BURST_P99_MS, AFTER_BURST_MIB = 150, 3000, 110
READY_S, LOADED_MIB, IDLE_CORES = 15, 300, 0.05

SETTLE_S = 2.0
CALM_S = 0.5
"""Between two jobs that are measured alone: what the last one left to be done is over."""
WATCHED_S = 5.0
"""For how long a calm process' use of the processor is watched."""
LONGEST_START_S = 600.0


def main() -> None:
    options = _options()
    # both end what was started and remove its files; a shell's background jobs would ignore the one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with fresh_cluster(CONTROLLERS) as folder:
            finished = asyncio.run(measure_work(folder, options))
        with fresh_cluster() as folder:
            asyncio.run(measure_starts(folder, finished, sorted({0, *options.objects})))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=5, help="jobs taken to production at once, for the writes. Default: %(default)s")
    parser.add_argument("--idle", type=float, default=20, help="seconds without work that are watched for writes. Default: %(default)s")
    parser.add_argument("--alone", type=int, default=10, help="jobs applied one after another. Default: %(default)s")
    parser.add_argument("--burst", type=int, default=200, help="jobs applied at once. Default: %(default)s")
    parser.add_argument("--objects", type=int, nargs="*", default=[1000, 10000], help="finished jobs at a cold start. Default: 1000 10000")
    return parser.parse_args()


@contextmanager
def fresh_cluster(controllers: tuple[str, ...] = ()) -> Iterator[Path]:
    """The folder of a control plane that serves our kinds and HTTPRoutes."""
    binaries = cache_folder(os.environ) / "bin"
    if not (binaries / "k8s").exists() or not (binaries / "etcd").exists():
        sys.exit("no API server: run `python3 -m hack.cluster up` first")
    extras = Extras((OPERATOR, BENCH, KUBELET), POLICY, controllers, CONTROLLER_QPS)
    with tempfile.TemporaryDirectory() as name, control_plane(binaries, Path(name), extras):
        asyncio.run(furnish(Path(name)))
        yield Path(name)


async def furnish(folder: Path) -> None:
    gateway = gotools.module_folder(Paths.from_environment(), "sigs.k8s.io/gateway-api") / "config/crd/standard"
    files = [*(REPOSITORY / "crds").glob("*.yaml"), gateway / "gateway.networking.k8s.io_httproutes.yaml"]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    async with connection(folder, BENCH) as api:
        await api.create(CRD_PATH, [yaml.safe_load(file.read_text()) for file in files])
        await api.create("/api/v1/namespaces", [{"metadata": {"name": name}} for name in (SYSTEM, NAMESPACE)])
        await api.create(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims", [{"metadata": {"name": "base"}, "spec": claim}])

        async def are_served() -> bool:
            return all([await api.serves(path) for path in (JOBS, VERSIONS, ROUTES)])

        await until(are_served, "every kind is served")


async def measure_work(folder: Path, options: argparse.Namespace) -> Object:
    """Parts 1 and 2, by one process. Returns a job that has ended, as the API server shows it."""
    log = AuditLog(folder / AUDIT_LOG)
    async with connection(folder, BENCH) as api, connection(folder, KUBELET) as kubelet_api, operator(folder) as process:
        await until(process.is_working, "the operator leads")
        await asyncio.sleep(SETTLE_S)
        async with beside(Kubelet(kubelet_api).run()):
            finished = await measure_writes(api, log, options)
        await measure_pods(api, log, process, options)
    return finished


def job_of(name: str) -> Object:
    """Publishes to a model of its own, so that none waits for another one's version."""
    place = {"gateway": {"name": "gateway", "namespace": "gateway-system"}, "hostnames": [f"{name}.example.com"]}
    gateway = {"type": "GatewayAPI", "gatewayAPI": place}
    steps = [
        {"name": "canary", "stage": "Canary", "weight": 5, "hold": "1s"},
        {"name": "staging", "stage": "Staging", "weight": 10, "hold": "1s"},
        {"name": "production", "stage": "Production"},
    ]
    publish = {"model": name, "rollout": {"traffic": gateway, "steps": steps}}
    return {"apiVersion": names.API_VERSION, "kind": names.FINETUNEJOB, **make_job(name, publish=publish)}


# ------------------------------------------------------------------------------------------------------------------- 1. writes

APART = ("events", "leases")
ROLLOUT = ("modelversions/status", "deployments", "services", "httproutes")
"""What is written between a version's registration and production; all else comes before it."""


async def measure_writes(api: Api, log: AuditLog, options: argparse.Namespace) -> Object:
    """Part 1. Returns a job that has ended."""
    log.news()
    started = time.monotonic()
    await api.create(JOBS, [job_of(f"life-{number}") for number in range(options.lives)])

    async def ended() -> list[Object] | None:
        jobs, versions = await api.items(JOBS), await api.items(VERSIONS)
        done = all(state(job, "phase") == "Succeeded" for job in jobs)
        return jobs if done and sum(state(version, "stage") == "Production" for version in versions) == options.lives else None

    jobs = await until(ended, "every job has succeeded and its version is in production")
    await asyncio.sleep(SETTLE_S)
    seconds, calls = time.monotonic() - started, log.news()
    await asyncio.sleep(options.idle)
    print_writes(options.lives, [call for call in calls if call.user == OPERATOR], seconds)
    idle = sum(call.persists and call.resource != "leases" for call in log.news() if call.user == OPERATOR)
    line(f"idle for {options.idle:.0f} s, Lease apart", idle, 0, ratio(idle, 0))
    return jobs[0]


def state(live: Object, member: str) -> object:
    return (live.get("status") or {}).get(member)


def print_writes(lives: int, calls: Sequence[Call], seconds: float) -> None:
    counts = Counter((call.verb, call.resource) for call in calls if call.persists and call.resource not in APART)
    apart = Counter(call.resource for call in calls if call.persists)
    print(f"\n1. writes of the operator per job, mean of {lives} jobs at once")
    line("", "writes", "limit", "x limit")
    for title, limit, later in (("apply → registered", REGISTERED_WRITES, False), ("registered → production", PRODUCTION_WRITES, True)):
        part = {what: count / lives for what, count in sorted(counts.items()) if (what[1] in ROLLOUT) == later}
        line(title, sum(part.values()), limit, ratio(sum(part.values()), limit))
        for (verb, resource), count in part.items():
            line(f"    {verb} {resource}", count, limit, ratio(count, limit))
    others: dict[str, tuple[float, float]] = {
        "apart: dry-run creates": (sum(call.dry_run for call in calls) / lives, DRY_RUNS),
        "apart: Events": (apart["events"] / lives, EVENTS),
        "apart: Lease, per second": (apart["leases"] / seconds, LEASES_PER_S),
        "refused by the API server": (sum(not call.reads and call.code >= 300 for call in calls) / lives, 0),
    }
    for title, (value, most) in others.items():
        line(title, value, most, ratio(value, most))
    print("refused: " + listed(f"{call.verb} {call.resource} ({call.code})" for call in calls if not call.reads and call.code >= 300))
    print("reads beside watches: " + listed(f"{call.verb} {call.resource}" for call in calls if call.verb in ("get", "list")))


def listed(what: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(what).items())) or "none"


# --------------------------------------------------------------------------------------------------------------------- 2. pods

PLAIN, OURS = "batch/v1 Job", "FineTuneJob"
FIRST_ATTEMPT = f"-{Stage.PREPARE}-1"


@dataclass(frozen=True)
class Way:
    """A kind of job, and how one of a name is made."""

    path: str
    prefix: str
    make: Callable[[str], Object]


@dataclass(frozen=True)
class Waits:
    """Seconds from apply to the first pod, of each job; `span`: from the first apply to the last pod."""

    each: list[float]
    span: float = math.nan

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.each)

    @property
    def p99_ms(self) -> float:
        return 1e3 * sorted(self.each)[math.ceil(0.99 * len(self.each)) - 1]

    @property
    def per_s(self) -> float:
        return len(self.each) / self.span


@dataclass
class FirstPods:
    """When jobs were asked for and when their first pods were there, by the job's name, in seconds of the API server's clock."""

    log: AuditLog
    asked: dict[str, float] = field(default_factory=dict)
    there: dict[str, float] = field(default_factory=dict)

    async def of(self, api: Api, way: Way, wanted: Sequence[str]) -> Waits:
        """Applies jobs at once and waits for their pods."""
        jobs = [f"{way.prefix}-{name}" for name in wanted]
        await api.create(way.path, [way.make(job) for job in jobs])

        async def are_there() -> bool:
            self._read()
            return self.there.keys() >= set(jobs)

        await until(are_there, f"{len(jobs)} pods of {way.prefix}", every_s=0.05)
        span = max(self.there[job] for job in jobs) - min(self.asked[job] for job in jobs)
        return Waits([self.there[job] - self.asked[job] for job in jobs], span)

    def _read(self) -> None:
        for call in self.log.news():
            if call.user == BENCH:
                self.asked[call.name] = call.received_at
            elif call.user == CONTROLLER_MANAGER and call.persists:
                self.there.setdefault(call.owner.removesuffix(FIRST_ATTEMPT), call.answered_at)


async def measure_pods(api: Api, log: AuditLog, process: Operator, options: argparse.Namespace) -> None:
    """Part 2. No kubelet works meanwhile: pods stay as they were created, of either kind."""
    ways = {PLAIN: Way(PLAIN_JOBS, "plain", await plain_job(api)), OURS: Way(JOBS, "tune", job_of)}
    pods = FirstPods(log)
    single: dict[str, list[float]] = {title: [] for title in ways}
    for number in range(options.alone):
        for title, way in ways.items():
            single[title] += (await pods.of(api, way, [f"alone-{number}"])).each
            await asyncio.sleep(CALM_S)
    burst: dict[str, Waits] = {}
    cpu: dict[str, tuple[float, float]] = {}
    for title, way in ways.items():
        before = process.cpu_s(), process.others_cpu_s()
        burst[title] = await pods.of(api, way, [f"burst-{number}" for number in range(options.burst)])
        await asyncio.sleep(SETTLE_S)
        cpu[title] = process.cpu_s() - before[0], process.others_cpu_s() - before[1]
    print_pods({title: Waits(each) for title, each in single.items()}, burst)
    line("burst, control plane's CPU ms per job", *compared(*(1e3 * cpu[title][1] / options.burst for title in ways)))
    line("burst, operator's CPU ms per job", "", 1e3 * cpu[OURS][0] / options.burst)
    memory = process.memory_mib()
    line("operator afterwards, resident MiB", "", memory, "", AFTER_BURST_MIB, ratio(memory, AFTER_BURST_MIB))


async def plain_job(api: Api) -> Callable[[str], Object]:
    """A stage's Job of part 1 as if a person had made it: the same pod, but nothing by which the operator knows it."""
    stage = (await api.items(PLAIN_JOBS, labelSelector=f"{names.STAGE_LABEL}={Stage.PREPARE}"))[0]
    spec = {key: value for key, value in stage["spec"].items() if key not in ("selector", "manualSelector")}
    template = {**spec["template"], "metadata": {"annotations": spec["template"]["metadata"]["annotations"]}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "spec": {**spec, "template": template}}
    return lambda name: {**body, "metadata": {"name": name}}


def print_pods(alone: dict[str, Waits], burst: dict[str, Waits]) -> None:
    count = len(burst[OURS].each)
    print(f"\n2. apply → first pod created, ms; alone: median of {len(alone[OURS].each)}; burst: {count} jobs at once")
    line("", PLAIN, OURS, "x Job", "limit", "x limit")

    def compare(title: str, value: Callable[[Waits], float], waits: dict[str, Waits], limit: float | None = None) -> None:
        line(title, *compared(value(waits[PLAIN]), value(waits[OURS]), limit))

    compare("alone, median", lambda waits: waits.median_ms, alone, ALONE_MS)
    compare("burst, p50", lambda waits: waits.median_ms, burst)
    compare("burst, p99", lambda waits: waits.p99_ms, burst, BURST_P99_MS)
    compare("burst, jobs per second", lambda waits: waits.per_s, burst)


# ------------------------------------------------------------------------------------------------------------------- 3. starts


async def measure_starts(folder: Path, finished: Object, counts: Sequence[int]) -> None:
    """Part 3: the operator's process from nothing, with ever more jobs that have ended."""
    size = len(json.dumps({key: finished[key] for key in ("spec", "status")}))
    print(f"\n3. cold starts beside finished FineTuneJobs, each with {size / 1e3:.1f} kB of spec and status")
    log, there, floor = AuditLog(folder / AUDIT_LOG), 0, import_mib()
    async with connection(folder, BENCH) as api:
        for count in counts:
            async with taken_as_they_are(api, finished):
                await add_finished(api, finished, range(there, count))
            there = count
            await api.pages(JOBS)  # or the first to start would also wait for the API server's cache
            peer = await peer_start(folder, count)
            log.news()
            ours = await own_start(folder, count)
            writes = sum(call.persists and call.resource != "leases" for call in log.news() if call.user == OPERATOR)
            print_start(count, peer, ours, writes, floor)


def import_mib() -> float:
    command = [sys.executable, "-c", "import kopf; print(open('/proc/self/status').read())"]
    return mib_of(subprocess.run(command, check=True, capture_output=True, text=True).stdout, "VmRSS")


@asynccontextmanager
async def taken_as_they_are(api: Api, finished: Object) -> AsyncIterator[None]:
    """Meanwhile FineTuneJobs are created with their status and unchecked: of 10 ms of the API server for each, little is left."""
    path = f"{CRD_PATH}/finetunejobs.{names.GROUP}"
    versions = (await api.call("GET", path))["spec"]["versions"]
    open_schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    bare = [{**{key: value for key, value in version.items() if key != "subresources"}, "schema": open_schema} for version in versions]
    await change_versions(api, path, bare, finished, keeps_status=True)
    yield
    await change_versions(api, path, versions, finished, keeps_status=False)


async def change_versions(api: Api, path: str, versions: list[Object], finished: Object, *, keeps_status: bool) -> None:
    """Returns once the API server goes by them."""
    await api.call("PATCH", path, {"spec": {"versions": versions}}, type=MERGE_PATCH)

    async def is_in_force() -> bool:
        try:
            answer = await api.call("POST", JOBS, copy_of(finished, "probe"), dryRun="All")
        except Refused:  # 503 while the handlers change
            return False
        return (state(answer, "phase") is not None) == keeps_status

    await until(is_in_force, "the changed CRD is in force")


async def add_finished(api: Api, finished: Object, numbers: range) -> None:
    await api.create(JOBS, (copy_of(finished, f"finished-{number}") for number in numbers))


def copy_of(finished: Object, name: str) -> Object:
    return {**{key: finished[key] for key in ("apiVersion", "kind", "spec", "status")}, "metadata": {"name": name}}


@dataclass(frozen=True)
class Start:
    """Seconds since the process began; MiB."""

    ready: float
    calm: float
    cpu: float
    memory: float
    peak: float
    idle_cores: float


async def peer_start(folder: Path, count: int) -> Start:
    with bare_kopf(folder, count) as process:
        await until(process.has_seen_all, "bare kopf has seen every job", LONGEST_START_S, every_s=0.02)
        return await start_of(process, process.age_s() if count else math.nan)


async def own_start(folder: Path, count: int) -> Start:
    async with operator(folder) as process:
        await until(process.is_ready, "the operator is ready", LONGEST_START_S, every_s=0.02)
        ready = process.age_s()

        async def has_looked_at_all() -> bool:
            passes = (await process.metrics()).get(f'finetune_operator_pass_duration_seconds_count{{kind="{names.FINETUNEJOB}"}}', 0)
            return passes >= count and await process.is_working()

        await until(has_looked_at_all, "a pass over every job", LONGEST_START_S)
        return await start_of(process, ready)


async def start_of(process: Process, ready: float) -> Start:
    await until(process.is_calm, "it is calm", LONGEST_START_S)
    calm, cpu, memory, peak = process.age_s(), process.cpu_s(), process.memory_mib(), process.memory_mib("VmHWM")
    await asyncio.sleep(WATCHED_S)
    return Start(ready, calm, cpu, memory, peak, (process.cpu_s() - cpu) / WATCHED_S)


def print_start(count: int, peer: Start, ours: Start, writes: int, floor: float) -> None:
    line(f"{count:,} jobs", "bare kopf", "operator", "x kopf", "limit", "x limit")
    line("  ready, s", *compared(peer.ready, ours.ready, READY_S))
    line("  calm again, s", *compared(peer.calm, ours.calm))
    line("  CPU until calm, s", *compared(peer.cpu, ours.cpu))
    line("  resident, MiB", *compared(peer.memory, ours.memory, LOADED_MIB))
    line("  resident, MiB: `import kopf` alone", *compared(floor, ours.memory))
    line("  resident at most, MiB", *compared(peer.peak, ours.peak))
    line("  cores when calm", *compared(peer.idle_cores, ours.idle_cores, IDLE_CORES))
    line("  writes, Lease apart", "", writes, "", 0, ratio(writes, 0))


# ---------------------------------------------------------------------------------------------------------------------- tables


def ratio(value: float, limit: float) -> str:
    """`value` as a multiple of `limit`; where nothing is allowed at all, whether it is kept."""
    if limit == 0:
        return "kept" if value == 0 else "over"
    return f"{value / limit:.2f}"


def compared(peer: float, ours: float, limit: float | None = None) -> list[float | str]:
    """A peer that used nothing, or has no such figure, is nothing to compare with."""
    cells: list[float | str] = [peer, ours, ratio(ours, peer) if peer > 0 else ""]
    return cells if limit is None else [*cells, limit, ratio(ours, limit)]


def line(title: str, *cells: float | str) -> None:
    print(f"{title:<38}" + "".join(f"{_shown(cell):>14}" for cell in cells), flush=True)


def _shown(cell: float | str) -> str:
    if isinstance(cell, str) or math.isnan(cell):
        return cell if isinstance(cell, str) else ""
    return f"{cell:.0f}" if cell >= 100 or cell == int(cell) else f"{cell:.3g}"


if __name__ == "__main__":
    main()
