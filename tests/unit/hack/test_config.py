"""The overlay over kind-config.yaml."""

import copy
import json
from typing import Any

import pytest
import yaml

from hack.cluster import config
from hack.cluster.paths import KIND_CONFIG

HOST = config.Host(audit_policy="/run/policy.json", audit_logs="/run/audit")
OUR_HOST = config.Host(audit_policy="/run/policy.json", audit_logs="/run/audit", shared="/run/shared", has_cgroup_v1=True)
SMALL: dict[str, Any] = {"kind": "Cluster", "name": "x", "nodes": [{"role": "control-plane"}, {"role": "worker"}]}


def patches_of(merged: dict[str, Any]) -> dict[str, Any]:
    return {patch["kind"]: patch for patch in map(yaml.safe_load, merged["kubeadmConfigPatches"])}


def mounts_of(node: dict[str, Any]) -> dict[str, str]:
    return {mount["containerPath"]: mount["hostPath"] for mount in node.get("extraMounts", [])}


def test_what_was_given_is_left_as_it_is() -> None:
    before = copy.deepcopy(SMALL)
    config.with_overlay(SMALL, OUR_HOST)
    assert before == SMALL


def test_the_control_plane_gets_the_audit_policy_and_the_folder_for_its_log() -> None:
    control_plane, worker = config.with_overlay(SMALL, HOST)["nodes"]
    assert mounts_of(control_plane) == {
        config.NODE_AUDIT_POLICY: "/run/policy.json",
        config.NODE_AUDIT_LOGS: "/run/audit",
    }
    assert mounts_of(worker) == {}


def test_the_api_server_mounts_what_it_is_told_to_read_and_write() -> None:
    server = patches_of(config.with_overlay(SMALL, HOST))["ClusterConfiguration"]["apiServer"]
    mounted = [volume["mountPath"] for volume in server["extraVolumes"]]
    assert server["extraArgs"]["audit-policy-file"] in mounted
    assert any(server["extraArgs"]["audit-log-path"].startswith(path + "/") for path in mounted)


def test_with_cgroup_v2_the_cgroup_driver_is_kinds_own() -> None:
    merged = config.with_overlay(SMALL, HOST)
    assert "KubeletConfiguration" not in patches_of(merged)
    assert "containerdConfigPatches" not in merged


def test_with_cgroup_v1_kubelet_and_containerd_agree_on_cgroupfs() -> None:
    merged = config.with_overlay(SMALL, OUR_HOST)
    assert patches_of(merged)["KubeletConfiguration"]["cgroupDriver"] == "cgroupfs"
    assert any("SystemdCgroup = false" in patch for patch in merged["containerdConfigPatches"])


def test_images_that_are_mounted_later_appear_in_every_node() -> None:
    for node in config.with_overlay(SMALL, OUR_HOST)["nodes"]:
        shared = next(mount for mount in node["extraMounts"] if mount["containerPath"] == config.NODE_SHARED)
        assert shared["propagation"] == "HostToContainer"
        assert shared["readOnly"] is True


def test_the_users_own_mounts_and_patches_stay_and_come_first() -> None:
    mine = {"hostPath": "/mine", "containerPath": "/mine"}
    given = {
        "nodes": [{"role": "control-plane", "extraMounts": [mine]}],
        "kubeadmConfigPatches": ["kind: InitConfiguration"],
        "containerdConfigPatches": ["mine = 1"],
    }
    merged = config.with_overlay(given, OUR_HOST)
    assert merged["nodes"][0]["extraMounts"][0] == mine
    assert merged["kubeadmConfigPatches"][0] == "kind: InitConfiguration"
    assert merged["containerdConfigPatches"][0] == "mine = 1"


def test_a_configuration_without_nodes_is_one_control_plane() -> None:
    assert [node["role"] for node in config.with_overlay({}, HOST)["nodes"]] == ["control-plane"]
    assert config.node_count({}) == 1
    assert config.worker_count({}) == 0
    assert config.cluster_name({}) == "kind"


def test_the_repositorys_own_configuration() -> None:
    given = yaml.safe_load(KIND_CONFIG.read_text())
    merged = config.with_overlay(given, OUR_HOST)
    assert config.cluster_name(merged) == "finetune-operator"
    assert (config.node_count(merged), config.worker_count(merged)) == (3, 2)
    [port] = merged["nodes"][0]["extraPortMappings"]
    assert port == {"containerPort": 30080, "hostPort": 30080, "listenAddress": "127.0.0.1"}
    assert json.loads(json.dumps(merged)) == merged


@pytest.mark.parametrize("word", ["/mnt", "cgroup", "kubeadmConfigPatches", "image:"])
def test_what_only_this_machine_needs_is_not_in_the_users_file(word: str) -> None:
    assert word not in KIND_CONFIG.read_text()


def test_the_audit_policy_logs_requests_once_and_without_bodies() -> None:
    policy = config.audit_policy()
    assert set(policy["omitStages"]) == {"RequestReceived", "ResponseStarted"}
    assert policy["rules"][-1] == {"level": "Metadata"}
    assert {rule["level"] for rule in policy["rules"]} == {"None", "Metadata"}
