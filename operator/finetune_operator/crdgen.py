"""`python -m finetune_operator.crdgen`: pydantic models → structural CRD schemas in crds/.

The models are the one source of schema, defaults, CEL rules and the words of `kubectl explain`. Every string, list and map must be
bounded: without bounds the API server refuses the CRD for the estimated cost of its CEL rules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finetune_api import finetunejob, modelversion
from finetune_api.union import MEMBER_OF, REQUIRED
from pydantic import BaseModel

from finetune_operator.core import names
from finetune_operator.core.containment import without_nulls

Schema = dict[str, Any]

_MUTABLE = "x-finetune-mutable"
_DROPPED = ("title", "$defs", "additionalProperties", "propertyNames", "discriminator", _MUTABLE, MEMBER_OF, REQUIRED)
_TYPED = frozenset({"type", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"})
_BOUNDS = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",), "object": ("maxProperties",)}
_UNSEEN = {"observedGeneration": -1}
"""Status of an object that no operator has looked at: without any, kstatus (Helm --wait, Flux) takes it for finished."""
_NAME_RULE = (
    "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name: at most 40 lower-case letters, digits and dashes, a letter first: children are named after it",
)


@dataclass(frozen=True)
class Kind:
    """What a CRD is made of."""

    kind: str
    plural: str
    short_name: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: list[tuple[str, str, str, int]]
    root_rules: tuple[tuple[str, str], ...]


def kinds() -> tuple[Kind, Kind]:
    spec = finetunejob.FineTuneJobSpec
    immutable = immutability_rule(spec)
    return (
        Kind(names.FINETUNEJOB, "finetunejobs", "ftj", spec, finetunejob.FineTuneJobStatus, finetunejob.COLUMNS, (_NAME_RULE, immutable)),
        Kind(
            names.MODELVERSION,
            "modelversions",
            "mver",
            modelversion.ModelVersionSpec,
            modelversion.ModelVersionStatus,
            modelversion.COLUMNS,
            tuple(modelversion.ROOT_RULES),
        ),
    )


# ------------------------------------------------------------------------------------------------------------------- schemas


def structural(model: type[BaseModel]) -> Schema:
    """The model's JSON schema as the API server wants it: no references, no unions with null, one type per node.

    Items of lists get no defaults: clients compare lists whole, so one that the server added to is sent again with every apply, and
    told as a change. What reads the spec fills them in.
    """
    raw = model.model_json_schema(by_alias=True)
    return _convert(raw, raw.get("$defs", {}))


def _convert(node: Schema, definitions: Schema) -> Schema:
    node = _merged(node, definitions)
    made: Schema = {key: value for key, value in node.items() if key not in (*_DROPPED, "properties", "items", "required", "default")}
    if made.pop("const", None) is not None:
        made["enum"] = [node["const"]]
    _bounds_of_openapi(made, node)
    if node.get("default") is not None:
        made["default"] = without_nulls(node["default"])
    properties = node.get("properties")
    if properties is not None:
        made["type"] = "object"
        made["properties"] = {name: _convert(member, definitions) for name, member in properties.items()}
        required = list(node.get("required", []))
        if required:
            made["required"] = required
    values = node.get("additionalProperties")
    if isinstance(values, dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = _convert(values, definitions)
    if "items" in node:
        made["items"] = _without_defaults(_convert(node["items"], definitions))
    if not _TYPED & made.keys():
        made["x-kubernetes-preserve-unknown-fields"] = True
    return made


def _merged(node: Schema, definitions: Schema) -> Schema:
    """References resolved and `X | None` reduced to X; what stands beside them wins."""
    beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "allOf")}
    if "$ref" in node:
        return {**_merged(definitions[node["$ref"].rpartition("/")[2]], definitions), **beside}
    options = [option for option in node.get("anyOf") or node.get("allOf") or [] if option.get("type") != "null"]
    if len(options) == 1:
        return {**_merged(options[0], definitions), **beside}
    return beside


def _bounds_of_openapi(made: Schema, node: Schema) -> None:
    """OpenAPI 3.0 has booleans for what JSON Schema has numbers for."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            made[bound] = node[exclusive]
            made[exclusive] = True


def lenient(schema: Schema) -> Schema:
    """A status schema: nothing defaulted, and nothing required but the keys of lists (the API server insists on those)."""
    return _rewritten(_without_defaults(schema), _requires_keys_only)


def _requires_keys_only(node: Schema) -> Schema:
    made = {key: value for key, value in node.items() if key != "required"}
    if keys := made.get("x-kubernetes-list-map-keys"):
        made["items"] = {**made["items"], "required": list(keys)}
    return made


def _without_defaults(schema: Schema) -> Schema:
    return _rewritten(schema, lambda node: {key: value for key, value in node.items() if key != "default"})


def _rewritten(schema: Schema, node: Callable[[Schema], Schema]) -> Schema:
    """The schema with `node` applied to each part of it, those within first."""
    made = dict(schema)
    for member in ("items", "additionalProperties"):
        if isinstance(made.get(member), dict):
            made[member] = _rewritten(made[member], node)
    if "properties" in made:
        made["properties"] = {name: _rewritten(member, node) for name, member in made["properties"].items()}
    return node(made)


def unbounded(schema: Schema, path: str = "") -> Iterator[str]:
    """Paths of strings, lists and maps without a bound."""
    kind = schema.get("type")
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "properties" in schema
    if kind in _BOUNDS and not (kind == "object" and free) and not any(bound in schema for bound in _BOUNDS[kind]):
        yield path
    for name, member in schema.get("properties", {}).items():
        yield from unbounded(member, f"{path}.{name}")
    for member in ("items", "additionalProperties"):
        if isinstance(schema.get(member), dict):
            yield from unbounded(schema[member], f"{path}[]")


def undescribed(schema: Schema, path: str = "") -> Iterator[str]:
    """Paths of members that `kubectl explain` would have no sentence for."""
    for name, member in schema.get("properties", {}).items():
        if not member.get("description"):
            yield f"{path}.{name}"
        yield from undescribed(member, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from undescribed(schema["items"], f"{path}[]")


# -------------------------------------------------------------------------------------------------------------- immutability


def immutability_rule(spec: type[BaseModel]) -> tuple[str, str]:
    """One rule at the root: no pod of the run yet, or every member without a `mutable` mark is present as before and equal.

    At the root, because a rule on a field is bypassed by removing the field and adding it again. Free-form members (affinity,
    training.args) are compared as well: CEL cannot look into them, but equality can (tested in tests/api).
    """
    clauses = [_unchanged(path) for path in _immutable_members(spec, "spec")]
    return (
        # most writes are of status: an equal spec is decided by one comparison instead of one for each member
        "!has(oldSelf.status) || !has(oldSelf.status.firstPodTime) || self.spec == oldSelf.spec || (" + " && ".join(clauses) + ")",
        "the run has started: only suspend, activeDeadlineSeconds, ttlSecondsAfterFinished, recovery.maxAttempts, "
        "scheduling.priorityClassName and podMetadata may change; create another job for another run",
    )


def _immutable_members(section: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if marks.get(_MUTABLE):
            continue
        member = f"{path}.{field.alias or name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and _has_marks(inner):
            yield from _immutable_members(inner, member)
        else:
            yield member


def _has_marks(section: type[BaseModel]) -> bool:
    return any(isinstance(field.json_schema_extra, dict) and _MUTABLE in field.json_schema_extra for field in section.model_fields.values())


def _unchanged(path: str) -> str:
    return f"(has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path}))"


# ---------------------------------------------------------------------------------------------------------------- whole CRDs


def make_crd(kind: Kind) -> Schema:
    spec = structural(kind.spec)
    status = lenient(structural(kind.status))
    problems = [f"unbounded: {path}" for part in (spec, status) for path in unbounded(part)]
    problems += [f"without description: {name}{path}" for name, part in (("spec", spec), ("status", status)) for path in undescribed(part)]
    if problems:
        raise SystemExit(f"{kind.kind}: " + "; ".join(problems))
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": _root(kind, spec, status)},
                }
            ],
        },
    }


def _root(kind: Kind, spec: Schema, status: Schema) -> Schema:
    return {
        "type": "object",
        "description": f"{kind.spec.__doc__ or kind.kind}".strip().splitlines()[0],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 256},
            "kind": {"type": "string", "maxLength": 256},
            "metadata": {"type": "object"},
            "spec": _described("What is asked.", spec),
            "status": _described("What is true; written by the operator.", {"default": _UNSEEN, **status}),
        },
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in kind.root_rules],
    }


def _described(sentence: str, schema: Schema) -> Schema:
    return {"description": sentence} | schema | {"description": sentence}


def _column(name: str, type: str, path: str, priority: int) -> Schema:
    return {"name": name, "type": type, "jsonPath": path, **({"priority": priority} if priority else {})}


class _Dumper(yaml.SafeDumper):
    """Quotes what Helm and kubectl would read as a boolean: to YAML 1.1 a plain `n` is false, for PyYAML it is a string."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text.lower() in ("y", "n") else None)


_Dumper.add_representer(str, _represent_str)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for kind in kinds():
        text = yaml.dump(make_crd(kind), Dumper=_Dumper, sort_keys=False, width=140, allow_unicode=True)
        (folder / f"{names.GROUP}_{kind.plural}.yaml").write_text(
            f"# Generated from the Python models by `make generate`; do not edit.\n{text}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "crds")
