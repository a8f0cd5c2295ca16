"""`spec.method`: how it is trained. A method is a value of `type` and a member of its own."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_api.section import Section
from finetune_api.union import Union, member_of


class SFTLoss(StrEnum):
    ASSISTANT_TURNS = "AssistantTurns"
    COMPLETION = "Completion"
    ALL_TOKENS = "AllTokens"


class SFT(Section):
    loss: SFTLoss = Field(
        default=SFTLoss.ASSISTANT_TURNS,
        description="Tokens that are trained: every assistant turn with its end, the last turn only (Completion), or all. Default: AssistantTurns.",
    )


class MethodType(StrEnum):
    SFT = "SFT"


class Method(Union):
    type: MethodType = Field(default=MethodType.SFT, description="Training method. Default: SFT.")
    sft: SFT | None = Field(
        default=None,
        description="Settings of SFT; with type SFT only. Default: loss on assistant turns.",
        json_schema_extra=member_of("SFT"),
    )

    @property
    def effective_sft(self) -> SFT:
        return self.sft or SFT()
