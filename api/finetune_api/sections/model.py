"""`spec.model`: the base model and how it is held and rendered."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.section import ConfigMapKeyRef, SecretKeyRef, Section, rules
from finetune_api.union import Union, member_of
from finetune_api.uri import ClaimPath, HubRepository, Location, belongs_to, parse, pattern, without_climbing

SOURCE = pattern(HubRepository, ClaimPath)


class ChatTemplateType(StrEnum):
    MODEL = "Model"
    NAMED = "Named"
    CONFIG_MAP = "ConfigMap"


class ChatTemplate(Union):
    type: ChatTemplateType = Field(
        default=ChatTemplateType.MODEL,
        description="Where the chat template comes from: the model's own files (Model), a well-known one (Named) or a ConfigMap. Default: Model.",
    )
    named: Literal["ChatML"] | None = Field(
        default=None,
        description="The well-known template; with type Named only, and required there. No default.",
        json_schema_extra=member_of("Named", required=True),
    )
    config_map: ConfigMapKeyRef | None = Field(
        default=None,
        description="The ConfigMap key that holds the Jinja template; with type ConfigMap only, and required there. No default.",
        json_schema_extra=member_of("ConfigMap", required=True),
    )


class Dtype(StrEnum):
    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class AttentionImplementation(StrEnum):
    AUTO = "Auto"
    EAGER = "Eager"
    SDPA = "SDPA"
    FLASH_ATTENTION_2 = "FlashAttention2"


class Model(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                belongs_to(HubRepository, "revision"),
                "revision belongs to an hf:// source; a pvc:// source has none: remove it",
            ),
            (
                belongs_to(HubRepository, "tokenSecretRef"),
                "tokenSecretRef belongs to an hf:// source: remove it",
            ),
            without_climbing("source"),
        )
    )

    source: str = Field(
        pattern=SOURCE,
        max_length=512,
        description="The base model: hf://org/name, or pvc://claim/path to a folder with config.json, safetensors and tokenizer. Required.",
    )
    revision: Annotated[str, Field(max_length=128, pattern=r"^[-A-Za-z0-9._/]+$")] | None = Field(
        default=None,
        description="Commit, tag or branch of an hf:// model; resolved to a commit once, at prepare. Default: main.",
    )
    token_secret_ref: SecretKeyRef | None = Field(default=None, description="Access token for a gated hf:// model. No default.")
    dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Type of frozen weights in memory while training. Auto: bf16 with an adapter where the device has it, fp32 masters for full weights. Default: Auto.",
    )
    attention_implementation: AttentionImplementation = Field(
        default=AttentionImplementation.AUTO,
        description="Attention kernel, by transformers' names. Default: Auto (transformers chooses).",
    )
    chat_template: ChatTemplate = Field(
        default=ChatTemplate(), description="Chat template used to render conversations. Default: the model's own."
    )

    @property
    def location(self) -> Location:
        """What `source` names."""
        return parse(self.source)
