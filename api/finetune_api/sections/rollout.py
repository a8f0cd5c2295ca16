"""`spec.rollout` of a ModelVersion: how traffic is moved to it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Duration, Name, ObjectName, Section, map_list, rules
from finetune_api.union import Union, member_of


class GatewayRef(Section):
    name: ObjectName = Field(description="Name of the Gateway. Required.")
    namespace: ObjectName = Field(description="Namespace of the Gateway; its listeners must allow routes from here. Required.")


_HOSTNAME = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""Source: Gateway API's Hostname."""


class GatewayAPI(Section):
    gateway: GatewayRef = Field(description="The Gateway that the route attaches to. Required.")
    hostnames: Annotated[list[Annotated[str, Field(max_length=253, pattern=_HOSTNAME)]], Field(max_length=16)] = Field(
        default=[],
        description="Host names of the route; one that another model's route on this Gateway has is not taken over. Default: any.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class Traffic(Union):
    type: Literal["None", "GatewayAPI"] = Field(
        default="None", description="How traffic is split: HTTPRoute weights, or not at all. Default: None."
    )
    gateway_api: GatewayAPI | None = Field(
        default=None,
        alias="gatewayAPI",
        description="The HTTPRoute; with type GatewayAPI only, and required there. It is kept as written here, but for filters, timeouts and the "
        "like that others set in its rule. No default.",
        json_schema_extra=member_of("GatewayAPI", required=True),
    )


class StageName(StrEnum):
    CANARY = "Canary"
    STAGING = "Staging"
    PRODUCTION = "Production"


class Step(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.stage == 'Production') != has(self.weight)",
                "weight is required before Production, and Production has none: it gets what is left",
            ),
            (
                "self.stage != 'Production' || !has(self.hold) || duration(self.hold) == duration('0s')",
                "a Production step has no hold: it lasts until another version takes over",
            ),
        )
    )

    name: Name = Field(description="Name of the step, unique in the rollout. Required.")
    stage: StageName = Field(description="Stage the version is in during the step. Required.")
    weight: int | None = Field(default=None, ge=0, le=100, description="Share of traffic in percent. Required before Production.")
    hold: Duration = Field(default="0s", description="Least time the step lasts. Default: 0s.")


class Rollout(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "size(self.steps) == 0 || self.steps[size(self.steps) - 1].stage == 'Production'",
                "the last step must be of stage Production",
            ),
            (
                "self.steps.filter(s, s.stage == 'Production').size() <= 1",
                "only one step can be of stage Production",
            ),
            (
                "self.traffic.type != 'None' || self.steps.all(s, s.stage == 'Production')",
                "Canary and Staging steps share traffic: they need traffic of type GatewayAPI",
            ),
            (
                "self.approval == 'Manual' || !has(self.approvedStep)",
                "approvedStep goes with approval Manual",
            ),
            (
                "!has(self.approvedStep) || self.approvedStep < size(self.steps)",
                "approvedStep is the index of a step, counted from 0: it must be less than the number of steps",
            ),
        )
    )

    traffic: Traffic = Field(default=Traffic(), description="How traffic reaches the version. Default: none.")
    steps: Annotated[list[Step], Field(max_length=16)] = Field(
        default=[],
        description="Steps to production, in order. Default: straight to production.",
        json_schema_extra=map_list("name"),
    )
    approval: Literal["Automatic", "Manual"] = Field(
        default="Automatic", description="Whether a step needs approvedStep to go on. Default: Automatic."
    )
    approved_step: int | None = Field(
        default=None, ge=0, le=16, description="Index of the last step a person approved leaving; with approval Manual. No default."
    )
    paused: bool = Field(default=False, description="Hold where it is. Default: false.")
    abort: bool = Field(
        default=False,
        description="Take all traffic away and bring the former version back; in production it waits until one can return. "
        "Cannot be undone once it had its effect. Default: false.",
    )
