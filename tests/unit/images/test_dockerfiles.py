"""Rules that every Dockerfile keeps, read from the files themselves."""

import json
import re
from pathlib import Path

import pytest

from images import build

REPOSITORY = Path(__file__).resolve().parents[3]
PUBLISHED = ("trainer", "operator", "server")


def dockerfile(name: str) -> str:
    """The Dockerfile with continued lines joined and comments left out."""
    text = (REPOSITORY / build.IMAGES[name].dockerfile).read_text()
    return re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))


def context_sources(text: str) -> set[str]:
    """The paths of the repository that a Dockerfile copies or mounts."""
    copied = re.findall(r"(?m)^COPY (?!--from)(.*)$", text)
    mounted = re.findall(r"--mount=type=bind,source=(\S+?),target", text)
    return {source for line in copied for source in line.split()[:-1]} | set(mounted)


@pytest.mark.parametrize("name", build.IMAGES)
def test_everything_that_is_copied_counts_in_the_name(name: str) -> None:
    sources = build.IMAGES[name].sources
    for source in context_sources(dockerfile(name)) - {"images/steps"}:
        assert any(source == known or source.startswith(f"{known}/") for known in sources), source


@pytest.mark.parametrize("name", build.IMAGES)
def test_everything_that_is_copied_is_in_the_build_context(name: str) -> None:
    rules = (REPOSITORY / ".dockerignore").read_text().split()
    assert "*" in rules
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    for source in context_sources(dockerfile(name)):
        assert any(source == rule or source.startswith(f"{rule}/") for rule in allowed), source


@pytest.mark.parametrize("name", build.IMAGES)
def test_images_start_from_arguments_stages_or_nothing(name: str) -> None:
    text = dockerfile(name)
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\w+)$", text))
    for start in re.findall(r"(?m)^FROM (\S+)", text):
        assert start in {"${BASE}", "${LLAMA}", "${TRAINER}", "scratch"} | stages
    assert "ARG BASE=debian:bookworm-slim" in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_images_run_as_a_user_without_rights_and_without_a_shell_in_between(name: str) -> None:
    text = dockerfile(name)
    assert re.findall(r"(?m)^USER (.*)$", text) == ["65532:65532"]
    entrypoint = re.findall(r"(?m)^ENTRYPOINT (.*)$", text)
    assert len(entrypoint) == 1
    assert isinstance(json.loads(entrypoint[0]), list)


@pytest.mark.parametrize("name", build.IMAGES)
def test_images_say_what_they_are(name: str) -> None:
    labels = dockerfile(name)
    assert f'org.opencontainers.image.title="finetune-operator/{name}"' in labels
    assert "org.opencontainers.image.description=" in labels
    assert "org.opencontainers.image.licenses=" in labels


def test_the_operators_image_holds_the_contract_and_nothing_of_the_trainer() -> None:
    sources = set(context_sources(dockerfile("operator")))
    assert {"api/finetune_api", "operator/finetune_operator"} <= sources
    assert not {source for source in sources if source.startswith("trainer/")}


def test_the_finished_operator_image_installs_nothing_that_builds() -> None:
    final = dockerfile("operator").rpartition("FROM ")[2]
    installed = re.findall(r"apt-install\.sh (.*?) +&&", final)
    assert installed == ["ca-certificates python3"]


def test_the_trainer_writes_its_largest_layers_first() -> None:
    final = dockerfile("trainer").partition("AS packages")[2]
    layers = ["/lock/cuda.txt", "/lock/rest.txt", "COPY --from=llama", "COPY --from=code"]
    assert [final.index(layer) for layer in layers] == sorted(final.index(layer) for layer in layers)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "images").rglob("*")), ids=lambda path: path.name)
def test_no_file_names_a_registry_or_another_host(path: Path) -> None:
    if path.is_file() and path.suffix != ".pyc":
        assert not re.search(r"https?://|\b(docker\.io|ghcr\.io|quay\.io|pypi\.org)\b", path.read_text())


def test_downloads_are_pinned_by_hash() -> None:
    for path in (REPOSITORY / "images").rglob("requirements.txt"):
        for requirement in path.read_text().replace("\\\n", " ").splitlines():
            assert re.match(r"[\w-]+==[\w.]+ +--hash=sha256:[0-9a-f]{64}", requirement), path
    for name in ("llama", "trainer", "operator", "example"):
        for command in re.findall(r"(?:pip|uv pip) (?:install|download) [^&]*", dockerfile(name)):
            assert "--require-hashes" in command
