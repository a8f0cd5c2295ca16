"""What makes two runs the same run? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.section import digest_of
from pydantic import BaseModel

ConfigMaps = Mapping[str, Mapping[str, str] | None]
"""`data` by name; None: not there."""


def run_digest(spec: FineTuneJobSpec, config_maps: ConfigMaps) -> str:
    """SHA-256 of the content: the spec without members marked mutable or equal to their default, and each ConfigMap key it names."""
    template = spec.model.chat_template.config_map
    texts = {f"{template.name}/{template.key}": template_text(spec, config_maps)} if template else {}
    return digest_of({"spec": _content(spec), "configMaps": texts})


def spec_digest(spec: FineTuneJobSpec) -> str:
    """SHA-256 of the part of the content that is in the spec: ConfigMaps are read once, at the start, and may change afterwards."""
    return digest_of(_content(spec))


def template_text(spec: FineTuneJobSpec, config_maps: ConfigMaps) -> str | None:
    """The text of the ConfigMap key that the spec names as chat template; None where it names none, or that is not there."""
    template = spec.model.chat_template.config_map
    return (config_maps.get(template.name) or {}).get(template.key) if template else None


def _content(spec: FineTuneJobSpec) -> dict[str, Any]:
    content = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    _drop_mutable(content, spec)
    return content


def _drop_mutable(content: dict[str, Any], section: BaseModel) -> None:
    for name, field in type(section).model_fields.items():
        alias = field.alias or name
        marks = field.json_schema_extra
        if isinstance(marks, dict) and marks.get("x-finetune-mutable"):
            content.pop(alias, None)
            continue
        member = getattr(section, name)
        if isinstance(member, BaseModel) and isinstance(content.get(alias), dict):
            _drop_mutable(content[alias], member)
            if not content[alias]:
                del content[alias]
