"""Discriminated unions: the same answer from pydantic and from the generated rules, and no member that nobody asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import LocalRunSpec, RunSpec
from finetune_api.section import RULES, Section, rules
from finetune_api.sections.adapter import Adapter, LoRA
from finetune_api.sections.method import SFT, Method
from finetune_api.sections.quantization import NF4, Quantization
from finetune_api.sections.serving import LlamaCpp, ServerResources, Serving
from finetune_api.union import Union, member_of, members_of, types_of
from finetune_operator import crdgen
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.unions import KINDS, Case, Object, Place, cases, defaults_of, places, sections_of


def schema_at(place: Place) -> Object:
    """The union's node in the CRD."""
    kind = next(kind for kind in crdgen.kinds() if kind.kind == place.kind)
    node = crdgen.structural(kind.spec)
    for name in place.path.split(".")[1:]:
        node = node.get("items", node)["properties"][name]
    return node


def holds(rule: str, value: Object) -> bool:
    """Evaluates a rule of a union. Knows the two forms that there are, and fails on another."""
    has, is_type, is_other = r"has\(self\.(\w+)\)", r"self\.type == '(\w+)'", r"self\.type != '(\w+)'"
    if match := re.fullmatch(rf"!{has} \|\| {is_type}", rule):
        return match[1] not in value or value["type"] == match[2]
    match = re.fullmatch(rf"{is_other} \|\| {has}", rule)
    assert match, f"a rule of another form: {rule}"
    return value["type"] != match[1] or match[2] in value


def defaulted(schema: Object, value: Any) -> Any:
    """What the API server makes of a value: absent members get their default, at every depth."""
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    filled = {name: member["default"] for name, member in schema["properties"].items() if "default" in member} | value
    return {name: defaulted(schema["properties"][name], member) for name, member in filled.items()}


# ----------------------------------------------------------------------------------------------------------------- every union there is


def test_whatever_has_a_type_is_a_union() -> None:
    """Or its members would be held by nothing."""
    for kind, spec in KINDS.items():
        for path, section in sections_of(spec, "spec"):
            assert "type" not in section.model_fields or issubclass(section, Union), f"{kind}.{path}"


@pytest.mark.parametrize("case", cases(), ids=str)
def test_pydantic_and_the_rules_answer_alike(case: Case) -> None:
    node = schema_at(case.place)
    broken = [rule["message"] for rule in node[RULES] if not holds(rule["rule"], case.value)]
    if not case.refused:
        assert broken == []
        case.place.union.model_validate(case.value)
        return
    assert len(broken) == 1
    assert broken[0].startswith(case.refused)
    with pytest.raises(ValidationError, match=re.escape(broken[0])):
        case.place.union.model_validate(case.value)


@pytest.mark.parametrize("place", places(), ids=str)
def test_the_server_adds_nothing_but_what_holds_under_every_type(place: Place) -> None:
    for value in types_of(place.union):
        assert defaulted(schema_at(place), {"type": value}) == {"type": value} | defaults_of(place)


def objects_with_default(node: Object, path: str) -> Iterator[tuple[str, Object, Any]]:
    if "default" in node:
        yield path, node, node["default"]
    for name, member in node.get("properties", {}).items():
        yield from objects_with_default(member, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        yield from objects_with_default(node["items"], f"{path}[]")


def members_in(node: Object) -> set[str]:
    """Union members among a CRD node's properties, told from the rules alone."""
    found = (re.fullmatch(r"!has\(self\.(\w+)\) \|\| self\.type == '\w+'", rule["rule"]) for rule in node.get(RULES, []))
    return {match[1] for match in found if match}


def set_members(node: Object, value: Any, path: str) -> Iterator[str]:
    """Union members that a default sets, at whatever depth."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name in members_in(node):
                yield f"{path}.{name}"
            if name in node.get("properties", {}):
                yield from set_members(node["properties"][name], member, f"{path}.{name}")


@pytest.mark.parametrize("kind", crdgen.kinds(), ids=lambda kind: kind.kind)
def test_no_member_has_a_default_in_the_crd(kind: crdgen.Kind) -> None:
    root = crdgen.make_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    seen = 0
    for path, node, default in objects_with_default(root, "spec"):
        assert list(set_members(node, default, path)) == []
        seen += bool(members_in(node))
    assert seen >= 2
    for path, node in nodes(root, "spec"):
        for name in members_in(node):
            assert "default" not in node["properties"][name], f"{kind.kind}.{path}.{name}"
            assert name not in node.get("required", [])


def nodes(node: Object, path: str) -> Iterator[tuple[str, Object]]:
    yield path, node
    for name, member in node.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        yield from nodes(node["items"], f"{path}[]")


PLACEMENT = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "runtimeClassName", "imagePullSecrets")


def test_what_holds_under_every_type_is_listed() -> None:
    """So that a new field of a union needs a decision: under every type, its default as well, or a member of one of them."""
    common = {
        place.union.__name__: {field.alias for field in place.union.model_fields.values()}
        - {member.name for member in members_of(place.union)}
        for place in places()
    }
    assert common == {
        "Adapter": {"type"},
        "ChatTemplate": {"type"},
        "Checkpoints": {"type", "keep", "onPreemption"},
        "Method": {"type"},
        "Quantization": {"type"},
        "Serving": {"type", "artifact", "image", "replicas", "resources", "keepPrevious", *PLACEMENT},
        "Storage": {"type"},
        "TargetModules": {"type"},
        "Traffic": {"type"},
    }


def test_a_member_says_which_type_it_belongs_to() -> None:
    for place in places():
        for member in members_of(place.union):
            sentence = str(schema_at(place)["properties"][member.name]["description"])
            assert f"with type {member.value} only" in sentence, f"{place}.{member.name}"
            assert ("required there" in sentence) is member.required, f"{place}.{member.name}"


# ------------------------------------------------------------------------------------------------------------------ defaults from code


@pytest.mark.parametrize(
    ("absent", "spelled"),
    [
        (Method().effective_sft, SFT()),
        (Adapter().effective_lora, LoRA()),
        (Quantization.model_validate({"type": "NF4"}).effective_nf4, NF4()),
        (Serving().effective_llama_cpp, LlamaCpp()),
        (Serving().effective_resources, ServerResources(cpu="500m", memory="1Gi", gpus=0)),
    ],
)
def test_code_supplies_what_is_absent(absent: object, spelled: object) -> None:
    assert absent == spelled


def test_what_is_asked_for_wins() -> None:
    serving = Serving.model_validate({"replicas": 3, "resources": {"gpus": 1}, "llamaCpp": {"parallel": 8}})
    assert (serving.replicas, serving.effective_llama_cpp.parallel, serving.effective_llama_cpp.context_length) == (3, 8, 2048)
    assert serving.effective_resources == ServerResources(cpu="500m", memory="1Gi", gpus=1)
    none = Serving.model_validate({"resources": {"gpus": 0, "cpu": "2"}})
    assert (none.effective_resources.gpus, none.effective_resources.cpu) == (0, "2")


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_union_spelled_out_is_the_same_union(place: Place) -> None:
    for case in cases():
        if case.place == place and not case.refused:
            whole = place.union.model_validate(case.value).spelled_out()
            assert place.union.model_validate(whole.wire()) == whole == whole.spelled_out()


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_member_of_defaults_means_the_same_as_none(place: Place) -> None:
    for member in members_of(place.union):
        if not member.required:
            absent, empty = (place.union.model_validate({"type": member.value} | own) for own in ({}, {member.name: {}}))
            assert absent != empty
            assert absent.spelled_out() == empty.spelled_out()


# ----------------------------------------------------------------------------------------------------------------------- the pattern


class Inner(Section):
    a: int = Field(default=1, description="A. Default: 1.")


def test_a_member_with_a_default_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"Bad\.one has a default in the schema"):

        class Bad(Union):
            type: Literal["One", "Two"] = "One"
            one: Inner = Field(default=Inner(), json_schema_extra=member_of("One"))


def test_a_member_of_no_type_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"Bad\.one belongs to type Uno, which is none of One, Two"):

        class Bad(Union):
            type: Literal["One", "Two"] = "One"
            one: Inner | None = Field(default=None, json_schema_extra=member_of("Uno"))


def test_a_member_without_its_mark_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"Bad\.two_words is named like a type"):

        class Bad(Union):
            type: Literal["One", "TwoWords"] = "One"
            two_words: Inner | None = None


def test_rules_of_its_own_stay_beside_those_of_the_members() -> None:
    class Good(Union):
        model_config = ConfigDict(json_schema_extra=rules(("self.size > 0", "size must be positive")))

        type: Literal["One", "Two"] = "One"
        size: int = 1
        one: Inner | None = Field(default=None, json_schema_extra=member_of("One"))

    for _ in range(2):
        made = [rule["message"] for rule in crdgen.structural(Good)[RULES]]
        assert made == ["size must be positive", "one belongs to type One; remove it or set type: One"]


@pytest.mark.parametrize("model", [RunSpec, LocalRunSpec, FineTuneJobSpec])
def test_a_run_file_is_held_to_them_too(model: type[BaseModel]) -> None:
    body = {"storage": {"root": "/s", "prefix": "p"}, "model": {"source": "hf://a/b"}, "datasets": []}
    with pytest.raises(ValidationError, match="lora belongs to type LoRA; remove it or set type: LoRA"):
        model.model_validate(body | {"adapter": {"type": "None", "lora": {}}})
