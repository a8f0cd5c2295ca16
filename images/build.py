#!/usr/bin/env python3
"""Builds the project's images, each once per content: `python3 images/build.py --help`.

An image is tagged with a digest of everything that goes into it, so a changed one is a new name for nodes that pull
`IfNotPresent`, and an unchanged one is not built again. hack/cluster finds or starts the engine, and knows how builds on
this machine reach their packages. Standard library only.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = (sys.executable, "-m", "hack.cluster")
LIFE_SIGN_S = 20
TAIL_LINES = 40


@dataclass(frozen=True)
class Image:
    """What an image is made of: files and folders of the repository, and perhaps the llama image.

    `runs_in`: an image whose programs make this one. It is no part of the name: what they make does not change with them.
    """

    name: str
    sources: tuple[str, ...]
    uses_llama: bool = False
    is_ours: bool = True  # its version is the project's
    runs_in: str | None = None

    @property
    def dockerfile(self) -> str:
        return f"images/{self.name}/Dockerfile"


# images/steps is no part of an image: it says how packages are reached and installed, not which.
LOCKED = ("images/lock", "pyproject.toml", "uv.lock")
IMAGES = {
    image.name: image
    for image in (
        Image("llama", ("images/llama",), is_ours=False),
        Image("trainer", ("images/trainer", *LOCKED, "api/finetune_api", "trainer/finetune_trainer"), uses_llama=True),
        Image(
            "operator",
            (
                "images/operator",
                *LOCKED,
                "operator/finetune_operator",
                "api/finetune_api",
            ),
        ),
        Image("server", ("images/server",), uses_llama=True),
        Image(
            "example",
            ("images/example", "examples/support-bot/make_base.py", "examples/support-bot/manual.py"),
            is_ours=False,
            runs_in="trainer",
        ),
    )
}


class BuildFailed(Exception):
    """A program failed; the text holds the end of what it wrote."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- names -----------------------------------------------------------------------------------------------------------


def files_of(source: Path) -> Iterator[Path]:
    """The files that a COPY of `source` takes, in a fixed order; bytecode is left out, as in .dockerignore."""
    if source.is_file():
        yield source
        return
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield path


def content_key(image: Image, repository: Path = REPOSITORY) -> str:
    """Twelve hexadecimal digits that change with anything the image is made of, but for the base image."""
    digest = hashlib.sha256()
    if image.is_ours:
        digest.update(project_version(repository).encode())
    if image.uses_llama:
        digest.update(content_key(IMAGES["llama"], repository).encode())
    for source in sorted(image.sources):
        for path in files_of(repository / source):
            executable = bool(path.stat().st_mode & 0o100)
            digest.update(f"\0{path.relative_to(repository)}\0{executable}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def reference(image: Image, repository: Path = REPOSITORY) -> str:
    return f"finetune-operator/{image.name}:{content_key(image, repository)}"


def project_version(repository: Path) -> str:
    return str(tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"])


# --- this machine ----------------------------------------------------------------------------------------------------


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The same folder as hack/cluster/paths.py chooses."""
    if chosen := environ.get("FINETUNE_CACHE"):
        return Path(chosen).absolute()
    home = Path(environ.get("HOME") or Path.home())
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "finetune-operator"


@dataclass(frozen=True)
class Engine:
    """The Docker engine that hack/cluster finds or starts: `environment` leads `docker` to it."""

    environment: Mapping[str, str]

    @classmethod
    def ensure(cls) -> "Engine":
        """An engine that answers; our own is started where there is no other."""
        if (engine := cls._find()).answers():
            return engine
        subprocess.run([*CLUSTER, "engine"], cwd=REPOSITORY, stdout=sys.stderr)
        if (engine := cls._find()).answers():
            return engine
        raise BuildFailed("there is no Docker engine to build with")

    @classmethod
    def _find(cls) -> "Engine":
        # A shell knows best what a shell is told.
        script = f'variables=$({shlex.join(CLUSTER)} env) && eval "$variables" && env -0'
        printed = subprocess.run(["sh", "-c", script], cwd=REPOSITORY, check=True, capture_output=True, text=True)
        return cls(dict(entry.split("=", 1) for entry in printed.stdout.split("\0") if "=" in entry))

    def answers(self) -> bool:
        return subprocess.run(["docker", "version"], env=self.environment, capture_output=True).returncode == 0

    def docker(self, *arguments: str) -> str:
        """What `docker` prints."""
        done = subprocess.run(["docker", *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise BuildFailed(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return bool(self.docker("image", "ls", "--quiet", image))


# --- building --------------------------------------------------------------------------------------------------------


def build_all(engine: Engine, *, again: bool) -> None:
    """Builds every image."""
    trainer = IMAGES["trainer"]
    with packages_beside(engine, trainer) if not engine.has(reference(trainer)) else nullcontext():
        build(engine, IMAGES["llama"], again=again)
    for image in IMAGES.values():
        if image.name != "llama":
            build(engine, image, again=again)


@contextmanager
def packages_beside(engine: Engine, image: Image) -> Iterator[None]:
    """Has the image's stage `packages` built while the block compiles: it downloads gigabytes. Should it fail, building the image will say so."""
    command = [*build_command(image), "--target", "packages"]
    with log_of(f"{image.name}-packages").open("wb") as output:
        process = start(command, engine.environment, output)
        try:
            yield
            process.wait()
        finally:
            process.terminate()
            process.wait()


def log_of(build: str) -> Path:
    """Where a build's output goes."""
    return cache_folder(os.environ) / "images" / f"{build}.log"


def build_command(image: Image) -> list[str]:
    """The command that builds the image, with all that this machine's builds need; its tag is left to say."""
    # The context comes first: argparse, over there, hands on only what follows a word without a dash.
    command = [*CLUSTER, "build", ".", "--progress", "plain", "--file", image.dockerfile]
    if image.uses_llama:
        command += ["--build-arg", f"LLAMA={reference(IMAGES['llama'])}"]
    if image.runs_in:
        command += ["--build-arg", f"{image.runs_in.upper()}={reference(IMAGES[image.runs_in])}"]
    if image.is_ours:
        command += ["--label", f"org.opencontainers.image.version={project_version(REPOSITORY)}"]
    return command


def build(engine: Engine, image: Image, *, again: bool = False) -> None:
    """Builds the image unless the engine holds this content, and gives it the tag `dev`."""
    name = reference(image)
    began = time.monotonic()
    if again or not engine.has(name):
        if image.uses_llama:
            build(engine, IMAGES["llama"])
        if image.runs_in:
            build(engine, IMAGES[image.runs_in])
        say(f"{name}: building …")
        run_logged([*build_command(image), "--tag", name], engine.environment, log_of(image.name))
    engine.docker("tag", name, f"finetune-operator/{image.name}:dev")
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", name))
    say(f"{name}: {size / 1e6:,.0f} MB, {time.monotonic() - began:.1f} s")


def start(command: list[str], environment: Mapping[str, str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def run_logged(command: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Runs a program with its output in a new `log`; shows the last line now and then, the end of it on failure."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = start(command, environment, output)
        try:
            while True:
                try:
                    code = process.wait(LIFE_SIGN_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"    … {tail(log, 1)[:110]}")
        except BaseException:  # interrupted: leave nothing running behind us
            process.terminate()
            process.wait()
            raise
    if code:
        raise BuildFailed(f"the build ended with {code}; the end of {log}:\n{tail(log, TAIL_LINES)}")


def tail(log: Path, lines: int) -> str:
    with log.open("rb") as text:
        size = text.seek(0, os.SEEK_END)
        text.seek(max(0, size - 16_384))
        kept = [line for line in text.read().decode(errors="replace").splitlines() if line.strip("\0 ")]
    return "\n".join(kept[-lines:])


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds a lock: a second run waits and then finds the images there."""
    folder = cache_folder(os.environ) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- llama.cpp on the host -------------------------------------------------------------------------------------------


def llama_home() -> Path:
    """Where the host's copy of the llama image's tree lies, for FINETUNE_LLAMA_HOME."""
    return cache_folder(os.environ) / "llama" / content_key(IMAGES["llama"])


def ensure_llama_home() -> Path:
    """The host's copy of /opt/llama; needs an engine only where it is not there yet."""
    home = llama_home()
    if home.is_dir():
        return home
    engine = Engine.ensure()
    build(engine, IMAGES["llama"])
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    # The image holds no program to run: the command is never started.
    container = engine.docker("create", reference(IMAGES["llama"]), "none")
    try:
        engine.docker("cp", f"{container}:/opt/llama", str(partial))
    finally:
        engine.docker("rm", container)
    partial.rename(home)
    return home


# --- command line ----------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=[*IMAGES, "all", "tags"],
        help="an image; all of them; or tags: print what the images are called, without building. "
        "llama also copies its tree to the host and prints where it is (FINETUNE_LLAMA_HOME)",
    )
    parser.add_argument("--again", action="store_true", help="build even what is there, for a new base image")
    parser.add_argument("--json", action="store_true", help="tags as a JSON object instead of name=tag lines")
    return parser.parse_args()


def print_tags(*, as_json: bool) -> None:
    tags = {name: reference(image) for name, image in IMAGES.items()}
    print(json.dumps(tags) if as_json else "\n".join(f"{name}={tag}" for name, tag in tags.items()))


def _exit_on(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through the `except`s, so that what was started is ended


def main() -> int:
    signal.signal(signal.SIGTERM, _exit_on)
    arguments = parse_arguments()
    if arguments.what == "tags":
        print_tags(as_json=arguments.json)
        return 0
    try:
        with one_at_a_time():
            if arguments.again or arguments.what != "llama":
                engine = Engine.ensure()
                if arguments.what == "all":
                    build_all(engine, again=arguments.again)
                else:
                    build(engine, IMAGES[arguments.what], again=arguments.again)
            if arguments.what in ("llama", "all"):
                print(ensure_llama_home())
    except BuildFailed as failure:
        say(str(failure))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
