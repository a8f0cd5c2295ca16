"""Prometheus metrics of the operator. No label holds an object's name: their number must not grow with the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.core import names
from finetune_operator.engine.queue import Queue
from finetune_operator.engine.store import Store

# a second series per counter with the time of its birth, which nobody asks for
disable_created_metrics()  # type: ignore[no-untyped-call]

_PREFIX = "finetune_operator"
_PASS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LAG_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)


class _State(Collector):
    """What is counted when asked for: depth and age of the queue, objects by phase."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(f"{_PREFIX}_queue_depth", "Keys that wait for their pass.", self._queue.depth)
        yield GaugeMetricFamily(
            f"{_PREFIX}_queue_oldest_seconds", "Seconds since the key that waits or runs for longest began to.", self._queue.oldest_s
        )
        yield GaugeMetricFamily(f"{_PREFIX}_store_objects", "Objects held in memory.", len(self._store))
        yield GaugeMetricFamily(f"{_PREFIX}_store_unreadable", "Objects put aside because they cannot be read.", self._store.unreadable)
        yield GaugeMetricFamily(f"{_PREFIX}_store_synced", "1 once every watched kind was listed.", float(self._store.synced))
        yield self._by_phase(f"{_PREFIX}_finetunejobs", "FineTuneJobs by phase.", "phase", names.FINETUNEJOB)
        yield self._by_phase(f"{_PREFIX}_modelversions", "ModelVersions by stage.", "stage", names.MODELVERSION)

    def _by_phase(self, name: str, text: str, label: str, kind: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=[label])
        for phase, count in self._store.phases(kind):
            family.add_metric([phase or "Pending"], count)
        return family


@dataclass
class Metrics:
    """One set of metrics in a registry of its own, so that several operators can live in one process (tests)."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.passes = Histogram(
            f"{_PREFIX}_pass_duration_seconds",
            "Seconds of a pass over an object, API calls included.",
            ["kind"],
            registry=self.registry,
            buckets=_PASS_BUCKETS,
        )
        self.pass_errors = Counter(
            f"{_PREFIX}_pass_errors", "Passes that could not be finished, by cause.", ["kind", "reason"], registry=self.registry
        )
        self.api_requests = Counter(
            f"{_PREFIX}_api_requests",
            "Requests to the API server by verb, resource and status code (0: no answer).",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.loop_lag = Histogram(
            f"{_PREFIX}_event_loop_lag_seconds",
            "Seconds by which the event loop wakes up late.",
            registry=self.registry,
            buckets=_LAG_BUCKETS,
        )
        self.leader = Gauge(f"{_PREFIX}_leader", "1 while this replica leads.", registry=self.registry)
        self.events_dropped = Counter(f"{_PREFIX}_events_dropped", "Kubernetes Events that were not posted.", registry=self.registry)
        self.progress_reports = Counter(
            f"{_PREFIX}_progress_reports", "Progress reports of pods by HTTP status code.", ["code"], registry=self.registry
        )
        self.progress_refused = Counter(
            f"{_PREFIX}_progress_refused", "Connections of pods that were closed at once, as there were too many.", registry=self.registry
        )
        self.unlisted = Gauge(
            f"{_PREFIX}_unlisted", "Watched kinds, by namespace, that may not be listed: what needs them waits.", registry=self.registry
        )
        self.resync_corrections = Counter(
            f"{_PREFIX}_resync_corrections",
            "Objects whose change or deletion no watch had told, found by the resync LIST.",
            ["kind"],
            registry=self.registry,
        )

    def watch(self, store: Store, queue: Queue) -> None:
        self.registry.register(_State(store, queue))

    def count_call(self, verb: str, resource: str, status: int) -> None:
        self.api_requests.labels(verb, resource, str(status)).inc()
