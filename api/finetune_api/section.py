"""What every section of the API is made of: the base model, CEL rules, common types. Imports pydantic only."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Section(BaseModel):
    """A section of the API: camelCase on the wire, unknown members refused, immutable once read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, protected_namespaces=())

    def wire(self) -> dict[str, Any]:
        """The section as plain JSON data with the API's own names, absent members left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


RULES = "x-kubernetes-validations"


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules with the sentence a user reads when one refuses: `(expression, message)` each."""
    return {RULES: [{"rule": rule, "message": message} for rule, message in pairs]}


def map_list(key: str) -> dict[str, Any]:
    """Marks a list as keyed by a member, so that server-side apply merges it and the API server refuses twins."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]

ModelName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=32)]

ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]

SecretKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]

Column = Annotated[str, Field(min_length=1, max_length=256)]

Duration = Annotated[
    str,
    Field(
        pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        max_length=24,
        json_schema_extra=rules(("duration(self) <= duration('8760h')", "a duration is at most a year (8760h)")),
    ),
]

ExtendedResource = Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)]


class SecretKeyRef(Section):
    """One key of a Secret in the job's namespace; its value reaches pods as an environment variable and nothing else."""

    name: ObjectName = Field(description="Name of the Secret in the job's namespace. Required.")
    key: SecretKey = Field(description="Key within the Secret. Required.")


class ConfigMapKeyRef(Section):
    """One key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap in the job's namespace. Required.")
    key: SecretKey = Field(description="Key within the ConfigMap. Required.")


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of JSON data in one canonical form: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def mutable() -> dict[str, Any]:
    """Marks a member that may change after the run has started; the root's immutability rule is generated from what has no mark."""
    return {"x-finetune-mutable": True}


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]

Text = Annotated[str, Field(max_length=1024)]
