"""URIs: what a field lets through is understood, and written back as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finetune_api.modelversion import PublishedArtifact
from finetune_api.run import LocalDataset, LocalModel
from finetune_api.sections.data import Dataset
from finetune_api.sections.model import Model
from finetune_api.uri import ClaimPath, HubRepository, LocalPath, Location, claim_of, claim_path, parse, pattern, repository_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

REPOSITORY = Path(__file__).resolve().parents[3]

LOCATIONS: dict[str, tuple[str, Location]] = {
    "a path on a claim": ("pvc://claim/data/rows.jsonl", ClaimPath("claim", "data/rows.jsonl")),
    "a claim's root": ("pvc://claim", ClaimPath("claim")),
    "a claim whose name has dots": ("pvc://my.claim/a", ClaimPath("my.claim", "a")),
    "a path with a scheme in it": ("pvc://claim/a://b", ClaimPath("claim", "a://b")),
    "a repository": ("hf://org/name-1.5", HubRepository("org/name-1.5")),
    "a local file": ("file:///data/base", LocalPath("/data/base")),
}


@pytest.mark.parametrize("name", LOCATIONS)
def test_a_uri_is_taken_apart_and_put_together(name: str) -> None:
    uri, location = LOCATIONS[name]
    assert parse(uri) == location
    assert str(location) == uri


def field_pattern(model: type[BaseModel], member: str) -> str:
    return next(str(mark.pattern) for mark in model.model_fields[member].metadata if getattr(mark, "pattern", None))


@pytest.mark.parametrize(
    ("model", "member", "kinds"),
    [
        (Model, "source", (HubRepository, ClaimPath)),
        (Dataset, "source", (HubRepository, ClaimPath)),
        (PublishedArtifact, "uri", (ClaimPath,)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@given(data=st.data())
def test_what_a_field_takes_is_understood(model: type[BaseModel], member: str, kinds: tuple[type, ...], data: st.DataObject) -> None:
    uri = data.draw(st.from_regex(field_pattern(model, member), fullmatch=True))
    assert isinstance(parse(uri), kinds)
    assert str(parse(uri)) == uri


@pytest.mark.parametrize(
    "uri", ["pvc://claim", "pvc://claim/", "pvc:///a", "hf://name", "hf://a/b/c", "file:///a", "/a", "s3://bucket/a", ""]
)
def test_what_no_field_takes_is_refused(uri: str) -> None:
    assert not re.search(pattern(HubRepository, ClaimPath), uri)


@pytest.mark.parametrize("path", ["data/rows", "./rows.jsonl", "/abs/rows", "C:/rows"])
def test_a_text_without_scheme_is_a_path(path: str) -> None:
    assert parse(path) == LocalPath(path)


def test_an_unknown_scheme_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"s3:// is no scheme of a source; there are pvc://, hf://, file://"):
        parse("s3://bucket/key")
    for read in (lambda: LocalModel(source="s3://bucket/key"), lambda: LocalDataset(name="a", source="s3://bucket/key")):
        with pytest.raises(ValidationError, match="s3:// is no scheme of a source"):
            read()


def test_claims_and_repositories_are_told_apart() -> None:
    assert (claim_of("pvc://claim/a"), claim_of("hf://org/name"), claim_of("s3://bucket/a"), claim_of("")) == ("claim", None, None, None)
    assert (repository_of("hf://org/name"), repository_of("pvc://claim/a"), repository_of("/a")) == ("org/name", None, None)
    with pytest.raises(ValueError, match="expected a URI of the form pvc://claim/path"):
        claim_path("hf://org/name")


@pytest.mark.parametrize(("path", "inside"), [("a/b", True), ("a..b/.c", True), ("a/../b", False), ("..", False), ("./a", False), ("a//b", False), ("/a", False), ("", False)])  # fmt: skip
def test_a_path_that_could_lead_out_of_its_claim_is_seen(path: str, inside: bool) -> None:
    assert ClaimPath("claim", path).stays_inside is inside


def test_schemes_are_spelled_in_one_file() -> None:
    """A second place that takes a URI apart would be the next one to differ."""
    code = [file for part in ("api", "operator", "trainer") for file in (REPOSITORY / part).rglob("*.py") if file.name != "uri.py"]
    assert len(code) > 50
    spelled = re.compile(r"""(startswith|removeprefix|partition|split)\(f?["'][a-z0-9]*://""")
    assert not [str(file) for file in code if spelled.search(file.read_text())]
