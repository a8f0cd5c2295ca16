"""kind's configuration: the repository's kind-config.yaml and, over it, what the tests and this machine add. Pure."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

# Where the nodes see what the host gives them.
NODE_SHARED = "/mnt/shared"
NODE_AUDIT_POLICY = "/etc/kubernetes/audit-policy.yaml"
NODE_AUDIT_LOGS = "/var/log/kubernetes/audit"
AUDIT_LOG = "audit.log"


@dataclass(frozen=True)
class Host:
    """What of the host decides about the nodes."""

    audit_policy: str
    audit_logs: str
    shared: str = ""  # empty: images are copied into the nodes
    has_cgroup_v1: bool = False


def audit_policy() -> dict[str, Any]:
    """Who asked for what, when, and what the answer was; no bodies. The source of the benches' request counts."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        # One line for a request, when it is answered; a watch too, when it ends.
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "omitManagedFields": True,
        "rules": [
            # Leases and kubelets' status are most requests of an idle cluster, and nobody's question.
            {"level": "None", "userGroups": ["system:nodes"]},
            {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"]},
            {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version"]},
            {"level": "Metadata"},
        ],
    }


def cluster_patch() -> dict[str, Any]:
    """kubeadm's ClusterConfiguration: a lost node is noticed in 16 s instead of 50, and the audit log."""
    return {
        "kind": "ClusterConfiguration",
        "controllerManager": {"extraArgs": {"node-monitor-grace-period": "16s"}},
        "apiServer": {
            "extraArgs": {
                "default-not-ready-toleration-seconds": "10",
                "default-unreachable-toleration-seconds": "10",
                "audit-policy-file": NODE_AUDIT_POLICY,
                "audit-log-path": f"{NODE_AUDIT_LOGS}/{AUDIT_LOG}",
                "audit-log-maxsize": "200",  # MiB; older ones lie beside it
                "audit-log-maxbackup": "5",
            },
            "extraVolumes": [
                _static_pod_volume("audit-policy", NODE_AUDIT_POLICY, "File", read_only=True),
                _static_pod_volume("audit-logs", NODE_AUDIT_LOGS, "DirectoryOrCreate", read_only=False),
            ],
        },
    }


def _static_pod_volume(name: str, path: str, path_type: str, *, read_only: bool) -> dict[str, Any]:
    return {"name": name, "hostPath": path, "mountPath": path, "pathType": path_type, "readOnly": read_only}


# On cgroup v1 systemd's driver leaves frozen cgroups behind when a node is killed; nodes then cannot be removed.
CGROUPFS_KUBELET = {"kind": "KubeletConfiguration", "cgroupDriver": "cgroupfs"}
CGROUPFS_CONTAINERD = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\n  SystemdCgroup = false\n'


def with_overlay(config: Mapping[str, Any], host: Host) -> Config:
    """The configuration with the overlay for the tests and for this host; what it was given is left as it is."""
    merged = copy.deepcopy(dict(config))
    merged["nodes"] = [_with_mounts(node, host) for node in merged.get("nodes") or [{"role": "control-plane"}]]
    patches = [cluster_patch()]
    if host.has_cgroup_v1:
        patches.append(CGROUPFS_KUBELET)
        merged["containerdConfigPatches"] = [*merged.get("containerdConfigPatches", []), CGROUPFS_CONTAINERD]
    # JSON is YAML, and kind takes the patches as text.
    texts = [json.dumps(patch) for patch in patches]
    merged["kubeadmConfigPatches"] = [*merged.get("kubeadmConfigPatches", []), *texts]
    return merged


def _with_mounts(node: Mapping[str, Any], host: Host) -> Config:
    mounts = list(node.get("extraMounts", []))
    if node.get("role") == "control-plane":
        mounts.append({"hostPath": host.audit_policy, "containerPath": NODE_AUDIT_POLICY, "readOnly": True})
        mounts.append({"hostPath": host.audit_logs, "containerPath": NODE_AUDIT_LOGS})
    if host.shared:
        mounts.append(
            {
                "hostPath": host.shared,
                "containerPath": NODE_SHARED,
                "readOnly": True,
                # Images are mounted on the host after the nodes have started.
                "propagation": "HostToContainer",
            }
        )
    return {**node, "extraMounts": mounts} if mounts else dict(node)


def cluster_name(config: Mapping[str, Any]) -> str:
    return str(config.get("name") or "kind")


def node_count(config: Mapping[str, Any]) -> int:
    return len(config.get("nodes") or [None])


def worker_count(config: Mapping[str, Any]) -> int:
    return sum(node.get("role") == "worker" for node in config.get("nodes") or [])
