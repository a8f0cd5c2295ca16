"""From models to CRDs: what the API server insists on, and what a generator could get wrong silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from finetune_api.section import Section, rules
from finetune_operator import crdgen
from finetune_operator.core.containment import merge_patch
from pydantic import ConfigDict, Field, JsonValue

from tests.schema import defaulted
from tests.unions import KINDS, sections_of

CRDS = Path(__file__).resolve().parents[3] / "crds"
MARK = {"x-finetune-mutable": True}


class Inner(Section):
    model_config = ConfigDict(json_schema_extra=rules(("self.a > 0", "a must be positive")))

    a: int = Field(default=1, description="A. Default: 1.")
    b: Annotated[str, Field(max_length=5)] | None = Field(default=None, description="B. No default.", json_schema_extra=MARK)


class Outer(Section):
    kind: Literal["One"] = Field(default="One", description="Kind. Default: One.")
    inner: Inner = Field(default=Inner(), description="Inner. Default: a 1.")
    maybe: Inner | None = Field(default=None, description="Maybe. No default.")
    free: Annotated[dict[str, JsonValue], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = Field(
        default={}, description="Free. Default: none."
    )
    share: float = Field(default=0.5, gt=0, le=1, description="Share. Default: 0.5.")
    camel_case: bool = Field(default=False, description="Switch. Default: false.", json_schema_extra=MARK)


def test_models_become_structural_schemas() -> None:
    made = crdgen.structural(Outer)["properties"]
    assert made["kind"] == {"type": "string", "enum": ["One"], "default": "One", "description": "Kind. Default: One."}
    assert made["inner"]["default"] == {"a": 1}, "an object's default lets the API server fill in its members"
    assert made["inner"]["x-kubernetes-validations"] == [{"rule": "self.a > 0", "message": "a must be positive"}]
    assert made["inner"]["properties"]["b"] == {"type": "string", "maxLength": 5, "description": "B. No default."}
    assert made["maybe"]["description"] == "Maybe. No default.", "the member's own words win over those of its type"
    assert "default" not in made["maybe"]
    assert made["free"]["x-kubernetes-preserve-unknown-fields"] is True
    assert made["share"] == {
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "default": 0.5,
        "description": "Share. Default: 0.5.",
    }
    assert made["camelCase"]["default"] is False


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "string"}, [""]),
        ({"type": "string", "enum": ["a"]}, []),
        ({"type": "array", "items": {"type": "string", "maxLength": 1}}, [""]),
        ({"type": "array", "maxItems": 1, "items": {"type": "string"}}, ["[]"]),
        ({"type": "object", "additionalProperties": {"type": "string"}}, ["", "[]"]),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, [".a"]),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, []),
    ],
)
def test_what_has_no_bound_is_found(schema: dict[str, Any], found: list[str]) -> None:
    assert list(crdgen.unbounded(schema)) == found


def test_unbounded_members_stop_the_generator() -> None:
    class Loose(Section):
        text: str = Field(default="", description="Text.")

    kind = crdgen.Kind("X", "xs", "x", Loose, Inner, [], ())
    with pytest.raises(SystemExit, match=r"unbounded: \.text"):
        crdgen.make_crd(kind)


def test_members_without_a_sentence_stop_the_generator() -> None:
    class Mute(Section):
        number: int = 1

    with pytest.raises(SystemExit, match=r"without description: spec\.number"):
        crdgen.make_crd(crdgen.Kind("X", "xs", "x", Mute, Inner, [], ()))


def test_immutability_covers_every_member_without_a_mark() -> None:
    rule, message = crdgen.immutability_rule(Outer)
    assert rule.startswith("!has(oldSelf.status) || !has(oldSelf.status.firstPodTime) || self.spec == oldSelf.spec || (")
    compared = {part.split(" ")[0] for part in rule.split("self.spec.")[1:]}
    assert {name.rstrip(")") for name in compared} == {"kind", "inner.a", "maybe", "free", "share"}
    assert "has(self.spec.maybe) == has(oldSelf.spec.maybe)" in rule, "removing a member and adding it again must not get by"
    assert message.startswith("the run has started")


def test_status_requires_nothing_but_the_keys_of_its_lists() -> None:
    items = {"type": "object", "required": ["type", "status"], "properties": {"type": {"type": "string"}, "status": {"default": "x"}}}
    made = crdgen.lenient({"type": "array", "x-kubernetes-list-map-keys": ["type"], "items": items})
    assert made["items"]["required"] == ["type"]
    assert "default" not in made["items"]["properties"]["status"]


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in crdgen.kinds():
        yield kind.kind, crdgen.make_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
def test_nothing_of_pydantic_is_left(kind: str, schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        left = {"$ref", "$defs", "anyOf", "allOf", "oneOf", "title", "const", "propertyNames", "x-finetune-mutable"} & set(node)
        assert not left, f"{kind}{path} has {left}"


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
def test_nothing_within_a_list_is_defaulted(kind: str, schema: dict[str, Any]) -> None:
    """Clients compare lists whole: with a default in an item every apply says `configured`, and Argo CD's diff is never empty."""
    for path, node in nodes(schema):
        assert "[]" not in path or "default" not in node, f"{kind}{path} has a default; code that reads it supplies it"


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
def test_rules_within_lists_ask_whether_a_member_is_there(kind: str, schema: dict[str, Any]) -> None:
    """What is not defaulted may be absent, and a rule that reads it then refuses with an error instead of its sentence."""
    for path, node in nodes(schema):
        if "[]" in path:
            for rule in node.get("x-kubernetes-validations", []):
                read = set(re.findall(r"\bself\.(\w+)", rule["rule"])) - set(node.get("required", []))
                asked = set(re.findall(r"\bhas\(self\.(\w+)\)", rule["rule"]))
                assert read <= asked, f"{kind}{path}: {rule['rule']}"


def sent_again(applied: Any, live: Any) -> Any:
    """What `kubectl apply` sends when the same is applied again, and Argo CD takes for a difference. Source: RFC 7386."""
    return merge_patch(live, _onto(live, applied))


def _onto(live: Any, applied: Any) -> Any:
    if isinstance(live, dict) and isinstance(applied, dict):
        return {**live, **{name: _onto(live.get(name), member) for name, member in applied.items()}}
    return applied


APPLIED: dict[str, dict[str, Any]] = {
    "a data set, quantities as numbers": {
        "kind": "FineTuneJob",
        "spec": {
            "model": {"source": "pvc://data/base"},
            "datasets": [{"name": "facts", "source": "pvc://data/facts"}],
            "resources": {"cpu": 2, "memory": "4Gi"},
            "storage": {"persistentVolumeClaim": {"size": "1Gi"}},
        },
    },
    "steps and gates of a published run": {
        "kind": "FineTuneJob",
        "spec": {
            "datasets": [{"name": "facts", "source": "pvc://data/facts", "columns": {"input": "context"}}],
            "evaluation": {"gates": [{"name": "g", "metric": "ExactMatch", "min": 0.5}]},
            "export": {"gguf": ["Q8_0"], "parity": [{"format": "Q8_0"}]},
            "imagePullSecrets": [{"name": "registry"}],
            "scheduling": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
            "publish": {
                "model": "drift",
                "rollout": {"steps": [{"name": "canary", "stage": "Canary", "weight": 5}, {"name": "production", "stage": "Production"}]},
            },
        },
    },
    "steps of a version": {
        "kind": "ModelVersion",
        "spec": {
            "artifacts": [{"name": "Q8_0", "format": "GGUF", "uri": "pvc://files/a.gguf", "sha256": "ab" * 32, "bytes": 9}],
            "serving": {"resources": {"cpu": 1}},
            "rollout": {"steps": [{"name": "production", "stage": "Production"}]},
        },
    },
    **{
        f"{path.parent.name}/{path.name}": body
        for path in sorted(CRDS.parent.glob("examples/*/*.yaml"))
        for body in yaml.safe_load_all(path.read_text())
        if body["kind"] in ("FineTuneJob", "ModelVersion")
    },
}


@pytest.mark.parametrize("name", APPLIED)
def test_applying_again_has_nothing_to_send(name: str) -> None:
    body = APPLIED[name]
    live = defaulted(dict(schemas())[body["kind"]], body)
    assert live != body
    assert sent_again(body, live) == {}


def test_a_default_within_a_list_would_be_sent_again() -> None:
    """The yardstick of the test above moves."""
    item = {"type": "object", "properties": {"weight": {"type": "integer", "default": 1}}}
    schema = {"properties": {"spec": {"properties": {"datasets": {"type": "array", "items": item}}}}}
    body = {"spec": {"datasets": [{"name": "a"}]}}
    assert sent_again(body, defaulted(schema, body)) == body


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
def test_no_value_is_read_as_a_boolean_by_yaml_1_1(kind: str, schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        for value in node.get("enum", []):
            quoted = path.endswith(".status")  # a condition's True and False are written by machines, as in every Kubernetes API
            assert quoted or isinstance(yaml.safe_load(str(value)), type(value)), f"{kind}{path}: {value}"


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_member_has_a_sentence(kind: str, schema: dict[str, Any], part: str) -> None:
    mute = [
        f"{kind}.{part}{path}.{name}"
        for path, node in nodes(schema["properties"][part])
        for name, member in node.get("properties", {}).items()
        if not member.get("description", "").strip()
    ]
    assert mute == []


@pytest.mark.parametrize(("kind", "schema"), list(schemas()))
def test_conditions_are_keyed_by_their_type(kind: str, schema: dict[str, Any]) -> None:
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    assert conditions["items"]["required"] == ["type"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_spec_sentence_names_its_default(kind: str) -> None:
    """Those within lists as well, which no object shows: `kubectl explain` does."""
    for path, section in sections_of(KINDS[kind], "spec"):
        for name, field in section.model_fields.items():
            if isinstance(field.default, (str, int, float)) and not isinstance(field.default, bool) and field.default != "":
                assert "Default:" in (field.description or ""), f"{kind}.{path}.{name} does not say its default {field.default}"


def test_generated_files_are_the_committed_ones(tmp_path: Path) -> None:
    crdgen.main(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (CRDS / file.name).read_text(), f"run `make generate`: {file.name} differs"
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in CRDS.glob("*.yaml")}


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.yaml")), ids=lambda file: file.name)
def test_files_say_that_they_are_generated(file: Path) -> None:
    assert file.read_text().startswith("# Generated")


def test_no_name_in_a_crd_is_a_boolean_to_yaml_1_1() -> None:
    """Helm and kubectl read a plain `n` as false: the field would be pruned from every status."""
    booleans = {"y", "n", "yes", "no", "on", "off"}
    for path in CRDS.glob("*.yaml"):
        plain = [token.value for token in yaml.scan(path.read_text()) if isinstance(token, yaml.ScalarToken) and token.plain]
        assert not [value for value in plain if value.lower() in booleans], path.name
