"""Makes an image of the host's Docker available in every node.

`kind load` writes an image once more for every node: 26 GB for a trainer image of 6. With our own engine the nodes see the
host's layers instead. They are mounted as one read-only tree in a folder that all nodes hold; in the node, an image of one
tiny layer is imported, whose snapshot was prepared beforehand as a link to that tree.
"""

import io
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import mounts
from .config import NODE_SHARED
from .engine import Engine
from .ociimage import Entry, ImageConfig, Layer, write_archive, write_layer
from .paths import HERE, Paths
from .progress import CommandFailed, output, step


def share(paths: Paths, engine: Engine, cluster: str, images: Sequence[str]) -> None:
    nodes = engine.nodes(cluster)
    if not nodes:
        raise CommandFailed("no cluster runs: start it with `python3 -m hack.cluster up`")
    for image in images:
        with step(f"share {image} with {len(nodes)} nodes"):
            if engine.is_ours:
                _share_layers(paths, engine, nodes, image)
            else:
                command = [str(paths.bin / "kind"), "load", "docker-image", "--name", cluster, image]
                output(command, environment=engine.environment, timeout_s=1800)


def full_reference(image: str) -> str:
    """The name by which containerd knows what Docker calls `image`. Source: distribution's reference.ParseNormalizedNamed."""
    head, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif "." not in head and ":" not in head and head != "localhost":
        image = f"docker.io/{image}"
    return image if re.search(r"[:@][^/]*$", image) else f"{image}:latest"


def _share_layers(paths: Paths, engine: Engine, nodes: Sequence[str], image: str) -> None:
    try:
        facts = json.loads(engine.docker("image", "inspect", image))[0]
    except CommandFailed as error:
        raise CommandFailed(f"the engine has no image {image}: build or load it first") from error
    identity = facts["Id"].partition(":")[2]
    _mount_tree(paths, facts, identity)
    with tempfile.TemporaryDirectory() as folder:
        layer, archive = _stand_in(Path(folder), image, identity, facts["Config"])
    for node in nodes:
        script = (HERE / "link-snapshot.sh").read_bytes()
        words = [layer.diff_id, identity, f"{NODE_SHARED}/{identity}"]
        engine.docker("exec", "-i", node, "bash", "-s", *words, stdin=script)
        engine.docker("exec", "-i", node, "ctr", "-n", "k8s.io", "images", "import", "-", stdin=archive)


def _mount_tree(paths: Paths, facts: dict[str, Any], identity: str) -> None:
    target = paths.shared / identity
    if mounts.is_mounted(target):
        return
    top = Path(facts["GraphDriver"]["Data"]["UpperDir"]).parent
    mounts.mount_read_only(layer_links(top), top.parent, target)


def layer_links(top: Path) -> list[str]:
    """Short names (l/…) of an image's layers, topmost first, as Docker's overlay2 driver keeps them in the top layer."""
    lower = top / "lower"
    below = lower.read_text().strip().split(":") if lower.exists() else []
    return [f"l/{(top / 'link').read_text().strip()}", *below]


def _stand_in(folder: Path, image: str, identity: str, docker: dict[str, Any]) -> tuple[Layer, bytes]:
    """An image with the real one's configuration, and a layer that only tells it from others."""
    marker = folder / "identity"
    marker.write_text(identity)
    layer = write_layer(folder / "layer.tar", [Entry("identity", marker, mode=0o444)])
    archive = io.BytesIO()
    write_archive(archive, [full_reference(image)], layer, container_config(docker))
    return layer, archive.getvalue()


def container_config(docker: dict[str, Any]) -> ImageConfig:
    """What of an image's configuration decides how its containers start."""
    return ImageConfig(
        entrypoint=docker.get("Entrypoint") or (),
        command=docker.get("Cmd") or (),
        environment=docker.get("Env") or (),
        user=docker.get("User") or "",
        working_folder=docker.get("WorkingDir") or "",
        stop_signal=docker.get("StopSignal") or "",
    )
