"""python3 -m hack.cluster COMMAND: see README.md, or `--help`."""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from . import addons, base, build, cgroups, check, config, debian, engine, gotools, kind, mounts, nodeimage, share
from .paths import Paths
from .progress import MARKER, CommandFailed, output, say, step

Command = Callable[[Paths, argparse.Namespace], int]


def up(paths: Paths, _: argparse.Namespace) -> int:
    """a cluster with its add-ons; returns fast if one runs, makes it anew if it is broken"""
    with locked(paths):
        running = engine.ensure(paths)
        gotools.ensure_tools(paths, ["yaml2json"])
        wanted = kind.read_config(paths)
        if not _is_usable(paths, running, wanted):
            kind.create(paths, running, wanted)
            addons.ensure_addons(paths, running, wanted)
        gotools.ensure_tools(paths, gotools.FOR_USERS)
    say('the cluster is up: eval "$(python3 -m hack.cluster env)"')
    return 0


def _is_usable(paths: Paths, running: engine.Engine, wanted: config.Config) -> bool:
    cgroups.thaw(paths.cgroup)
    if not running.wake_nodes(config.cluster_name(wanted)):
        return False
    with step("look at the cluster that is there"):
        # A node that was just started takes a moment.
        found = kind.wait_until_usable(paths, wanted, timeout_s=45)
    if found:
        say(f"    {'; '.join(found)}: it is made anew")
        return False
    if not nodeimage.is_current(kind.image_that_runs(paths)):
        say("    the files here make another node image than it runs on: `down`, then `up`, to have that")
    if addons.problems(paths, wanted):
        addons.ensure_addons(paths, running, wanted)
    return True


def status(paths: Paths, _: argparse.Namespace) -> int:
    """what runs, and what is wrong with it; exit code 1 if anything is"""
    running = engine.find(paths)
    if running is None:
        print("engine: none answers")
        return 1
    print(f"engine: {'our own' if running.is_ours else 'yours'}")
    if not (paths.bin / "yaml2json").exists():
        print("cluster: none was made yet")
        return 1
    wanted = kind.read_config(paths)
    found = kind.problems(paths, wanted) or addons.problems(paths, wanted)
    print(f"cluster {config.cluster_name(wanted)}: {'; '.join(found) or 'usable'}")
    if not found:
        print(kind.kubectl(paths, "get", "nodes,pods", "-A", "-o", "wide"))
    return 1 if found else 0


def logs(paths: Paths, _: argparse.Namespace) -> int:
    """writes the nodes' and pods' logs into a folder and prints its name"""
    running = engine.find(paths)
    folder = paths.logs / "nodes"
    if running is not None and (paths.bin / "kind").exists():
        name = config.cluster_name(kind.read_config(paths))
        shutil.rmtree(folder, ignore_errors=True)
        with step("export the nodes' logs"), contextlib.suppress(CommandFailed):
            # It ends in an error on the nodes that are built here, which have no crictl; the files are written.
            output([paths.bin / "kind", "export", "logs", "--name", name, folder], environment=running.environment)
    print(paths.logs)
    print(paths.audit / config.AUDIT_LOG)
    return 0


def down(paths: Paths, _: argparse.Namespace) -> int:
    """removes the cluster and ends our own engine, whatever is left of them; images and tools stay"""
    with locked(paths), step("down"):
        _remove_yours(paths)
        engine.stop(paths)
        debian.clear_folder(paths.build)
        mounts.unmount_below(paths.cache)
        for file in (paths.kubeconfig, paths.run / "kind-config.json", paths.run / "node-image"):
            file.unlink(missing_ok=True)
        shutil.rmtree(paths.shared, ignore_errors=True)
    return 0


def _remove_yours(paths: Paths) -> None:
    """On your engine only the cluster is ours to remove."""
    running = engine.find(paths)
    if running is None or running.is_ours:
        return
    if paths.kubeconfig.exists() and (paths.bin / "yaml2json").exists():
        running.remove_nodes(config.cluster_name(kind.read_config(paths)))


def clean(paths: Paths, arguments: argparse.Namespace) -> int:
    """down, and removes all that was built or stored as well"""
    down(paths, arguments)
    with locked(paths), step(f"remove {paths.cache}"):
        left = mounts.mounted_below(paths.cache)
        if left:
            raise CommandFailed(f"still mounted: {left}")
        for entry in paths.cache.iterdir():
            if entry != paths.lock:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return 0


def tools(paths: Paths, arguments: argparse.Namespace) -> int:
    """builds the Go programs"""
    with locked(paths):
        gotools.ensure_tools(paths, [name for name in gotools.TOOLS if arguments.all or name not in gotools.EXTRA])
    return 0


def start_engine(paths: Paths, _: argparse.Namespace) -> int:
    """a Docker engine, without a cluster"""
    with locked(paths):
        engine.ensure(paths)
    return 0


def make_base(paths: Paths, _: argparse.Namespace) -> int:
    """the image that Dockerfiles start from, in the engine; prints its name"""
    with locked(paths):
        print(base.ensure_base(paths, engine.ensure(paths)))
    return 0


def build_image(paths: Paths, arguments: argparse.Namespace) -> int:
    """docker build with what a build needs to reach packages from here"""
    with locked(paths):
        running = engine.ensure(paths)
        base.ensure_base(paths, running)
    return build.build(paths, running, arguments.words)


def share_images(paths: Paths, arguments: argparse.Namespace) -> int:
    """makes images of the engine available in every node"""
    with locked(paths):
        running = engine.ensure(paths)
        share.share(paths, running, config.cluster_name(kind.read_config(paths)), arguments.images)
    return 0


def environment(paths: Paths, _: argparse.Namespace) -> int:
    """prints what a shell needs to talk to the engine and the cluster"""
    running = engine.find(paths)
    host = running.host if running else f"unix://{paths.socket}"
    if host:
        print(f"export DOCKER_HOST={shlex.quote(host)} DOCKER_BUILDKIT=1")
    print(f"export KUBECONFIG={shlex.quote(str(paths.kubeconfig))}")
    print(f'export PATH={shlex.quote(str(paths.bin))}:"$PATH"')
    return 0


def thaw(paths: Paths, _: argparse.Namespace) -> int:
    """wakes cgroups that a killed runc left frozen"""
    say(f"{cgroups.thaw(paths.cgroup)} frozen cgroups woken")
    return 0


def check_cluster(paths: Paths, _: argparse.Namespace) -> int:
    """proves with pods that DNS, storage, GPUs and the gateway work"""
    check.check(paths)
    return 0


COMMANDS: dict[str, Command] = {
    "up": up,
    "status": status,
    "check": check_cluster,
    "logs": logs,
    "down": down,
    "clean": clean,
    "engine": start_engine,
    "base": make_base,
    "build": build_image,
    "share": share_images,
    "tools": tools,
    "env": environment,
    "thaw": thaw,
}


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m hack.cluster", description="A real cluster for the tests.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        if name == "share":
            command.add_argument("images", nargs="+", metavar="IMAGE")
        if name == "tools":
            command.add_argument("--all", action="store_true", help="those too that only a few tests use")
    arguments, others = parser.parse_known_args(words)
    if others and arguments.command != "build":
        parser.error(f"unknown arguments: {' '.join(others)}")
    # Everything after `build` is docker build's, options among it, which argparse cannot hand on in their order.
    arguments.words = words[words.index("build") + 1 :] if arguments.command == "build" else []
    return arguments


@contextlib.contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """One change at a time: two runs at once would each take away what the other has just made."""
    with paths.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run of hack.cluster to end …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _exit_on(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through the `finally`s, so that what was started is ended


def main() -> int:
    signal.signal(signal.SIGTERM, _exit_on)
    arguments = parse(sys.argv[1:])
    paths = Paths.from_environment()
    os.environ[MARKER] = str(paths.cache)
    try:
        return COMMANDS[arguments.command](paths, arguments)
    except CommandFailed as error:
        say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
