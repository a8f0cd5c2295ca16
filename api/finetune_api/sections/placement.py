"""Where server pods may run, in the words of a Pod: a member means what it means there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from finetune_api.section import ObjectName, Section, map_list, rules
from finetune_api.sections.pods import ImagePullSecret, Label, LabelValue


class Toleration(Section):
    """A taint that the pods may run in spite of."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
                "value has no meaning with operator Exists: leave it out",
            ),
            (
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "key may be left out with operator Exists only: it then tolerates every taint",
            ),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds goes with effect NoExecute",
            ),
        )
    )

    key: Label | None = Field(default=None, description="Key of the taint. Default: every taint, with operator Exists.")
    operator: Literal["Equal", "Exists"] | None = Field(default=None, description="How value is compared. Default: Equal.")
    value: LabelValue | None = Field(default=None, description="Value of the taint; with operator Equal. Default: empty.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint. Default: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="How long a pod stays once the taint came, in seconds; with effect NoExecute. Default: for ever."
    )


class Placement(Section):
    """What decides on which nodes pods run, and whether they can be pulled there."""

    node_selector: Annotated[dict[Label, LabelValue], Field(max_length=32)] = Field(
        default={}, description="Node labels that the pods require. Default: none."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default=[], description="Taints that the pods tolerate. Default: none.", json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    affinity: dict[str, JsonValue] | None = Field(
        default=None,
        description="Affinity of the pods, as in a Pod. No default.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods. No default.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods, such as nvidia. No default.")
    image_pull_secrets: Annotated[list[ImagePullSecret], Field(max_length=16)] = Field(
        default=[], description="Secrets with which the image is pulled. Default: none.", json_schema_extra=map_list("name")
    )
