"""Discriminated unions: `type` says which, and each value may have a member of its own that holds its settings.

One pattern for all of them. A member is optional and has no default in the schema: the API server would write it into every object,
and the rule that refuses the member of another type would then refuse each object of another type. Code supplies the default. What
stands beside the members holds under every type, its default as well.

The rules are made from the marks on the members, for CEL and for pydantic alike (a run file on a laptop meets no API server).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import EnumMeta
from functools import cache
from types import NoneType
from typing import Any, Self, get_args

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from finetune_api.section import RULES, Section, rules

MEMBER_OF = "x-finetune-member-of"
REQUIRED = "x-finetune-required"


def member_of(value: str, *, required: bool = False) -> dict[str, Any]:
    """Marks a member as belonging to one value of `type`. `required`: that value says nothing without it."""
    return {MEMBER_OF: value, REQUIRED: required}


@dataclass(frozen=True)
class Member:
    """A member of a union. `field`: its name in Python; `name`: its name in the API; `value`: the value of `type` it belongs to."""

    field: str
    name: str
    value: str
    required: bool
    section: type[Section] | None
    """What it is made of; None for a plain value."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """CEL rules with the sentence that a user reads."""
        yield f"!has(self.{self.name}) || self.type == '{self.value}'", self._misplaced
        if self.required:
            yield f"self.type != '{self.value}' || has(self.{self.name})", self._missing

    def problem(self, type: str, is_set: bool) -> str | None:
        """The same in Python: what is wrong in a union of this type, if anything."""
        if is_set and type != self.value:
            return self._misplaced
        if self.required and not is_set and type == self.value:
            return self._missing
        return None

    @property
    def _misplaced(self) -> str:
        return f"{self.name} belongs to type {self.value}; remove it or set type: {self.value}"

    @property
    def _missing(self) -> str:
        return f"{self.name} is required with type {self.value}"


class Union(Section):
    """A section with `type` and members marked by `member_of`."""

    type: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Errors: TypeError for a member that breaks the pattern, when its module is imported."""
        for member in members_of(cls):
            if member.value not in types_of(cls):
                raise TypeError(
                    f"{cls.__name__}.{member.field} belongs to type {member.value}, which is none of {', '.join(types_of(cls))}"
                )
            if cls.model_fields[member.field].get_default(call_default_factory=True) is not None:
                raise TypeError(f"{cls.__name__}.{member.field} has a default in the schema; code supplies it")
        unmarked = set(cls.model_fields) - {member.field for member in members_of(cls)}
        values = {value.lower() for value in types_of(cls)}
        if forgotten := [field for field in unmarked if field.replace("_", "").lower() in values]:
            raise TypeError(f"{cls.__name__}.{forgotten[0]} is named like a type; mark it with member_of")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        made = rules(*(rule for member in members_of(cls) for rule in member.rules()))
        own[RULES] = [*own.get(RULES, []), *made[RULES]]
        return schema

    @model_validator(mode="after")
    def _holds_its_own_member(self) -> Self:
        for member in members_of(type(self)):
            problem = member.problem(self.type, getattr(self, member.field) is not None)
            if problem:
                raise ValueError(problem)
        return self

    def spelled_out(self) -> Self:
        """The same with the member of its type in place, defaults and all: what digests are taken of."""
        for member in members_of(type(self)):
            if member.value == self.type and member.section and getattr(self, member.field) is None:
                return self.model_copy(update={member.field: member.section()})
        return self


@cache
def members_of(union: type[Union]) -> tuple[Member, ...]:
    return tuple(_members(union))


def _members(union: type[Union]) -> Iterator[Member]:
    for field, info in union.model_fields.items():
        marks = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if MEMBER_OF in marks:
            section = next((part for part in get_args(info.annotation) if _is_section(part)), None)
            yield Member(field, info.alias or field, str(marks[MEMBER_OF]), bool(marks[REQUIRED]), section)


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and part is not NoneType and issubclass(part, Section)


def types_of(union: type[Union]) -> tuple[str, ...]:
    """The values that `type` can have."""
    annotation = union.model_fields["type"].annotation
    values = annotation if isinstance(annotation, EnumMeta) else get_args(annotation)
    return tuple(str(value) for value in values)
