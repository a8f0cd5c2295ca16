"""images/build.py: what an image is called, and with what it is built."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from images import build

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the images are made of, to change."""
    for source in {source for image in build.IMAGES.values() for source in image.sources}:
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, target, dirs_exist_ok=True)
        else:
            shutil.copy(REPOSITORY / source, target)
    return tmp_path


def changed_images(before: dict[str, str], repository: Path) -> set[str]:
    return {name for name, key in before.items() if build.content_key(build.IMAGES[name], repository) != key}


@pytest.mark.parametrize(
    ("changed", "images"),
    [
        ("images/llama/Dockerfile", {"llama", "trainer", "server"}),
        ("images/server/serve.sh", {"server"}),
        ("examples/support-bot/manual.py", {"example"}),
        ("uv.lock", {"trainer", "operator"}),
        ("api/finetune_api/run.py", {"trainer", "operator"}),
        ("trainer/finetune_trainer/new/module.py", {"trainer"}),
        ("operator/finetune_operator/new.py", {"operator"}),
        ("operator/finetune_operator/__pycache__/new.cpython-311.pyc", set()),
        ("docs/new.md", set()),
    ],
)
def test_an_image_is_renamed_by_what_it_is_made_of_and_by_nothing_else(repository: Path, changed: str, images: set[str]) -> None:
    before = {name: build.content_key(image, repository) for name, image in build.IMAGES.items()}
    path = repository / changed
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n")
    assert changed_images(before, repository) == images


def test_a_new_version_renames_our_images_and_spares_the_long_build_of_llama(repository: Path) -> None:
    before = {name: build.content_key(image, repository) for name, image in build.IMAGES.items()}
    pyproject = repository / "pyproject.toml"
    version = build.project_version(repository)
    pyproject.write_text(pyproject.read_text().replace(f'version = "{version}"', 'version = "99.0.0"'))
    assert changed_images(before, repository) == {"trainer", "operator", "server"}


def test_a_file_that_becomes_executable_renames_the_image(repository: Path) -> None:
    before = build.content_key(build.IMAGES["server"], repository)
    (repository / "images/server/serve.sh").chmod(0o644)
    assert build.content_key(build.IMAGES["server"], repository) != before


def test_a_moved_file_renames_the_image(repository: Path) -> None:
    before = build.content_key(build.IMAGES["llama"], repository)
    (repository / "images/llama/install.sh").rename(repository / "images/llama/lay-out.sh")
    assert build.content_key(build.IMAGES["llama"], repository) != before


def test_references_carry_the_content_and_never_latest() -> None:
    for name, image in build.IMAGES.items():
        repository, tag = build.reference(image).split(":")
        assert repository == f"finetune-operator/{name}"
        assert len(tag) == 12
        assert set(tag) <= set("0123456789abcdef")


def test_the_command_names_the_llama_image_by_content_and_the_version() -> None:
    command = build.build_command(build.IMAGES["trainer"])
    assert f"LLAMA={build.reference(build.IMAGES['llama'])}" in command
    assert f"org.opencontainers.image.version={build.project_version(REPOSITORY)}" in command


def test_llama_depends_on_no_version_of_ours() -> None:
    command = build.build_command(build.IMAGES["llama"])
    assert not any("version" in word or word.startswith("LLAMA=") for word in command)


def test_the_cache_is_the_test_cluster_s() -> None:
    from hack.cluster.paths import cache_folder

    for environment in (
        {"FINETUNE_CACHE": "/somewhere", "HOME": "/home/a"},
        {"XDG_CACHE_HOME": "/caches", "HOME": "/home/a"},
        {"HOME": "/home/a"},
    ):
        assert build.cache_folder(environment) == cache_folder(environment)


def test_the_end_of_a_log_skips_the_blanks_that_buildkit_leaves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\nsecond\n" + b"\0" * 100 + b"\n   \n")
    assert build.tail(log, 1) == "second"


def test_images_cannot_be_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build.IMAGES["llama"].name = "other"


def test_the_test_cluster_understands_the_command() -> None:
    from hack.cluster.__main__ import parse

    command = build.build_command(build.IMAGES["server"])
    words = command[len(build.TEST_CLUSTER) :]
    assert parse(words).words == words[1:]


def test_a_failed_build_is_explained_by_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "image.log"
    with pytest.raises(build.BuildFailed, match=r"(?s)ended with 3; the end of .*image\.log:\n.*no such package"):
        build.run_logged(["sh", "-c", "echo no such package >&2; exit 3"], {"PATH": "/usr/bin:/bin"}, log)


def test_an_image_that_is_there_is_tagged_and_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    image = build.IMAGES["server"]
    asked: list[tuple[str, ...]] = []

    class Engine:
        environment: dict[str, str] = {}

        def has(self, name: str) -> bool:
            return name == build.reference(image)

        def docker(self, *arguments: str) -> str:
            asked.append(arguments)
            return "107000000"

    monkeypatch.setattr(build, "run_logged", lambda *_: pytest.fail("it was built"))
    build.build(Engine(), image)
    assert asked[0] == ("tag", build.reference(image), "finetune-operator/server:dev")


def test_the_tree_on_the_host_is_used_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(build.Engine, "ensure", lambda: pytest.fail("it asked for an engine"))
    build.llama_home().mkdir(parents=True)
    assert build.ensure_llama_home() == build.llama_home()
