"""The image that the project's Dockerfiles start from: Debian with certificates, also where no registry gives it."""

from pathlib import Path

from . import archive
from .debian import SUITE, Bootstrap, clear_folder, slim_down
from .engine import Engine
from .ociimage import ImageConfig, Layer
from .paths import Paths
from .progress import run, step

IMAGE = f"finetune-base:{SUITE}"
OFFICIAL = f"debian:{SUITE}-slim"


def ensure_base(paths: Paths, engine: Engine) -> str:
    """The name of the base image, which the engine then has."""
    log = paths.logs / "base.log"
    if engine.has_image(IMAGE):
        return IMAGE
    if not engine.is_ours and (engine.has_image(OFFICIAL) or engine.pull(OFFICIAL, log)):
        engine.docker("tag", OFFICIAL, IMAGE)
        return IMAGE
    stem = IMAGE.replace(":", "-")
    file = archive.find_archive(paths, stem) or _build(paths, stem)
    with step(f"load {IMAGE}"):
        engine.load(file, log)
    return IMAGE


def _build(paths: Paths, stem: str) -> Path:
    work = paths.build / "base"
    with step(f"build {IMAGE} by debootstrap"):
        clear_folder(work)
        with Bootstrap(paths, work / "root", ["ca-certificates"]) as bootstrap:
            root = bootstrap.wait()
            bootstrap.write_sources()
        slim_down(root)
        layer = work / "base.tar"
        run(["tar", "--numeric-owner", "-C", root, "-cf", layer, "."], paths.logs / "base.log")
        file = archive.save_archive(paths, stem, [IMAGE], Layer(layer), ImageConfig(command=["bash"]))
        clear_folder(work)
    return file
