"""What the tests need in the cluster beyond Kubernetes: GPUs, a Gateway, and images to make them of."""

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from . import config, gotools, kind, packages
from .engine import Engine
from .nodebuild import BUSYBOX_IMAGE, busybox_entries
from .ociimage import Entry, ImageConfig, write_archive, write_layer
from .paths import MANIFESTS, Paths
from .progress import CommandFailed, step
from .share import share

GPU_IMAGE = "finetune-test/gpu-plugin:1"
TRAEFIK_IMAGE = f"finetune-test/traefik:{gotools.TRAEFIK}"
BUSYBOX = BUSYBOX_IMAGE.removeprefix("docker.io/")
GPU = "nvidia.com/gpu"
GPUS_PER_WORKER = 2
GATEWAY_ADDRESS = "http://127.0.0.1:30080"
TIMEOUT_S = 120


def ensure_addons(paths: Paths, engine: Engine, wanted: config.Config) -> None:
    """Images, CRDs and manifests; returns when GPUs are offered and the gateway answers."""
    gotools.ensure_tools(paths, gotools.FOR_CLUSTER)
    _ensure_images(paths, engine)
    share(paths, engine, config.cluster_name(wanted), [GPU_IMAGE, TRAEFIK_IMAGE, BUSYBOX])
    with step("apply the GPU plugin, the Gateway API's CRDs and Traefik"):
        crds = gotools.module_folder(paths, "gateway", "sigs.k8s.io/gateway-api") / "config/crd/standard"
        apply(paths, sorted(crds.glob("*.yaml")))
        established = ["--for=condition=Established", "crd/gateways.gateway.networking.k8s.io"]
        kind.kubectl(paths, "wait", *established, "crd/gatewayclasses.gateway.networking.k8s.io", "--timeout=60s")
        apply(paths, [MANIFESTS / "gpu-plugin.yaml", MANIFESTS / "gateway.yaml"])
    with step("wait for them"):
        wait_until_usable(paths, wanted)


def apply(paths: Paths, files: Sequence[Path]) -> None:
    names = [word for file in files for word in ("-f", str(file))]
    kind.kubectl(paths, "apply", "--server-side", "--force-conflicts", *names, timeout_s=120)


def _ensure_images(paths: Paths, engine: Engine) -> None:
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    trust = [Entry(str(certificates), certificates, mode=0o644)] if certificates.exists() else []
    _ensure_image(paths, engine, GPU_IMAGE, [Entry("gpu-plugin", paths.bin / "gpu-plugin")], "/gpu-plugin")
    _ensure_image(paths, engine, TRAEFIK_IMAGE, [Entry("traefik", paths.bin / "traefik"), *trust], "/traefik")
    if packages.find_program("busybox"):
        _ensure_image(paths, engine, BUSYBOX, busybox_entries())
    elif not engine.has_image(BUSYBOX) and engine.pull("busybox:1", paths.logs / "pull.log"):
        engine.docker("tag", "busybox:1", BUSYBOX)


def _ensure_image(paths: Paths, engine: Engine, name: str, entries: list[Entry], *entrypoint: str) -> None:
    """Loads an image of a binary into the engine; always, for that is quicker than finding out whether it changed."""
    paths.build.mkdir(exist_ok=True)
    file = paths.build / "addon.layer"
    layer = write_layer(file, [*entries, Entry("tmp", mode=0o1777)])
    content = io.BytesIO()
    write_archive(content, [name], layer, ImageConfig(entrypoint=entrypoint))
    engine.docker("load", stdin=content.getvalue())
    file.unlink()


def problems(paths: Paths, wanted: config.Config) -> list[str]:
    """What keeps the add-ons from being usable."""
    try:
        nodes = json.loads(kind.kubectl(paths, "get", "nodes", "-o", "json", "--request-timeout=10s"))["items"]
        unready = kind.kubectl(paths, "get", "deployments,daemonsets", "-A", "-o", f"jsonpath={_UNREADY}")
    except CommandFailed as error:
        return [str(error)]
    found = missing_gpus(nodes, config.worker_count(wanted))
    found += [f"{line.split()[0]} is not ready" for line in unready.splitlines() if _is_unready(line)]
    if not gateway_answers():
        found.append(f"the gateway does not answer on {GATEWAY_ADDRESS}")
    return found


_UNREADY = (
    "{range .items[*]}{.metadata.namespace}/{.metadata.name} "
    "{.spec.replicas}{.status.desiredNumberScheduled} {.status.readyReplicas}{.status.numberReady}{'\\n'}{end}"
)
# Only these are ours to wait for: what a test has deployed may be broken on purpose.
OUR_NAMESPACES = ("kube-system", "local-path-storage", "gateway-system")


def _is_unready(line: str) -> bool:
    name, wanted, *ready = line.split()
    return name.partition("/")[0] in OUR_NAMESPACES and [wanted] != ready


def missing_gpus(nodes: Sequence[dict[str, dict[str, dict[str, str]]]], workers: int) -> list[str]:
    offering = [node for node in nodes if node["status"].get("allocatable", {}).get(GPU) == str(GPUS_PER_WORKER)]
    if len(offering) == workers:
        return []
    return [f"{len(offering)} of {workers} workers offer {GPUS_PER_WORKER} {GPU}"]


def gateway_answers() -> bool:
    """Whether Traefik is behind the port: with no route for the name it says 404 itself."""
    try:
        urllib.request.urlopen(GATEWAY_ADDRESS, timeout=3)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def wait_until_usable(paths: Paths, wanted: config.Config) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while found := problems(paths, wanted):
        if time.monotonic() > deadline:
            pods = kind.kubectl(paths, "get", "pods", "-A", "-o", "wide")
            raise CommandFailed("; ".join(found) + f"\n{pods}")
        time.sleep(1)
