"""What kopf's events, our own LISTs and our own writes have told us: the only thing a pass reads.

Objects are kept as JSON text and decoded on reading: a tenth of the memory of dicts, and no reader can change what another sees.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.kube.resources import AUTOSCALER, REFUSAL

log = logging.getLogger(__name__)
T = TypeVar("T")

MODEL = "Model"
"""Kind of the key under which all versions of a model are planned."""

_TOMBSTONES = 8192


class Key(NamedTuple):
    """What a pass is about: a FineTuneJob, or a model (kind `Model`) with all its versions."""

    kind: str
    namespace: str
    name: str


class Name(NamedTuple):
    """Where an object lies in the store."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class _Record:
    uid: str
    resource_version: int
    text: str
    content: int
    """Hash of everything but the resourceVersion: tells a change from an echo."""
    keys: tuple[Key, ...]
    phase: str
    moment: int
    """The store's `moment` at which it was learnt."""


class Store:
    """Objects by kind, namespace and name, and by the keys that they concern."""

    def __init__(self) -> None:
        self.synced = False
        self._records: dict[Name, _Record] = {}
        self._by_key: defaultdict[Key, set[Name]] = defaultdict(set)
        self._by_kind: defaultdict[str, set[Name]] = defaultdict(set)
        self._facts: dict[Name, Any] = {}
        self._gone: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._newest: dict[str, int] = {}
        self._phases: Counter[tuple[str, str]] = Counter()
        self.moment = 0
        """Counts what was learnt: of two facts the one with the higher moment came in later, whatever their resourceVersions."""
        self.unreadable = 0
        """Objects that were put aside because no reader here was made for what they hold."""

    def put(self, live: Object, *, read_after: int | None = None) -> set[Key]:
        """Keys that this state concerns; empty where it is old news, or differs in nothing that a pass looks at.

        A state older than the one known is dropped (watches, LISTs and answers to own writes overtake each other), also when the
        one known was of another uid or is deleted by now. With `read_after` (a `moment`) it is what the API server answered to a
        read that was sent then: what was known before that gives way, be its version higher (a restored backup) or be it gone (an
        object that lost the label by which it is watched).
        """
        metadata = live["metadata"]
        name = name_of(live)
        version = int(metadata["resourceVersion"])
        before = self._records.get(name)
        if before is not None and before.resource_version >= version and not _gives_way(before.moment, read_after):
            return set()
        gone_at, gone_in = self._gone.get(metadata["uid"], (-1, 0))
        if gone_at >= version and not _gives_way(gone_in, read_after):
            return set()
        self._gone.pop(metadata["uid"], None)
        self.moment += 1
        self._newest[name.kind] = max(version, self._newest.get(name.kind, 0))
        record = self._read(live, version)
        self._remove(name)
        self._records[name] = record
        self._by_kind[name.kind].add(name)
        for key in record.keys:
            self._by_key[key].add(name)
        self._phases[name.kind, record.phase] += 1
        if before is not None and before.uid == record.uid and before.content == record.content:
            return set()
        return set(record.keys) | (set(before.keys) if before else set())

    def forget(self, name: Name, uid: str, version: int | None = None) -> set[Key]:
        """Keys concerned by an object that is gone; a later object of the same name stays. `version` is that of its deletion.

        A watch calls an object deleted that lost the label it is watched by; one that has it again since then, at a later version, stays.
        """
        before = self._records.get(name)
        last = version if version is not None else (before.resource_version if before and before.uid == uid else 0)
        self.moment += 1
        self._gone[uid] = max(last, self._gone.pop(uid, (0, 0))[0]), self.moment
        self._newest[name.kind] = max(last, self._newest.get(name.kind, 0))
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)
        if before is None or before.uid != uid or before.resource_version > last:
            return set()
        self._remove(name)
        return set(before.keys)

    def deleted(self, last: Object) -> set[Key]:
        """`forget` of an object as a DELETED event carries it."""
        return self.forget(name_of(last), last["metadata"]["uid"], int(last["metadata"]["resourceVersion"]))

    def newest(self, kind: str) -> int:
        """The highest resourceVersion that anything of a kind was seen with, deletions included."""
        return self._newest.get(kind, 0)

    def rewind(self, kind: str) -> None:
        """Takes resourceVersions of a kind for nothing: the API server's history went back. What is listed next counts."""
        self._newest.pop(kind, None)
        self._gone.clear()
        for name in self._by_kind.get(kind, ()):
            self._records[name] = replace(self._records[name], resource_version=0)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        record = self._records.get(Name(kind, namespace, name))
        return _decoded(record) if record else None

    def uid(self, kind: str, namespace: str, name: str) -> str | None:
        record = self._records.get(Name(kind, namespace, name))
        return record.uid if record else None

    def version(self, name: Name) -> int:
        """resourceVersion of an object; -1 where there is none."""
        record = self._records.get(name)
        return record.resource_version if record else -1

    def of(self, key: Key, kind: str) -> list[Object]:
        """Objects of a kind that concern a key, by name."""
        return [_decoded(self._records[name]) for name in sorted(self._by_key.get(key, ())) if name.kind == kind]

    def facts(self, kind: str, read: Callable[[Object], T]) -> list[T]:
        """What `read` makes of every object of a kind, in no order. Made once for each state of an object; one reader for each kind."""
        return [self._fact(name, read) for name in self._by_kind.get(kind, ())]

    def _fact(self, name: Name, read: Callable[[Object], T]) -> T:
        if name not in self._facts:
            self._facts[name] = read(_decoded(self._records[name]))
        fact: T = self._facts[name]
        return fact

    def all_keys(self) -> set[Key]:
        """Every key that has an object."""
        return {key for key, members in self._by_key.items() if members}

    def keys_of(self, kind: str) -> set[Key]:
        """Keys that objects of a kind concern."""
        return {key for name in self._by_kind.get(kind, ()) for key in self._records[name].keys}

    def versions(self, kind: str, namespace: str = "") -> dict[Name, tuple[str, int]]:
        """uid and resourceVersion of each object of a kind; of one namespace where it is given."""
        known = self._by_kind.get(kind, set())
        return {
            name: (self._records[name].uid, self._records[name].resource_version) for name in known if namespace in ("", name.namespace)
        }

    def phases(self, kind: str) -> Iterator[tuple[str, int]]:
        """(phase, number of objects) of a kind, for metrics only."""
        return ((phase, count) for (of, phase), count in self._phases.items() if of == kind)

    def __len__(self) -> int:
        return len(self._records)

    def _read(self, live: Object, version: int) -> _Record:
        """An object that no reader was made for concerns nobody: one of them must not stop the work on all others."""
        try:
            return _record(live, version, self.moment)
        except Exception:
            self.unreadable += 1
            log.exception(
                "%s %s cannot be read and is left aside", live["kind"], name_of(live).name, extra={"object": "/".join(name_of(live))}
            )
            metadata = {key: live["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
            bare = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
            return _Record(metadata["uid"], version, json.dumps(bare), 0, (), "", self.moment)

    def _remove(self, name: Name) -> None:
        record = self._records.pop(name, None)
        self._facts.pop(name, None)
        if record is None:
            return
        self._by_kind[name.kind].discard(name)
        for key in record.keys:
            members = self._by_key[key]
            members.discard(name)
            if not members:
                del self._by_key[key]
        self._phases[name.kind, record.phase] -= 1


def _gives_way(learnt_at: int, read_after: int | None) -> bool:
    return read_after is not None and learnt_at <= read_after


def name_of(live: Object) -> Name:
    metadata = live["metadata"]
    return Name(live["kind"], metadata["namespace"], metadata["name"])


def keys_of(live: Object) -> tuple[Key, ...]:
    """Whose pass an object matters to: by its labels, or by itself."""
    metadata = live["metadata"]
    namespace, labels = metadata["namespace"], metadata.get("labels") or {}
    if live["kind"] == names.FINETUNEJOB:
        return (Key(names.FINETUNEJOB, namespace, metadata["name"]),)
    if live["kind"] == names.MODELVERSION:
        spec = live.get("spec") or {}
        job = (spec.get("lineage") or {}).get("jobRef")
        return (
            Key(MODEL, namespace, spec.get("model", "")),
            *((Key(names.FINETUNEJOB, namespace, job),) if job else ()),
        )
    if live["kind"] == AUTOSCALER.kind:
        target = (live.get("spec") or {}).get("scaleTargetRef") or {}
        model = model_of(str(target.get("name", ""))) if target.get("kind") == "Deployment" else ""
        return (Key(MODEL, namespace, model),) if model else ()
    if live["kind"] == REFUSAL.kind:
        # whoever may write Events may leave any of this out
        about = job_of_refusal((live.get("involvedObject") or {}).get("name") or "")
        return (Key(names.FINETUNEJOB, namespace, about),) if about else ()
    found = [
        *([Key(names.FINETUNEJOB, namespace, labels[names.JOB_LABEL])] if labels.get(names.JOB_LABEL) else []),
        *([Key(MODEL, namespace, labels[names.MODEL_LABEL])] if labels.get(names.MODEL_LABEL) else []),
        # a claim is labelled with the job that made it, and later belongs to versions
        *(Key(MODEL, namespace, model_of(owner["name"])) for owner in metadata.get("ownerReferences") or () if _is_version(owner)),
    ]
    return tuple(dict.fromkeys(found))


def _is_version(owner: Object) -> bool:
    return bool(owner["kind"] == names.MODELVERSION and owner["apiVersion"].startswith(names.GROUP))


def model_of(version: str) -> str:
    """The model that a ModelVersion belongs to, by its name `<model>-v<number>`."""
    return version.rpartition("-v")[0]


def job_of_refusal(stage_job: str) -> str | None:
    """The FineTuneJob whose stage Job has this name; an Event has no labels of the object it is about."""
    job, _, attempt = stage_job.rpartition("-")
    job, _, stage = job.rpartition("-")
    return job if job and stage and attempt.isdigit() else None


def _record(live: Object, version: int, moment: int) -> _Record:
    slim = slimmed(live)
    metadata = slim["metadata"]
    text = json.dumps(slim, separators=(",", ":"))
    content = json.dumps({**slim, "metadata": {**metadata, "resourceVersion": ""}}, separators=(",", ":"))
    status = slim.get("status") or {}
    phase = str(status.get("phase") or status.get("stage") or "")
    return _Record(metadata["uid"], version, text, hash(content), keys_of(slim), phase, moment)


def _decoded(record: _Record) -> Object:
    live: Object = json.loads(record.text)
    return live


_ALWAYS_DROPPED = ("managedFields", "selfLink")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def slimmed(live: Object) -> Object:
    """The parts of an object that any pass looks at; the rest never enters memory. `live` is left as it is."""
    metadata = {key: value for key, value in live["metadata"].items() if key not in _ALWAYS_DROPPED}
    annotations = {key: value for key, value in (metadata.pop("annotations", None) or {}).items() if key != _LAST_APPLIED}
    if annotations:
        metadata["annotations"] = annotations
    slim = {**live, "metadata": metadata}
    kept = _KEPT.get(live["kind"])
    if kept is None:
        return slim
    return {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": _only(metadata, _METADATA), **_only(live, kept)}


_METADATA: Any = dict.fromkeys(
    (
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "labels",
        "ownerReferences",
    ),
    True,
)
_CONTAINER_STATUS = dict.fromkeys(("name", "ready", "started", "restartCount", "state", "lastState", "image"), True)
_KEPT: dict[str, Any] = {
    "Pod": {
        "spec": {"nodeName": True},
        "status": {
            "phase": True,
            "reason": True,
            "message": True,
            "conditions": True,
            "startTime": True,
            "containerStatuses": _CONTAINER_STATUS,
            "initContainerStatuses": _CONTAINER_STATUS,
        },
    },
    "Job": {"spec": {"suspend": True, "completions": True, "parallelism": True}, "status": True},
    "HorizontalPodAutoscaler": {"spec": {"scaleTargetRef": True}},
    "Event": {
        "involvedObject": True,
        "reason": True,
        "message": True,
        "firstTimestamp": True,
        "lastTimestamp": True,
        "eventTime": True,
        "count": True,
        "series": True,
    },
}
"""What is kept of kinds of which there are many, or whose templates are large (a Job's holds the whole run)."""


def _only(value: Any, kept: Any) -> Any:
    if kept is True:
        return value
    if isinstance(value, list):
        return [_only(item, kept) for item in value]
    return {key: _only(value[key], within) for key, within in kept.items() if value.get(key) is not None}
