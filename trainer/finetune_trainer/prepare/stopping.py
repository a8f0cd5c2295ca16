"""The tokens that end an answer: what the base model's files say, and what the finished model will carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.model import ChatTemplateType

from finetune_trainer.errors import StageError
from finetune_trainer.model_json import read_members
from finetune_trainer.prepare.chat_template import NAMED_TEMPLATES, ChatTemplate, TemplateRefusedRow, probe_template
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import SpecialTokens
from finetune_trainer.tokenizer_files import model_template, tool_use_template

TemplateSource = Literal["Model", "Named", "ConfigMap"]

_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def template_text(run: RunSpec, model_folder: Path) -> tuple[str | None, TemplateSource | None]:
    """The chat template that the run asks for and where it is from; None where the model has none.

    Errors: StageError(NoChatTemplate) where a ConfigMap's text did not arrive.
    """
    wanted = run.model.chat_template
    if wanted.named:
        return NAMED_TEMPLATES[wanted.named], "Named"
    if wanted.type is ChatTemplateType.CONFIG_MAP:
        if not run.chat_template_text:
            raise StageError(
                Reason.NO_CHAT_TEMPLATE, "the ConfigMap of model.chatTemplate holds no text; put the template under the named key"
            )
        return run.chat_template_text, "ConfigMap"
    text = model_template(model_folder)
    return text, "Model" if text is not None else None


@dataclass(frozen=True)
class StopRule:
    """The template that rows are rendered with and the tokens that end an answer. `own_template`: its text where it is not the model's."""

    template: ChatTemplate | None
    source: TemplateSource | None
    tokens: SpecialTokens

    @property
    def own_template(self) -> str | None:
        return self.template.text if self.template is not None and self.source != "Model" else None


def choose_stop_rule(run: RunSpec, folder: Path, tokenizer: TextTokenizer) -> StopRule:
    """Errors: StageError(NoChatTemplate | HostileTemplate | InvalidTemplate | InvalidTokenizer | InvalidModel | TemplateTokensMissing)."""
    text, source = template_text(run, folder)
    if text is None:
        return StopRule(None, None, _special_tokens(folder, tokenizer, None))
    tool_use = tool_use_template(folder) if source == "Model" else None
    for part in (text, tool_use):
        if part is not None:
            probe_template(part, tokenizer.named)
    template = ChatTemplate(text, tokenizer.named, tool_use)
    end = _turn_end(template, tokenizer) if source != "Model" else None
    tokens = _special_tokens(folder, tokenizer, end)
    if tokens.eos_changed:
        # Whoever serves the finished model renders with its new eos, so rows are too.
        template = ChatTemplate(text, {**tokenizer.named, "eos_token": tokens.eos_token})
    return StopRule(template, source, tokens)


def _special_tokens(folder: Path, tokenizer: TextTokenizer, end: tuple[str, int] | None) -> SpecialTokens:
    """What ends answers. `end`: the token that closes a turn of the run's own template; where the base ends otherwise it becomes eos."""
    eos_token, ids = tokenizer.named.get("eos_token"), _declared_eos_ids(folder, tokenizer)
    changed = end is not None and end[1] not in ids
    if end is not None and changed:
        eos_token, ids = end[0], [end[1], *ids]
    eos_id = tokenizer.id_of(eos_token)
    if eos_token is None or eos_id is None or not ids:
        raise StageError(Reason.INVALID_TOKENIZER, "the model names no end token of its vocabulary; set eos_token in tokenizer_config.json")
    pad_id = tokenizer.id_of(tokenizer.named.get("pad_token"))
    return SpecialTokens(
        eos_token=eos_token,
        eos_id=eos_id,
        eos_ids=ids,
        pad_id=pad_id if pad_id is not None else eos_id,
        bos_id=tokenizer.id_of(tokenizer.named.get("bos_token")),
        eos_changed=changed,
    )


def _declared_eos_ids(folder: Path, tokenizer: TextTokenizer) -> list[int]:
    """Ids that stop generation: generation_config.json's, else config.json's, else the tokenizer's.

    Source: transformers.GenerationConfig.from_pretrained, which falls back in this order.
    """
    for name in ("generation_config.json", "config.json"):
        declared = read_members(folder, name).numbers("eos_token_id")
        if declared is not None:
            return declared
    eos = tokenizer.id_of(tokenizer.named.get("eos_token"))
    return [eos] if eos is not None else []


def _turn_end(template: ChatTemplate, tokenizer: TextTokenizer) -> tuple[str, int] | None:
    """The special token that closes a rendered answer, where one does."""
    try:
        asked = template.render(_PROBE[:1], add_generation_prompt=True)
        answered = template.render(_PROBE)
    except TemplateRefusedRow:
        return None
    end = answered[len(asked) :].strip().removeprefix("b").strip()
    ids = tokenizer.encode([end])[0].ids if end else []
    if not ids:
        return None
    token = tokenizer.added_token(ids[0])
    if token is None:
        raise StageError(
            Reason.TEMPLATE_TOKENS_MISSING,
            f"the chat template ends a turn with text that is no single token of this tokenizer ({len(ids)} tokens); "
            "use a template made for this model, or a base model whose tokenizer has its tokens",
        )
    return token, ids[0]
