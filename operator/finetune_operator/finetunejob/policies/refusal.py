"""Which field of the spec is meant where a cluster refuses a stage's pod? Pure."""

from __future__ import annotations

from finetune_api.run import Stage


def field_of(stage: Stage, words: str) -> str:
    """The field, or what else is to be changed, by the words of whoever refused."""
    return next((field.format(of=_section(stage)) for sign, field in _FIELDS if sign in words), _section(stage))


def memory_field(stage: str) -> str:
    """`stage` may be what somebody made of a label."""
    return f"{_section(stage)}.memory"


def _section(stage: str) -> str:
    return "spec.resources" if stage in _WITH_GPUS else f"spec.stages.{stage}"


_WITH_GPUS = frozenset(stage.value for stage in Stage if stage.access.gpus)


_FIELDS = (
    ("PriorityClass", "spec.scheduling.priorityClassName"),
    ("RuntimeClass", "spec.scheduling.runtimeClassName"),
    ("PodSecurity", "the namespace's label pod-security.kubernetes.io/enforce, or its exemptions"),
    ("metadata.annotations", "spec.podMetadata.annotations"),
    ("metadata.labels", "spec.podMetadata.labels"),
    ("tolerations", "spec.scheduling.tolerations, or those of spec.stages"),
    ("nodeSelector", "spec.scheduling.nodeSelector, or that of spec.stages"),
    ("affinity", "spec.scheduling.affinity, or that of spec.stages"),
    ("imagePullSecrets", "spec.imagePullSecrets"),
    ("sizeLimit", "spec.resources.sharedMemory"),
    ("limits.cpu", "{of}.cpuLimit"),
    ("cpu max limit", "{of}.cpuLimit"),
    ("cpu usage per", "{of}.cpu or {of}.cpuLimit"),
    ("cpu limit of", "{of}.cpu or {of}.cpuLimit"),
    ("memory", "{of}.memory"),
    ("cpu", "{of}.cpu"),
    ("gpu", "spec.resources.gpusPerNode"),
)
"""(sign, field): the first sign that is found in the words."""
