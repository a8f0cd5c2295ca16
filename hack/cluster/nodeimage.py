"""The nodes' image: the official one where a registry gives it, otherwise one built here (nodebuild.py)."""

import ast
import hashlib
import os
from pathlib import Path

from . import archive, gotools, nodebuild, packages
from .debian import SUITE, clear_folder
from .engine import Engine
from .paths import HERE, MANIFESTS, Paths
from .progress import say, step

OFFICIAL = f"kindest/node:{gotools.KUBERNETES}"
OURS = "finetune-test/node"


def image_key() -> str:
    """A hash of what the image is made of."""
    digest = hashlib.sha256(SUITE.encode())
    for name in gotools.FOR_NODE:
        digest.update(f"{name} {gotools.TOOLS[name].key()}\n".encode())
    for file in (MANIFESTS / "node-network.yaml", MANIFESTS / "local-path.yaml"):
        digest.update(file.read_bytes())
    # The recipe's meaning, not its text: a comment is no reason to build an image for minutes.
    digest.update(ast.dump(ast.parse((HERE / "nodebuild.py").read_text())).encode())
    return digest.hexdigest()[:12]


def ensure_node_image(paths: Paths, engine: Engine) -> str:
    """The name of a node image that the engine has."""
    if chosen := os.environ.get("FINETUNE_NODE_IMAGE"):
        return chosen
    if not engine.is_ours:
        log = paths.logs / "pull.log"
        if engine.has_image(OFFICIAL) or engine.pull(OFFICIAL, log):
            return OFFICIAL
        say(f"    no registry gives {OFFICIAL}: it is built here")
    name = f"{OURS}:{image_key()}"
    if not engine.has_image(name):
        log = paths.logs / "node-image.log"
        file = _ensure_archive(paths, name)
        with step(f"load the node image ({file.stat().st_size / 2**20:.0f} MiB)"):
            engine.load(file, log)
        engine.drop_other_tags(name)
    return name


def is_current(image: str) -> bool:
    """Whether a cluster of this image is what the files here make."""
    return not image.startswith(f"{OURS}:") or image == f"{OURS}:{image_key()}"


def _ensure_archive(paths: Paths, name: str) -> Path:
    stem = name.replace("/", "-").replace(":", "-")
    if found := archive.find_archive(paths, stem):
        return found
    log = paths.logs / "node-image.log"
    packages.ensure_programs(["zstd"], log)
    work = paths.build / "node"
    with step("build the node image"):
        clear_folder(work)
        layer = nodebuild.build(paths, work, log)
        file = archive.save_archive(paths, stem, [name], layer, nodebuild.NODE_CONFIG)
        clear_folder(work)
        archive.drop_others(paths, OURS.replace("/", "-"), keep=file)
    return file
