"""Examples to token rows: what is rendered, what of it is trained, and how a turn must end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from finetune_api.outcome import Reason
from finetune_api.sections.method import SFTLoss

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow
from finetune_trainer.prepare.rows import Conversation, Example, Pair, RowDropped
from finetune_trainer.prepare.tokenizer import Encoding, TextTokenizer
from finetune_trainer.prepared import IGNORED_LABEL

Span = tuple[int, int]
"""A half-open range of characters."""


@dataclass(frozen=True)
class Rendered:
    """An example as text, before it is tokenised. `answers` are the spans that the loss is taken of, turn ends included."""

    text: str
    answers: list[Span]
    kind: Literal["Chat", "Completion", "Text"]
    prompt_messages: list[dict[str, object]] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """Everything before the last answer."""
        return self.text[: self.answers[-1][0]]


@dataclass(frozen=True)
class TokenRow:
    """A row as it is trained on. `answers`: half-open ranges of positions, end-of-turn token included."""

    ids: list[int]
    labels: list[int]
    answers: list[Span]
    rendered: Rendered
    answer_text: str
    truncated: bool = False

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED_LABEL for label in self.labels)


class TemplateUnsplittable(Exception):
    """The generation prompt is not how an answered turn begins: what is served would differ from what is trained."""


class Encoder:
    """Renders, tokenises, masks and truncates. `eos_ids` are the tokens of which one must end each answer."""

    def __init__(self, tokenizer: TextTokenizer, template: ChatTemplate | None, loss: SFTLoss, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.loss = loss
        self.max_length = max_length

    def render(self, example: Example) -> list[Rendered]:
        """Usually one text. Where a template rewrites earlier turns once later ones follow (reasoning that is dropped), one text for
        each answer, as serving would have seen it.

        Errors: RowDropped; StageError(TemplateUnsplittable).
        """
        if isinstance(example, Conversation):
            return self._render_conversation(example)
        if isinstance(example, Pair):
            return [
                Rendered(
                    example.prompt + example.completion, [(len(example.prompt), len(example.prompt + example.completion))], "Completion"
                )
            ]
        return [Rendered(example.text, [(0, len(example.text))], "Text")]

    def _render_conversation(self, example: Conversation) -> list[Rendered]:
        template = self.template
        assert template is not None  # RowReader refuses conversations without one
        try:
            turns = [position for position, message in enumerate(example.messages) if message["role"] == "assistant"]
            trained = [position for position in turns if position >= example.first_trained]
            if self.loss is SFTLoss.COMPLETION:
                trained = trained[-1:]
            spans = [self._answer_span(template, example, turn) for turn in trained]
            whole = spans[-1][0]  # conversations end with an answer
            if all(whole.startswith(text) for text, _ in spans):
                return [Rendered(whole, [span for _, span in spans], "Chat", example.messages[: trained[-1]])]
            return [Rendered(text, [span], "Chat", example.messages[:turn]) for turn, (text, span) in zip(trained, spans, strict=True)]
        except TemplateRefusedRow as error:
            raise RowDropped("RefusedByTemplate") from error

    @staticmethod
    def _answer_span(template: ChatTemplate, example: Conversation, turn: int) -> tuple[str, Span]:
        """The conversation up to and with an assistant turn, and where that answer stands in it."""
        asked = template.render(example.messages[:turn], example.tools, add_generation_prompt=True)
        answered = template.render(example.messages[: turn + 1], example.tools)
        if not answered.startswith(asked):
            raise TemplateUnsplittable
        return answered, (len(asked), len(answered))

    def encode(self, rendered: Sequence[Rendered], eos_ids: frozenset[int]) -> list[TokenRow | str]:
        """A token row for each text, or the reason for which it is dropped. Errors: StopTokenAbsent with the row's position."""
        encodings = self.tokenizer.encode([item.text for item in rendered])
        rows: list[TokenRow | str] = []
        for position, (item, encoding) in enumerate(zip(rendered, encodings, strict=True)):
            try:
                row = self._framed(item, encoding) if item.kind != "Chat" else self._chat_row(item, encoding, eos_ids)
            except StopTokenAbsent as error:
                raise StopTokenAbsent(error.token_id, position) from None
            row = self._truncated(row)
            rows.append(row if row.trained_tokens else "NothingLeftToTrain")
        return rows

    def _chat_row(self, item: Rendered, encoding: Encoding, eos_ids: frozenset[int]) -> TokenRow:
        answers = [self._answer_positions(item.text, encoding, span, eos_ids) for span in item.answers]
        last = answers[-1][1] - 1
        answer_text = item.text[item.answers[-1][0] : encoding.offsets[last][0]]
        everything = [(0, len(encoding.ids))] if self.loss is SFTLoss.ALL_TOKENS else answers
        return TokenRow(encoding.ids, labels_of(encoding.ids, everything), answers, item, answer_text)

    def _answer_positions(self, text: str, encoding: Encoding, span: Span, eos_ids: frozenset[int]) -> Span:
        """Token positions of an answer, cut after the first of the stop tokens that close it.

        Templates put white space or further control tokens after the one that ends a turn (ChatML a line feed, Phi-3 <|endoftext|>);
        the model stops before those, so they are not trained. Errors: StopTokenAbsent.
        """
        start = first_token_at(encoding, span[0])
        end = start
        while end < len(encoding.ids) and encoding.offsets[end][0] < span[1]:
            end += 1
        cut, last_visible = None, None
        for position in range(end - 1, start - 1, -1):
            token_id = encoding.ids[position]
            visible = bool(text[slice(*encoding.offsets[position])].strip())
            last_visible = token_id if last_visible is None and visible else last_visible
            if token_id in eos_ids:
                cut = position + 1
            elif visible and self.tokenizer.added_token(token_id) is None:
                break
        if cut is None:
            raise StopTokenAbsent(last_visible)
        return start, cut

    def _framed(self, item: Rendered, encoding: Encoding) -> TokenRow:
        """A text outside a chat: bos as the tokenizer puts it, eos always, so that the model learns to stop."""
        prefix, eos = self.tokenizer.prefix, self.tokenizer.id_of(self.tokenizer.named.get("eos_token"))
        if eos is None:
            raise StageError(
                Reason.INVALID_TOKENIZER,
                "the tokenizer names no eos_token, which ends texts and completions; add it to tokenizer_config.json",
            )
        ids = [*prefix, *encoding.ids, eos]
        start = len(prefix) + first_token_at(encoding, item.answers[0][0])
        if item.kind == "Text":
            start = 0
        answers = [(start, len(ids))]
        trained = answers if item.kind == "Completion" and self.loss is not SFTLoss.ALL_TOKENS else [(0, len(ids))]
        return TokenRow(ids, labels_of(ids, trained), answers, item, item.text[item.answers[0][0] :])

    def _truncated(self, row: TokenRow) -> TokenRow:
        limit = self.max_length
        if len(row.ids) <= limit:
            return row
        return replace(row, ids=row.ids[:limit], labels=row.labels[:limit], truncated=True)


class StopTokenAbsent(Exception):
    """An answer does not end with a token that stops generation. `token_id`: what it ends with."""

    def __init__(self, token_id: int | None, position: int = 0) -> None:
        super().__init__(token_id)
        self.token_id = token_id
        self.position = position


def first_token_at(encoding: Encoding, start: int) -> int:
    """Position of the first token that stands for no character before `start`."""
    return next((i for i, (begin, end) in enumerate(encoding.offsets) if begin >= start and end > start), len(encoding.ids))


def labels_of(ids: Sequence[int], trained: Iterable[Span]) -> list[int]:
    """Each id where it is trained, -100 elsewhere."""
    labels = [IGNORED_LABEL] * len(ids)
    for start, end in trained:
        labels[start:end] = ids[start:end]
    return labels
