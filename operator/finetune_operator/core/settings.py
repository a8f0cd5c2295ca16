"""What the chart sets, read once from the environment in `__main__`. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from finetune_operator.core.containment import without_nulls


class NamespacePolicy(BaseModel):
    """What the platform allows in a namespace beyond the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...] = ()
    """Prefixes of trainer and server images a spec may name; the chart's own are always allowed."""


class Settings(BaseModel):
    """A null is as good as absent: what a template leaves empty must not keep the operator from starting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = "finetune-system"
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces that are watched; empty: all."""
    identity: str = "finetune-operator"
    trainer_image: str = "finetune-operator/trainer:dev"
    server_image: str = "finetune-operator/server:dev"
    image_pull_policy: str = "IfNotPresent"
    status_url: str = ""
    """Base URL of the progress endpoint as pods reach it (https://service.namespace.svc:8443); empty: pods report nowhere."""
    status_audience: str = "finetune-operator.io"
    policies: dict[str, NamespacePolicy] = {}
    """By namespace; `*` holds for the others."""
    resync_s: float = 300.0
    missing_recheck_s: float = 30.0
    progress_write_s: float = 10.0
    termination_grace_s: int = 120

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return without_nulls(given)

    def policy(self, namespace: str) -> NamespacePolicy:
        return self.policies.get(namespace) or self.policies.get("*") or NamespacePolicy()
