"""Where a stage's pod may run: as the train stage's, unless `spec.stages` says otherwise. Pure."""

from __future__ import annotations

from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import Stage

from finetune_operator.core.names import Object
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.resources.run_spec import StageRequest

_LOST_NODE_TOLERATION_S = 30
_HOSTNAME = "kubernetes.io/hostname"
_LONGEST_LIST = 2000


def tolerations(spec: FineTuneJobSpec, request: StageRequest, observed: Observed) -> list[Object]:
    lost = [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _LOST_NODE_TOLERATION_S}
        for state in ("not-ready", "unreachable")
    ]
    wanted = [dict(toleration) for toleration in _inherited(spec, request.stage, "tolerations")]
    follows_train = observed.shares_one_node and not _says_otherwise(spec, request.stage)
    return lost + wanted + (_of_gpu_nodes(spec) if follows_train else [])


def _of_gpu_nodes(spec: FineTuneJobSpec) -> list[Object]:
    """Admission gives it to pods that ask for a GPU; where the volume binds all stages to one node the others need it as well."""
    resources = spec.resources
    return [{"key": resources.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"}] if resources.gpus_per_node else []


def placement(spec: FineTuneJobSpec, request: StageRequest, observed: Observed) -> Object:
    """The members of a pod's spec that choose its node."""
    scheduling, stage = spec.scheduling, request.stage
    affinity = dict(_inherited(spec, stage, "affinity") or {})
    if stage is Stage.PREPARE and not _says_otherwise(spec, stage):
        affinity = _without_hosts(affinity, observed.small_hosts)
    runtime_class = scheduling.runtime_class_name if stage.access.gpus and not request.report else None
    members = {
        "priorityClassName": scheduling.priority_class_name,
        "nodeSelector": dict(_inherited(spec, stage, "node_selector")),
        "affinity": affinity,
        "runtimeClassName": runtime_class,
    }
    return {name: member for name, member in members.items() if member}


def _own(spec: FineTuneJobSpec, stage: Stage, member: str) -> Any:
    return getattr(getattr(spec.stages, stage.value, None), member, None)


def _inherited(spec: FineTuneJobSpec, stage: Stage, member: str) -> Any:
    own = _own(spec, stage, member)
    return own if own is not None else getattr(spec.scheduling, member)


def _says_otherwise(spec: FineTuneJobSpec, stage: Stage) -> bool:
    """Who places a stage by hand places it for the volume's sake as well."""
    return any(_own(spec, stage, member) is not None for member in ("node_selector", "tolerations", "affinity"))


def _without_hosts(affinity: Object, hosts: tuple[str, ...]) -> Object:
    """The first pod binds the volume: not where a later stage has no room."""
    if not hosts or len(hosts) > _LONGEST_LIST:
        return affinity
    elsewhere = {"key": _HOSTNAME, "operator": "NotIn", "values": list(hosts)}
    node = dict(affinity.get("nodeAffinity") or {})
    required = dict(node.get("requiredDuringSchedulingIgnoredDuringExecution") or {})
    # terms are alternatives, the expressions of one hold together
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), elsewhere]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    node["requiredDuringSchedulingIgnoredDuringExecution"] = {**required, "nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": node}
