"""A cluster with the operator on it: images built, given to the nodes, chart installed. `python3 -m hack.install`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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


_BUILD_IMAGES = (sys.executable, "images/build.py", "all")


def bring_up() -> dict[str, float]:
    """A cluster, and the images beside it: one waits for the network while the other compiles. Seconds that each took."""
    return side_by_side({"cluster": (sys.executable, "-m", "hack.cluster", "up"), "images": _BUILD_IMAGES})


def side_by_side(commands: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Runs programs at once, what they print marked with their names; when one fails the others are ended.

    Returns how many seconds each took. Raises CalledProcessError for the first that failed.
    """
    began = time.monotonic()
    running = {name: _start(command) for name, command in commands.items()}
    printers = [threading.Thread(target=_print_marked, args=(name, process)) for name, process in running.items()]
    for printer in printers:
        printer.start()
    taken: dict[str, float] = {}
    try:
        while waiting := {name: process for name, process in running.items() if name not in taken}:
            for name, process in waiting.items():
                if process.poll() is not None:
                    taken[name] = time.monotonic() - began
                    _check(process)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        for printer in printers:
            printer.join()
    return taken


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )


def _print_marked(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name:8}| {line}", end="", flush=True)


def _check(process: subprocess.Popen[str]) -> None:
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)


def build_images() -> dict[str, str]:
    """References of the images by name, built where they are not there yet."""
    subprocess.run(_BUILD_IMAGES, cwd=REPOSITORY, check=True)
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
    command += ["--wait", "--timeout", "180s", "--take-ownership", "--force-conflicts"]
    command += [word for value in chosen for word in ("--set", value)]
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
    bring_up()
    install()
