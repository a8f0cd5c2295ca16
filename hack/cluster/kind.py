"""The cluster: made with kind, looked at with kubectl."""

import json
import os
import time
from pathlib import Path
from typing import Any

from . import cgroups, config, gotools, mounts, nodeimage
from .engine import Engine
from .paths import KIND_CONFIG, Paths
from .progress import CommandFailed, output, run, say, step

READY_TIMEOUT_S = 120


def read_config(paths: Paths) -> config.Config:
    """The repository's kind-config.yaml."""
    return dict(json.loads(output([paths.bin / "yaml2json"], stdin=KIND_CONFIG.read_bytes())))


def kubectl(paths: Paths, *words: str | Path, stdin: bytes | None = None, timeout_s: float = 60) -> str:
    environment = {**os.environ, "KUBECONFIG": str(paths.kubeconfig)}
    return output([paths.bin / "kubectl", *words], environment=environment, stdin=stdin, timeout_s=timeout_s)


def create(paths: Paths, engine: Engine, wanted: config.Config) -> None:
    """A new cluster with all its nodes Ready; a former one's remains are removed first."""
    gotools.ensure_tools(paths, ["kind"])
    gotools.ensure_kubectl(paths)
    image = nodeimage.ensure_node_image(paths, engine)
    name = config.cluster_name(wanted)
    delete(paths, engine, name)
    file = paths.run / "kind-config.json"
    file.write_text(json.dumps(config.with_overlay(wanted, _prepare_host(paths, engine)), indent=2))
    try:
        _create(paths, engine, wanted, file, image)
    except CommandFailed as error:
        # On a busy machine kubeadm's own deadlines (40 s for some) may pass; a broken cluster fails twice.
        say(f"    {error}\n    once more")
        delete(paths, engine, name)
        _create(paths, engine, wanted, file, image)
    (paths.run / "node-image").write_text(image)


def _create(paths: Paths, engine: Engine, wanted: config.Config, file: Path, image: str) -> None:
    with step(f"kind create cluster ({config.node_count(wanted)} nodes, {image})"):
        command = ["create", "cluster", "--config", str(file), "--image", image, "--kubeconfig", str(paths.kubeconfig)]
        run(
            [paths.bin / "kind", *command, "--wait", f"{READY_TIMEOUT_S}s"],
            paths.logs / "kind.log",
            environment=engine.environment,
            timeout_s=900,
        )


def _prepare_host(paths: Paths, engine: Engine) -> config.Host:
    """The folders that the nodes mount."""
    policy = paths.run / "audit-policy.json"
    policy.write_text(json.dumps(config.audit_policy(), indent=2))
    paths.audit.mkdir(exist_ok=True)
    for log in paths.audit.glob("*.log"):
        log.unlink()
    if engine.is_ours:
        mounts.mount_shared(paths.shared)
    shared = str(paths.shared) if engine.is_ours else ""
    return config.Host(str(policy), str(paths.audit), shared, engine.has_cgroup_v1)


def delete(paths: Paths, engine: Engine, name: str) -> None:
    """Removes the cluster, whatever is left of it."""
    if engine.nodes(name):
        with step("remove the former cluster"):
            cgroups.thaw(paths.cgroup)
            engine.remove_nodes(name)
    paths.kubeconfig.unlink(missing_ok=True)


def problems(paths: Paths, wanted: config.Config) -> list[str]:
    """What keeps the cluster from being usable; empty when nothing does."""
    if not paths.kubeconfig.exists():
        return ["there is no kubeconfig"]
    try:
        nodes = json.loads(kubectl(paths, "get", "nodes", "-o", "json", "--request-timeout=10s"))["items"]
    except (CommandFailed, OSError) as error:
        return [str(error)]
    found = [f"node {node['metadata']['name']} is not Ready" for node in nodes if not is_ready(node)]
    if len(nodes) != config.node_count(wanted):
        found.append(f"{len(nodes)} nodes, not {config.node_count(wanted)}")
    return found


def is_ready(node: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", []))


def image_that_runs(paths: Paths) -> str:
    """The node image of the cluster that was made last."""
    file = paths.run / "node-image"
    return file.read_text() if file.exists() else ""


def wait_until_usable(paths: Paths, wanted: config.Config, timeout_s: float = READY_TIMEOUT_S) -> list[str]:
    """Waits for the nodes; returns what is still wrong at the end."""
    deadline = time.monotonic() + timeout_s
    while (found := problems(paths, wanted)) and time.monotonic() < deadline:
        time.sleep(1)
    return found
