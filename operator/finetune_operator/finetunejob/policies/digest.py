"""What makes two runs the same run? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.section import digest_of
from pydantic import BaseModel


def run_digest(spec: FineTuneJobSpec, config_maps: Mapping[str, Mapping[str, str] | None]) -> str:
    """SHA-256 of the content: the spec without members marked mutable or equal to their default, and each ConfigMap key it names."""
    content = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    _drop_mutable(content, spec)
    template = spec.model.chat_template.config_map
    texts = {f"{template.name}/{template.key}": (config_maps.get(template.name) or {}).get(template.key)} if template else {}
    return digest_of({"spec": content, "configMaps": texts})


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
