"""`spec.method`: how it is trained. A method is a value of `type` and a member of its own."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Section, union_rules


class SFTLoss(StrEnum):
    ASSISTANT_TURNS = "AssistantTurns"
    COMPLETION = "Completion"
    ALL_TOKENS = "AllTokens"


class SFT(Section):
    loss: SFTLoss = Field(
        default=SFTLoss.ASSISTANT_TURNS,
        description="Tokens that are trained: every assistant turn with its end, the last turn only (Completion), or all. Default: AssistantTurns.",
    )


class Method(Section):
    model_config = ConfigDict(json_schema_extra=union_rules(SFT="sft"))

    type: Literal["SFT"] = Field(default="SFT", description="Training method. Default: SFT.")
    sft: SFT = Field(default=SFT(), description="Settings of SFT. Default: loss on assistant turns.")
