"""The operator on the tests' cluster: images built, given to the nodes, chart installed. `python3 -m hack.install`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "finetune-operator"
NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"


@contextmanager
def step(text: str, taken: list[tuple[str, float]] | None = None) -> Iterator[None]:
    """Says what is done and how long it took; `taken` collects the times."""
    print(f"==> {text}", flush=True)
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    print(f"<== {text}: {seconds:.1f} s", flush=True)
    if taken is not None:
        taken.append((text, seconds))


def cluster(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "hack.cluster", *words], cwd=REPOSITORY, check=True)


def cluster_environment() -> dict[str, str]:
    """This process' environment with what a shell needs to talk to the engine and the cluster."""
    script = subprocess.run(
        [sys.executable, "-m", "hack.cluster", "env"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    shown = subprocess.run(["bash", "-c", f"{script}\nenv -0"], check=True, capture_output=True).stdout
    return dict(entry.split("=", 1) for entry in shown.decode().split("\0") if "=" in entry)


def build_images() -> dict[str, str]:
    """References of the images by name, built where they are not there yet."""
    subprocess.run([sys.executable, "images/build.py", "all"], cwd=REPOSITORY, check=True, env=cluster_environment())
    shown = subprocess.run(
        [sys.executable, "images/build.py", "tags", "--json"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return dict(json.loads(shown.stdout))


def share_images(images: dict[str, str]) -> None:
    cluster("share", *(images[name] for name in ("operator", "trainer", "server", "example")))


def helm_install(images: dict[str, str], *values: str) -> None:
    """Installs or upgrades the release and waits until it is ready. `values`: further `name=value` of --set."""
    chosen = list(values)
    for name in ("operator", "trainer", "server"):
        repository, _, tag = images[name].rpartition(":")
        chosen += [f"images.{name}.repository={repository}", f"images.{name}.tag={tag}"]
    command = ["helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"]
    command += [
        "--wait",
        "--timeout",
        "180s",
        "--take-ownership",
        "--force-conflicts",
        *(word for value in chosen for word in ("--set", value)),
    ]
    subprocess.run(command, check=True, env=cluster_environment(), stdout=subprocess.DEVNULL)


def install(taken: list[tuple[str, float]] | None = None) -> dict[str, str]:
    """Everything from images to a ready operator; the images' references."""
    with step("build what has changed of the images", taken):
        images = build_images()
    with step("give the images to the nodes", taken):
        share_images(images)
    with step("helm install", taken):
        helm_install(images)
    return images


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    install()
