"""What the rest of a cluster does, one small step at a time: Job controller, scheduler, kubelet, Deployment controller, Gateway, GC.

Each stage's pods end as a script says, server pods flap and Gateways take their time as told. `step` does one thing of all that could
happen at this moment, chosen by the seed; `due` says when more can.
"""

from __future__ import annotations

import copy
import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from finetune_api.answer import Artifact, CheckpointReport, DatasetReport, ParityReport, StageResult
from finetune_api.outcome import ExitCode
from finetune_api.run import Stage
from finetune_api.status import timestamp
from finetune_operator.core import names
from finetune_operator.core.names import Object

from tests.sim.cluster import Cluster, Id

Ending = Literal["ok", "crash", "invalid", "preempted", "node-lost", "vanished"]
"""How a pod ends. node-lost: it stays Terminating until somebody frees it. vanished: after success, before anybody read it."""

GGUF_SHA = "c" * 64


@dataclass
class Kubelet:
    """`script` lists the endings of a stage's pods in order; past its end they are ok."""

    cluster: Cluster
    rng: random.Random
    script: dict[Stage, list[Ending]] = field(default_factory=dict)
    started: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Pods that ran, by `<stage>-<attempt>`: twice in one attempt is a fault."""
    ran: list[tuple[Stage, Ending]] = field(default_factory=list)
    """Pods that worked to their end, in order; not those that only tell again what a stage answered."""
    most_live: int = 0
    """Most pods of stages that ever were alive at once, by job."""
    flaps: int = 0
    """So often a server pod that answers stops to, for `recovers_after`."""
    recovers_after: timedelta = timedelta(seconds=20)
    never_ready: set[str] = field(default_factory=set)
    """Deployments whose pods never answer."""
    gateway_delay: timedelta = timedelta()
    """From a change of a route until the Gateway has taken it over."""
    gateway_accepts: Callable[[Object], bool] = lambda route: True
    """What it says of a route once it has looked at it."""
    _later: dict[tuple[Id, str], datetime] = field(default_factory=dict)
    """What happens to an object by itself, and when."""

    def due(self) -> datetime | None:
        """The next moment at which something happens by itself."""
        return min((moment for moment in self._later.values() if moment > self.cluster.now), default=None)

    def step(self) -> bool:
        """One change of the world; False where nothing is left to do."""
        if self.flaps and self.rng.random() < 0.02 and self._flap():
            return True
        possible: list[Callable[[], None]] = []
        for id, live in sorted(self.cluster.objects.items()):
            act = {"jobs": self._job, "pods": self._pod, "deployments": self._deployment, "httproutes": self._route}.get(id[0])
            change = act(id, live) if act else None
            if change is not None:
                possible.append(change)
        if not possible:
            return self.cluster.collect()
        self.rng.choice(possible)()
        self._count_live()
        return True

    def _is_due(self, id: Id, what: str, after: timedelta) -> bool:
        """Whether `after` has passed since this was first asked."""
        return self._later.setdefault((id, what), self.cluster.now + after) <= self.cluster.now

    def _count_live(self) -> None:
        live = defaultdict(int)
        for id, pod in self.cluster.objects.items():
            labels = pod["metadata"].get("labels") or {}
            if id[0] == "pods" and names.STAGE_LABEL in labels and pod["status"]["phase"] in ("Pending", "Running"):
                live[labels[names.JOB_UID_LABEL]] += 1
        self.most_live = max([self.most_live, *live.values()])

    # ------------------------------------------------------------------------------------------------------------------- jobs

    def _job(self, id: Id, job: Object) -> Callable[[], None] | None:
        pods = [pod_id for pod_id in self.cluster.dependents(job["metadata"]["uid"]) if pod_id[0] == "pods"]
        conditions = {condition["type"] for condition in (job.get("status") or {}).get("conditions", [])}
        if "deletionTimestamp" in job["metadata"]:
            return self.cluster.collect if not pods else None
        if conditions & {"Complete", "Failed"}:
            return None
        if not pods and (job.get("status") or {}).get("startTime"):
            # of a pod that was deleted: with backoffLimit 0 there is no other
            return lambda: self._fail_job(id)
        if not pods:
            return lambda: self._start_pod(job)
        pod = self.cluster.objects[pods[0]]
        if pod["status"]["phase"] == "Succeeded":
            return lambda: self._end_job(id, "Complete", "CompletionsReached", pods[0])
        if pod["status"]["phase"] == "Failed":
            return lambda: self._end_job(id, "Failed", "BackoffLimitExceeded", pods[0])
        return None

    def _start_pod(self, job: Object) -> None:
        template = job["spec"]["template"]
        id = ("jobs", job["metadata"]["namespace"], job["metadata"]["name"])
        self.cluster.set_status(id, {**(job.get("status") or {}), "startTime": timestamp(self.cluster.now)})
        metadata = {
            "generateName": job["metadata"]["name"] + "-0-",
            "namespace": job["metadata"]["namespace"],
            "labels": {**template["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": "0"},
            "ownerReferences": [names.owner_reference(job)],
        }
        self.cluster.put_new("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})

    def _fail_job(self, id: Id) -> None:
        now = timestamp(self.cluster.now)
        entry = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "", "lastTransitionTime": now}
        self.cluster.set_status(id, {"conditions": [entry]})

    def _end_job(self, id: Id, condition: str, reason: str, pod: Id) -> None:
        now = timestamp(self.cluster.now)
        entry = {"type": condition, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now}
        self.cluster.set_status(id, {"conditions": [entry], **({"completionTime": now} if condition == "Complete" else {})})
        if self.cluster.objects[pod]["metadata"].get("vanishing"):
            self.cluster.remove(pod)

    # ------------------------------------------------------------------------------------------------------------------- pods

    def _pod(self, id: Id, pod: Object) -> Callable[[], None] | None:
        if names.STAGE_LABEL not in (pod["metadata"].get("labels") or {}):
            return self._server_pod(id, pod)
        phase = pod["status"]["phase"]
        if "deletionTimestamp" in pod["metadata"] and not pod["metadata"].get("lost"):
            return lambda: self._terminate(id)
        if phase == "Pending":
            has_volumes = all(claim in self.cluster.objects for claim in self._claims(pod))
            return (lambda: self._run(id)) if has_volumes else None
        if phase == "Running" and not pod["metadata"].get("lost"):
            return lambda: self._finish(id)
        return None

    def _terminate(self, id: Id) -> None:
        pod = self.cluster.objects[id]
        if pod["status"]["phase"] in ("Pending", "Running"):
            self._set_phase(id, "Failed", ExitCode.TERMINATED, None)
        self.cluster.remove(id)

    def _run(self, id: Id) -> None:
        pod = self.cluster.objects[id]
        labels = pod["metadata"]["labels"]
        self.started[f"{labels[names.STAGE_LABEL]}-{labels[names.ATTEMPT_LABEL]}"].append(id[2])
        self.cluster.set_status(id, {"phase": "Running", "startTime": timestamp(self.cluster.now)})
        for claim in self._claims(pod):
            self.cluster.set_status(claim, {"phase": "Bound"})

    def _claims(self, pod: Object) -> list[Id]:
        volumes = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        return [("persistentvolumeclaims", pod["metadata"]["namespace"], name) for name in volumes]

    def _finish(self, id: Id) -> None:
        pod = self.cluster.objects[id]
        run = json.loads(self._run_annotation(pod))
        stage = Stage(pod["metadata"]["labels"][names.STAGE_LABEL])
        ending: Ending = "ok" if _only_reports(pod) else self._work(stage)
        if ending in ("ok", "vanished"):
            self._set_phase(id, "Succeeded", ExitCode.OK, answer(stage, run).termination_message())
            if ending == "vanished":
                self.cluster.objects[id]["metadata"]["vanishing"] = True
        elif ending == "node-lost":
            self._lose(id)
        elif ending == "preempted":
            self._set_phase(id, "Failed", ExitCode.TERMINATED, None, disruption="PreemptionByScheduler")
        else:
            code = ExitCode.CRASH if ending == "crash" else ExitCode.INVALID_INPUT
            message = StageResult(stage=stage, reason="DatasetNotFound" if ending == "invalid" else "Crashed", message="as scripted")
            self._set_phase(id, "Failed", code, message.termination_message())

    def _work(self, stage: Stage) -> Ending:
        pending = self.script.get(stage) or []
        ending = pending.pop(0) if pending else "ok"
        self.ran.append((stage, ending))
        return ending

    def _run_annotation(self, pod: Object) -> str:
        owner = pod["metadata"]["ownerReferences"][0]
        job = self.cluster.objects["jobs", pod["metadata"]["namespace"], owner["name"]]
        return str(job["spec"]["template"]["metadata"]["annotations"][names.RUN_ANNOTATION])

    def _lose(self, id: Id) -> None:
        pod = copy.deepcopy(self.cluster.objects[id])
        pod["metadata"] |= {"lost": True, "deletionTimestamp": timestamp(self.cluster.now)}
        pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
        self.cluster.replace(id, pod)

    def _set_phase(self, id: Id, phase: str, code: int, message: str | None, disruption: str = "") -> None:
        ended = {"exitCode": int(code), "reason": "Completed" if code == 0 else "Error", **({"message": message} if message else {})}
        conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}] if disruption else []
        status = {"phase": phase, "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}], "conditions": conditions}
        self.cluster.set_status(id, {**self.cluster.objects[id]["status"], **status})

    def free_lost_pods(self) -> bool:
        """The node comes back, or a person frees its pods."""
        lost = [id for id, live in self.cluster.objects.items() if id[0] == "pods" and live["metadata"].get("lost")]
        for id in lost:
            owner = self.cluster.objects[id]["metadata"]["ownerReferences"][0]["name"]
            job = ("jobs", id[1], owner)
            if job in self.cluster.objects:
                self._end_job(job, "Failed", "BackoffLimitExceeded", id)
            self.cluster.remove(id)
        return bool(lost)

    # ---------------------------------------------------------------------------------------------------------------- serving

    def _deployment(self, id: Id, live: Object) -> Callable[[], None] | None:
        replicas = live["spec"].get("replicas", 1)
        if "deletionTimestamp" in live["metadata"]:
            return None
        pods = [pod for pod in self.cluster.dependents(live["metadata"]["uid"]) if pod[0] == "pods"]
        staying = [pod for pod in pods if "deletionTimestamp" not in self.cluster.objects[pod]["metadata"]]
        if len(staying) < replicas:
            return lambda: self._start_server(live)
        if len(staying) > replicas:
            return lambda: self.cluster.delete(staying[-1])
        ready = len([pod for pod in staying if self._answers(pod)])
        generation = live["metadata"]["generation"]
        status = {"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "availableReplicas": ready}
        if live.get("status") != status:
            return lambda: self.cluster.set_status(id, status)
        return None

    def _answers(self, pod: Id) -> bool:
        conditions = self.cluster.objects[pod]["status"].get("conditions") or []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def answering(self, deployment: str) -> bool:
        """Whether any pod of a Deployment answers at this moment."""
        found = [live["metadata"]["uid"] for id, live in self.cluster.objects.items() if id[0] == "deployments" and id[2] == deployment]
        return any(self._answers(pod) for uid in found for pod in self.cluster.dependents(uid) if pod[0] == "pods")

    def _flap(self) -> bool:
        pods = [id for id, live in sorted(self.cluster.objects.items()) if id[0] == "pods" and names.STAGE_LABEL not in _labels(live)]
        up = [pod for pod in pods if self._answers(pod) and "deletionTimestamp" not in self.cluster.objects[pod]["metadata"]]
        if not up:
            return False
        self.flaps -= 1
        self._set_ready(self.rng.choice(up), "False")
        return True

    def _set_ready(self, id: Id, status: str) -> None:
        self._later.pop((id, "ready"), None)
        ready = {"type": "Ready", "status": status, "lastTransitionTime": timestamp(self.cluster.now)}
        container = {"name": "server", "ready": status == "True", "restartCount": 0, "state": {"running": {}}}
        self.cluster.set_status(id, {"phase": "Running", "conditions": [ready], "containerStatuses": [container]})

    def _start_server(self, deployment: Object) -> None:
        metadata = {
            "generateName": deployment["metadata"]["name"] + "-",
            "namespace": deployment["metadata"]["namespace"],
            "labels": deployment["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [names.owner_reference(deployment)],
        }
        self.cluster.put_new("pods", {"metadata": metadata, "spec": {}, "status": {"phase": "Pending"}})

    def _server_pod(self, id: Id, pod: Object) -> Callable[[], None] | None:
        if "deletionTimestamp" in pod["metadata"]:
            return lambda: self.cluster.remove(id)
        if self._answers(id) or self._deployment_of(pod) in self.never_ready:
            return None
        waits = self.recovers_after if pod["status"]["phase"] == "Running" else timedelta()
        return (lambda: self._set_ready(id, "True")) if self._is_due(id, "ready", waits) else None

    def _deployment_of(self, pod: Object) -> str:
        return str(next((owner["name"] for owner in pod["metadata"].get("ownerReferences") or ()), ""))

    def _route(self, id: Id, route: Object) -> Callable[[], None] | None:
        generation = route["metadata"]["generation"]
        parents = [{"parentRef": reference, "conditions": self._said(route)} for reference in route["spec"].get("parentRefs", [])]
        if (route.get("status") or {}).get("parents") == parents:
            return None
        if not self._is_due(id, f"generation {generation}", self.gateway_delay):
            return None
        return lambda: self.cluster.set_status(id, {"parents": parents})

    def _said(self, route: Object) -> list[Object]:
        accepted = "True" if self.gateway_accepts(route) else "False"
        return [
            {"type": "Accepted", "status": accepted, "reason": "Accepted" if accepted == "True" else "NotAllowedByListeners", "message": ""}
            | {"observedGeneration": route["metadata"]["generation"]},
            {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": ""}
            | {"observedGeneration": route["metadata"]["generation"]},
        ]


def _labels(live: Object) -> dict[str, str]:
    labels: dict[str, str] = live["metadata"].get("labels") or {}
    return labels


def _only_reports(pod: Object) -> bool:
    return any("--report" in container.get("command", []) + container.get("args", []) for container in pod["spec"]["containers"])


def answer(stage: Stage, run: Object) -> StageResult:
    """What a stage that went well says."""
    where = f"{run['storage']['uri']}/{run['storage']['prefix']}"
    if stage is Stage.PREPARE:
        report = DatasetReport(digest="d" * 64, rows_in=100, rows_out={"train": 80, "validation": 10, "test": 10})
        return StageResult(stage=stage, dataset=report, base_model=run["model"]["source"], base_revision="b" * 40)
    if stage is Stage.TRAIN:
        checkpoint = CheckpointReport(step=20, uri=f"{where}/checkpoints/20", digest="e" * 64, time="2026-01-01T00:00:00Z")
        return StageResult(stage=stage, steps=20, train_loss=1.25, checkpoint=checkpoint)
    if stage is Stage.PACKAGE:
        artifacts = [
            Artifact(name="merged", format="Safetensors", uri=f"{where}/package/merged", sha256="a" * 64, bytes=10),
            Artifact(name="F16", format="GGUF", uri=f"{where}/package/F16.gguf", sha256=GGUF_SHA, bytes=10),
        ]
        parity = [ParityReport(format="F16", mean_kl=1e-6, top1=0.999, kept_of_tune=0.2, verdict="Passed")]
        return StageResult(stage=stage, artifacts=artifacts, parity=parity)
    return StageResult(stage=stage)
