"""What every pod of ours holds to: Pod Security's restricted profile, and no word with the API server. Pure."""

from __future__ import annotations

from finetune_operator.core.names import Object

USER_ID = 65532


def restricted_pod() -> Object:
    """Members of a pod's spec. Source: kubernetes.io/docs/concepts/security/pod-security-standards."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def restricted_container() -> Object:
    """A container's securityContext."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
