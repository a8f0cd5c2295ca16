"""What the chart sets, read once from the environment in `__main__`. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class NamespacePolicy(BaseModel):
    """What the platform allows in a namespace beyond the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...] = ()
    """Prefixes of trainer and server images a spec may name; the chart's own are always allowed."""


class Settings(BaseModel):
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

    def policy(self, namespace: str) -> NamespacePolicy:
        return self.policies.get(namespace) or self.policies.get("*") or NamespacePolicy()
