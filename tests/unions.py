"""Every discriminated union of the API and what each of its types takes, read from the models: a new union, type or member is in the
tests as soon as it is in the API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.modelversion import ModelVersionSpec
from finetune_api.section import Section
from finetune_api.union import Member, Union, members_of, types_of

Object = dict[str, Any]

KINDS: dict[str, type[Section]] = {"FineTuneJob": FineTuneJobSpec, "ModelVersion": ModelVersionSpec}

EXAMPLES: dict[str, Any] = {
    "configMap": {"name": "a", "key": "b"},
    "named": "ChatML",
    "names": ["q_proj"],
    "everySteps": 5,
    "persistentVolumeClaim": {"size": "1Gi"},
    "gatewayAPI": {"gateway": {"name": "gw", "namespace": "infra"}},
}
"""A value of each member that `{}` is none of."""


@dataclass(frozen=True)
class Place:
    """Where a union stands: `path` is dotted, as in spec.adapter.lora.targetModules."""

    kind: str
    path: str
    union: type[Union]

    def __str__(self) -> str:
        return f"{self.kind}.{self.path}"


@dataclass(frozen=True)
class Case:
    """A value at a union's place. `refused`: the words of the refusal; empty where it is accepted."""

    place: Place
    value: Object
    refused: str

    def __str__(self) -> str:
        return f"{self.place}: {'+'.join([self.value['type'], *(name for name in self.value if name != 'type')])}"


def sections_of(model: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    """A section and all within it, each with its path."""
    yield path, model
    for name, field in model.model_fields.items():
        for part in _parts(field.annotation):
            yield from sections_of(part, f"{path}.{field.alias or name}")


def _parts(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation speaks of: X, X | None, list[X]."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def places() -> list[Place]:
    return [
        Place(kind, path, section)
        for kind, spec in KINDS.items()
        for path, section in sections_of(spec, "spec")
        if issubclass(section, Union)
    ]


def example_of(member: Member) -> Any:
    if member.name in EXAMPLES:
        return EXAMPLES[member.name]
    assert member.section, f"add a value of {member.name} to EXAMPLES"
    return member.section().wire()


def cases() -> list[Case]:
    return [case for place in places() for case in cases_of(place)]


def cases_of(place: Place) -> Iterator[Case]:
    """Each type with no member, with its own, and with each other's."""
    for value in types_of(place.union):
        own = [member for member in members_of(place.union) if member.value == value]
        needed = next((member.name for member in own if member.required), "")
        yield Case(place, {"type": value}, f"{needed} is required with type {value}" if needed else "")
        whole = {"type": value} | {member.name: example_of(member) for member in own}
        if own:
            yield Case(place, whole, "")
        for other in members_of(place.union):
            if other not in own:
                yield Case(place, whole | {other.name: example_of(other)}, f"{other.name} belongs to type {other.value}")


def defaults_of(place: Place) -> Object:
    """What the API server adds to `{type: …}`: what holds under every type, and no member."""
    own = {member.name for member in members_of(place.union)} | {"type"}
    fields = {field.alias or name: field for name, field in place.union.model_fields.items()}
    return {name: field.default for name, field in fields.items() if name not in own and field.default is not None}
