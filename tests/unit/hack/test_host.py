"""What hack/cluster reads of the machine: folders, tools, mounts, cgroups, packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from hack.cluster import addons, build, cgroups, engine, gotools, mounts, nodeimage, packages, processes
from hack.cluster.locks import locked
from hack.cluster.paths import REPOSITORY, Paths, cache_folder

ENVIRONMENTS = {
    "its own variable decides": ({"FINETUNE_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
    "then the desktop's": ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/finetune-operator"),
    "then the home folder": ({"HOME": "/h"}, "/h/.cache/finetune-operator"),
    "an empty one says nothing": ({"FINETUNE_CACHE": "", "HOME": "/h"}, "/h/.cache/finetune-operator"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_cache_folder(name: str) -> None:
    environment, want = ENVIRONMENTS[name]
    assert cache_folder(environment) == Path(want)


def test_a_cache_too_deep_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / ("x" * 100)))
    with pytest.raises(SystemExit, match="FINETUNE_CACHE"):
        Paths.from_environment()


@pytest.mark.parametrize(
    ("text", "version"),
    {
        "go version go1.26.8 linux/amd64": (1, 26, 8),
        "go version go1.19 linux/amd64": (1, 19),
        "go version devel +abc": (0,),
        "": (0,),
    }.items(),
)
def test_go_version(text: str, version: tuple[int, ...]) -> None:
    assert gotools.go_version(text) == version


def test_a_tools_key_changes_with_its_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "cmd" / "x"
    command.mkdir(parents=True)
    (tmp_path / "go.mod").write_text("module x")
    (tmp_path / "go.sum").write_text("")
    (command / "main.go").write_text("package main")
    monkeypatch.setattr(gotools, "GO_MODULE", tmp_path)
    monkeypatch.setattr(gotools, "PRUNED", tmp_path / "pruned")
    tool = gotools.GoTool("x", "./cmd/x", is_pruned=True)
    keys = [tool.key()]
    (command / "main.go").write_text("package main // changed")
    keys.append(tool.key())
    (tmp_path / "go.mod").write_text("module x // changed")
    keys.append(tool.key())
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "none.go").write_text("package none")
    keys.append(tool.key())
    monkeypatch.setattr(gotools, "_FLAGS", ("-race",))
    keys.append(tool.key())
    assert len(set(keys)) == 5


def test_one_build_makes_all_tools_but_those_that_cannot_be_built_with_others() -> None:
    tools = [gotools.TOOLS[name] for name in ("kubeconform", "k8s", "local-path-provisioner", "helm")]
    batches = [[tool.name for tool in batch] for batch in gotools._batches(tools)]
    assert batches == [["k8s", "helm"], ["kubeconform"], ["local-path-provisioner"]]
    assert gotools._batches([]) == []


def test_how_far_a_build_is() -> None:
    log = "go: downloading k8s.io/api v0.34.4\ninternal/cpu\nk8s.io/api/core/v1\n"
    assert gotools._how_far(log, 8) == "2 of 8 packages (25 %), now k8s.io/api/core/v1"
    assert gotools._how_far("", 0) == "0 of 0 packages (0 %), now none"


def test_what_stands_in_for_a_package_names_it_and_every_module_is_one_of_ours() -> None:
    pruned = gotools.pruned_packages()
    assert pruned["github.com/go-acme/lego/v4"] == ["providers/dns"]
    required = (gotools.GO_MODULE / "go.mod").read_text()
    for module, replaced in pruned.items():
        assert f"{module} v" in required
        for package in replaced:
            file = gotools.PRUNED / module / package / "none.go"
            assert f"\npackage {Path(package).name}\n" in file.read_text()


def test_a_lock_is_taken_once_by_a_process_and_in_one_order(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.locks.mkdir()
    ask = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def is_free(name: str) -> bool:
        return subprocess.run([sys.executable, "-c", ask, paths.locks / name], capture_output=True).returncode == 0

    with locked(paths, "tools", "cluster"):
        with locked(paths, "tools"):
            assert not is_free("cluster")
            assert is_free("engine")
        assert not is_free("tools"), "the inner block has let go of the outer one's"
        with pytest.raises(AssertionError, match="engine after"), locked(paths, "engine"):
            pass
    assert is_free("tools")


def test_every_tool_can_be_keyed_and_the_images_key_is_stable() -> None:
    assert all(tool.key() for tool in gotools.TOOLS.values())
    assert nodeimage.image_key() == nodeimage.image_key()


MOUNTINFO = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /cache/run/shared rw - ext4 /dev/vda rw
31 30 0:26 / /cache/run/shared/abc ro - overlay overlay ro
32 22 0:27 / /cache-of-others rw - tmpfs tmpfs rw
33 22 0:28 / /with\\040space rw - tmpfs tmpfs rw
"""


def test_mounts_are_found_innermost_first_and_only_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", file)
    assert mounts.mounted_below(Path("/cache")) == [Path("/cache/run/shared/abc"), Path("/cache/run/shared")]
    assert mounts.is_mounted(Path("/with space"))
    assert not mounts.is_mounted(Path("/cache"))


def test_frozen_cgroups_of_ours_are_woken_and_no_others(tmp_path: Path) -> None:
    states = {
        "freezer/ours/a/kubelet": "FROZEN",
        "freezer/ours/b": "THAWED",
        "freezer/docker/c": "FROZEN",
    }
    for folder, state in states.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "freezer.state").write_text(state + "\n")
    assert cgroups.thaw("ours", tmp_path) == 1
    assert (tmp_path / "freezer/ours/a/kubelet/freezer.state").read_text() == "THAWED"
    assert (tmp_path / "freezer/docker/c/freezer.state").read_text() == "FROZEN\n"


def test_members_of_cgroups_on_both_versions(tmp_path: Path) -> None:
    for folder, pids in {"ours/a": "1\n2\n", "cpu/ours/a/b": "2\n3\n", "cpu/other": "4\n"}.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cgroup.procs").write_text(pids)
    assert cgroups.members("ours", tmp_path) == {1, 2, 3}


def test_the_inotify_limit_is_raised_and_never_lowered(tmp_path: Path) -> None:
    setting = tmp_path / "max_user_instances"
    for before, after in {"128\n": "1024", "8192\n": "8192\n"}.items():
        setting.write_text(before)
        engine.raise_inotify_limit(setting)
        assert setting.read_text() == after
    engine.raise_inotify_limit(tmp_path / "absent")


def test_two_caches_have_two_parents() -> None:
    assert cgroups.parent(Path("/a")) != cgroups.parent(Path("/b"))


def test_ourselves_and_those_that_started_us_are_never_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def process(pid: int, parent: int, marked: bool) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 1")
        (tmp_path / str(pid) / "environ").write_text("A=b\0" + f"{processes.MARKER}=/cache\0" * marked)

    monkeypatch.setattr(processes, "PROC", tmp_path)
    own = processes.os.getpid()
    process(1, 0, marked=False)
    process(own + 1, 1, marked=True)
    process(own, own + 1, marked=True)
    process(own + 2, own, marked=True)
    process(own + 3, 1, marked=False)
    assert processes.marked_processes(Path("/cache")) == {own + 2}


def test_a_pid_counts_only_with_the_right_command_line() -> None:
    assert processes.is_running(processes.os.getpid(), "python")
    assert not processes.is_running(processes.os.getpid(), "dockerd", "/cache/run")
    assert processes.read_pid(Path("/nowhere")) is None


def test_debian_sources_are_this_machines_own_without_others() -> None:
    targets = """\
http://mirror.example/debian/|bookworm|main|Debian
http://mirror.example/debian/|bookworm-updates|main|Debian
http://mirror.example/security/|bookworm-security|main|Debian
http://mirror.example/debian/|bookworm|contrib|Debian
http://mirror.example/debian/|trixie|main|Debian
https://other.example/|bookworm|main|Other"""
    assert packages.debian_sources(targets, "bookworm") == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/security bookworm-security main",
        "deb http://mirror.example/debian bookworm-updates main",
    ]


def test_a_build_gets_what_the_machine_has() -> None:
    environment = {"SSL_CERT_FILE": "/ca.crt", "HTTPS_PROXY": "http://proxy.example:3128"}
    words = build.host_arguments(environment, {"/ca.crt": True, "/etc/pip.conf": True})
    assert words == [
        *("--network", "host", "--build-arg", "BASE=finetune-base:bookworm"),
        *("--secret", "id=ca,src=/ca.crt", "--secret", "id=pip,src=/etc/pip.conf"),
        *("--build-arg", "https_proxy=http://proxy.example:3128"),
    ]


def test_a_build_on_a_plain_machine_gets_no_secrets() -> None:
    assert build.host_arguments({}, {}) == ["--network", "host", "--build-arg", "BASE=finetune-base:bookworm"]


def test_missing_gpus_are_told() -> None:
    node = {"status": {"allocatable": {"nvidia.com/gpu": "2"}}}
    other: dict[str, dict[str, dict[str, str]]] = {"status": {"allocatable": {}}}
    assert addons.missing_gpus([other, node, node], 2) == []
    assert addons.missing_gpus([other, node], 2) == ["1 of 2 workers offer 2 nvidia.com/gpu"]


def test_the_operator_folder_is_no_package() -> None:
    assert not (REPOSITORY / "operator" / "__init__.py").exists()
