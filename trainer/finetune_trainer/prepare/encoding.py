"""Examples to token rows: what is rendered, what of it is trained, and how a turn must end."""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finetune_api.outcome import Reason
from finetune_api.sections.method import SFTLoss

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.chat_template import ChatTemplate, TemplateRefusedRow
from finetune_trainer.prepare.quoting import Marks, Quoting
from finetune_trainer.prepare.rows import Conversation, Example, Pair, RowDropped
from finetune_trainer.prepare.tokenizer import Encoding, TextTokenizer
from finetune_trainer.prepare.turns import Chain, find_answers
from finetune_trainer.prepared import IGNORED_LABEL

Span = tuple[int, int]
"""A half-open range of characters, or of token positions."""

_CHARS_PER_TOKEN = 16
"""A text of so many characters per token of maxLength is tokenised as a whole; of a longer one, as much as fills a row."""
_LONGEST_TOKEN_CHARS = 64
"""Tokens are shorter on average, whatever the text."""
_BATCH_CHARS = 4 << 20
_LAST_ANSWER_ONLY = "method.sft.loss Completion trains the last answer only, which has weight 0; AssistantTurns trains the others"


@dataclass(frozen=True)
class Rendered:
    """An example as text, before it is tokenised.

    `answers`: the spans that the loss is taken of, turn ends included; `context`: of answers that are never trained; `quoted`: of control
    tokens that the data quotes, which are text; `is_cut`: the text goes on where it ends here.
    """

    text: str
    answers: list[Span]
    kind: Literal["Chat", "Completion", "Text"]
    prompt_messages: list[dict[str, object]] = field(default_factory=list)
    tools: list[Any] | None = None
    context: list[Span] = field(default_factory=list)
    quoted: list[Span] = field(default_factory=list)
    is_cut: bool = False

    @property
    def prompt(self) -> str:
        """Everything before the last answer."""
        return self.text[: self.answers[-1][0]]


@dataclass(frozen=True)
class TokenRow:
    """A row as it is trained on. `answers`: half-open ranges of positions, end-of-turn token included. `split_at_answer`: a token would
    have joined a prompt with its answer; they are tokenised apart, as a server does that is sent the prompt."""

    ids: list[int]
    labels: list[int]
    answers: list[Span]
    rendered: Rendered
    answer_text: str
    truncated: bool = False
    split_at_answer: bool = False

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED_LABEL for label in self.labels)


class Encoder:
    """Renders, tokenises, masks and truncates. `eos_ids` are the tokens of which one must end each answer."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, loss: SFTLoss, max_length: int, eos_ids: frozenset[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.loss = loss
        self.max_length = max_length
        self._eos_ids = eos_ids
        control = tokenizer.control_tokens(eos_ids)
        self._control_ids = frozenset(token for text in control if (token := tokenizer.id_of(text)) is not None)
        self._quoting = Quoting(control)
        self._closing = _Closing(tokenizer, eos_ids)
        self._stops = tuple(text for token in eos_ids if (text := tokenizer.added_token(token)))
        framing = {*self._stops, *(text for name in ("bos_token", "eos_token") if (text := tokenizer.named.get(name)))}
        longest_first = "|".join(map(re.escape, sorted(framing, key=len, reverse=True))) or "(?!)"
        self._framing = re.compile(rf"\s*+(?:(?:{longest_first})\s*+)++")

    def render(self, example: Example) -> list[Rendered]:
        """Usually one text. Where a template rewrites earlier turns once later ones follow (reasoning that is dropped), as many as are
        needed for each answer to stand as serving would have seen it.

        Errors: RowDropped, TemplateUnsplittable.
        """
        if isinstance(example, Conversation):
            return self._render_conversation(example)
        if isinstance(example, Pair):
            self._refuse_empty(example.prompt, example.completion)
            prompt, completion = self._without_bos(example.prompt), self._without_eos(example.completion)
            return [Rendered(prompt + completion, [(len(prompt), len(prompt + completion))], "Completion")]
        self._refuse_empty(example.text)
        text = self._without_eos(self._without_bos(example.text))
        return [Rendered(text, [(0, len(text))], "Text")]

    def _refuse_empty(self, *texts: str) -> None:
        """Errors: RowDropped(EmptyField) for a text that is nothing but the tokens that begin and end one."""
        if any(self._framing.fullmatch(text) for text in texts):
            raise RowDropped("EmptyField")

    def is_silent(self, rendered: Rendered) -> bool:
        """Whether an answer is nothing but the tokens that end one. Those that the data quotes are text."""
        spans = [span for span in rendered.answers if not any(span[0] <= begin < span[1] for begin, _ in rendered.quoted)]
        answers = (rendered.text[start:end] for start, end in spans)
        return any(not answer.strip() or self._framing.fullmatch(answer) for answer in answers)

    def _without_bos(self, text: str) -> str:
        """The text without the bos that the tokenizer puts before it: one is enough."""
        bos = self.tokenizer.named.get("bos_token")
        puts_bos = bos is not None and self.tokenizer.prefix == [self.tokenizer.id_of(bos)]
        while bos and puts_bos and text.lstrip().startswith(bos):
            text = text.lstrip().removeprefix(bos)
        return text

    def _without_eos(self, text: str) -> str:
        """The text without the eos that every row is given at its end: one is enough. Another token that ends answers stays, and is last."""
        eos = self.tokenizer.named.get("eos_token")
        while eos and text.rstrip().endswith(eos):
            text = text.rstrip().removesuffix(eos)
        return text.rstrip() if text.rstrip().endswith(self._stops) else text

    def _render_conversation(self, example: Conversation) -> list[Rendered]:
        template = self.template
        assert template is not None  # RowReader refuses conversations without one
        turns, trained = self._turns(example)
        marked = self._quoting.marked(example)
        source, marks = (marked.conversation, marked.marks) if marked else (example, None)
        try:
            longest = self.max_length * _LONGEST_TOKEN_CHARS
            chains = find_answers(template, source.messages, source.tools, turns, self._closing.end_of, longest)
            if marks is not None and not _says_the_same(template, chains[-1], marks, example, turns[-1]):
                raise RowDropped("ControlTokens")
        except TemplateRefusedRow as error:
            raise _refusal(template, example, error) from error
        return [rendered for chain in chains if (rendered := _of_chain(chain, marks, example, trained))]

    def _turns(self, example: Conversation) -> tuple[list[int], frozenset[int]]:
        """Answers to be found, ascending, and those of them that are trained."""
        answers = [position for position, message in enumerate(example.messages) if message["role"] == "assistant"]
        wanted = answers[-1:] if self.loss is SFTLoss.COMPLETION else [turn for turn in answers if turn >= example.first_trained]
        trained = frozenset(wanted) - example.untrained
        if not trained:
            by_loss = self.loss is SFTLoss.COMPLETION and example.untrained < frozenset(answers)
            raise RowDropped("NoTrainedAnswer", _LAST_ANSWER_ONLY if by_loss else None)
        everything = self.loss is SFTLoss.ALL_TOKENS and example.untrained
        return [turn for turn in (answers if everything else wanted) if everything or turn in trained], trained

    def encode(self, rendered: Sequence[Rendered]) -> list[TokenRow | str]:
        """A token row for each text, or the reason for which it is dropped. Errors: StopTokenAbsent with the row's position."""
        rows: list[TokenRow | str] = []
        for position, (item, encoding) in enumerate(self._encodings(rendered)):
            try:
                rows.append(self._row(item, encoding))
            except RowDropped as dropped:
                rows.append(dropped.reason)
            except StopTokenAbsent as error:
                raise StopTokenAbsent(error.token_id, position) from None
        return rows

    def _encodings(self, rendered: Sequence[Rendered]) -> Iterable[tuple[Rendered, Encoding]]:
        """Each text with its ids; one that is far longer than a row, cut. So much at a time that memory stays bounded."""
        whole_chars = self.max_length * _CHARS_PER_TOKEN
        for some in _by_size(rendered, max(_BATCH_CHARS, whole_chars)):
            found = iter(self.tokenizer.encode([item.text for item in some if len(item.text) <= whole_chars]))
            for item in some:
                yield (item, next(found)) if len(item.text) <= whole_chars else self._fitting(item)

    def _fitting(self, item: Rendered) -> tuple[Rendered, Encoding]:
        """As much of a long text as fills a row, and some more: what lies far behind a token does not change it."""
        chars = self.max_length * _CHARS_PER_TOKEN
        while True:
            encoding = self.tokenizer.encode([item.text[:chars]])[0]
            if chars >= len(item.text):
                return item, encoding
            if len(encoding.ids) > self.max_length + 64:
                return _cut(item, chars), encoding
            chars *= 2

    def _row(self, item: Rendered, encoding: Encoding) -> TokenRow:
        if not item.answers:
            raise RowDropped("NothingLeftToTrain")
        split = self._is_split(item, encoding)
        if split or item.quoted:
            encoding = self._in_pieces(item, encoding, split)
        row = self._chat_row(item, encoding) if item.kind == "Chat" else self._framed(item, encoding)
        row = replace(self._truncated(row), split_at_answer=split)
        if not row.trained_tokens:
            raise RowDropped("NothingLeftToTrain")
        return row

    def _is_split(self, item: Rendered, encoding: Encoding) -> bool:
        """Whether prompt and answer are other tokens together than apart, so that what is served would differ from what is trained."""
        if item.kind == "Text":
            return False
        begins = [begin for begin, _ in encoding.offsets]
        starts = [start for start, _ in item.answers if start]
        if any(_straddles(encoding, begins, start) for start in starts):
            return True
        return bool(starts) and not self._stands_alone(item.text, encoding, bisect_left(begins, starts[0]), starts[0])

    def _stands_alone(self, text: str, encoding: Encoding, position: int, start: int) -> bool:
        """Whether the ids before `position` are those of `text[:start]` by itself. Told at once behind an added token, or a single line
        feed, as most templates have it."""
        if self.tokenizer.added_token(encoding.ids[position - 1]) or (
            text[start - 1] == "\n" and not text[start - 2 : start - 1].isspace()
        ):
            return True
        return self.tokenizer.encode([text[:start]])[0].ids == encoding.ids[:position]

    def _in_pieces(self, item: Rendered, encoding: Encoding, split: bool) -> Encoding:
        """The text's ids, cut before each answer where `split`, quoted control tokens as text. Errors: RowDropped where the tokenizer
        cannot do that."""
        cuts = [start for start, _ in item.answers] if split else []
        pieces = self.tokenizer.encode_pieces(item.text, cuts, item.quoted, self._control_ids)
        if pieces is not None and self.tokenizer.decode(pieces.ids) == self.tokenizer.decode(encoding.ids):
            return pieces
        if item.quoted:
            raise RowDropped("ControlTokens")
        return encoding

    def _chat_row(self, item: Rendered, encoding: Encoding) -> TokenRow:
        begins = [begin for begin, _ in encoding.offsets]
        answers = [self._answer_positions(item, encoding, begins, span) for span in item.answers]
        last = answers[-1][1] - 1
        answer_text = item.text[item.answers[-1][0] : encoding.offsets[last][0]]
        if self.loss is SFTLoss.ALL_TOKENS:
            labels = list(encoding.ids)
            for start, end in item.context:
                first, after = bisect_left(begins, start), bisect_left(begins, end)
                labels[first:after] = [IGNORED_LABEL] * (after - first)
        else:
            labels = labels_of(encoding.ids, answers)
        return TokenRow(encoding.ids, labels, answers, item, answer_text)

    def _answer_positions(self, item: Rendered, encoding: Encoding, begins: Sequence[int], span: Span) -> Span:
        """Token positions of an answer, cut after the first of the stop tokens that close it.

        Templates put white space or further control tokens after the one that ends a turn (ChatML a line feed, Phi-3 <|endoftext|>);
        the model stops before those, so they are not trained. Errors: StopTokenAbsent.
        """
        start, end = first_token_at(encoding, begins, span[0]), bisect_left(begins, span[1])
        if item.is_cut and span[1] == len(item.text):
            return start, end
        cut, last_visible = None, None
        for position in range(end - 1, start - 1, -1):
            token_id = encoding.ids[position]
            visible = bool(item.text[slice(*encoding.offsets[position])].strip())
            last_visible = token_id if last_visible is None and visible else last_visible
            if token_id in self._eos_ids:
                cut = position + 1
            elif visible and self.tokenizer.added_token(token_id) is None:
                break
        if cut is None:
            raise StopTokenAbsent(last_visible)
        return start, cut

    def _framed(self, item: Rendered, encoding: Encoding) -> TokenRow:
        """A text outside a chat: bos as the tokenizer puts it, and an end always, so that the model learns to stop."""
        prefix, eos = self.tokenizer.prefix, self.tokenizer.id_of(self.tokenizer.named.get("eos_token"))
        if eos is None:
            raise StageError(
                Reason.INVALID_TOKENIZER,
                "the tokenizer names no eos_token, which ends texts and completions; add it to tokenizer_config.json",
            )
        has_end = bool(encoding.ids) and encoding.ids[-1] in self._eos_ids
        ids = [*prefix, *encoding.ids, *([] if has_end else [eos])]
        text_end = encoding.offsets[-1][0] if has_end else len(item.text)
        start = 0
        if item.kind == "Completion":
            start = len(prefix) + first_token_at(encoding, [begin for begin, _ in encoding.offsets], item.answers[0][0])
        answers = [(start, len(ids))]
        trained = answers if item.kind == "Completion" and self.loss is not SFTLoss.ALL_TOKENS else [(0, len(ids))]
        return TokenRow(ids, labels_of(ids, trained), answers, item, item.text[item.answers[0][0] : text_end])

    def _truncated(self, row: TokenRow) -> TokenRow:
        limit = self.max_length
        if len(row.ids) <= limit:
            return row
        return replace(row, ids=row.ids[:limit], labels=row.labels[:limit], truncated=True)


def _refusal(template: ChatTemplate, example: Conversation, error: TemplateRefusedRow) -> RowDropped:
    said = f'the template says "{error.words}"' if error.words else None
    if example.messages[0]["role"] == "system":
        with contextlib.suppress(TemplateRefusedRow):
            template.render(example.messages[1:], example.tools)
            return RowDropped("SystemRefusedByTemplate", said)
    return RowDropped("RefusedByTemplate", said)


def _says_the_same(template: ChatTemplate, marked: Chain, marks: Marks, example: Conversation, last: int) -> bool:
    """Whether marks changed nothing but to stand there. A chain's text goes to its own last answer, or to the conversation's."""
    plain = marks.removed_from(marked.text)
    return any(plain == template.render(example.messages[: turn + 1], example.tools) for turn in {last, marked.answers[-1][0]})


def _of_chain(chain: Chain, marks: Marks | None, example: Conversation, trained: frozenset[int]) -> Rendered | None:
    """A chain's text with what of it is trained; None where nothing is. Errors: RowDropped(ControlTokens)."""
    turns = [turn for turn, _ in chain.answers]
    if not trained.intersection(turns):
        return None
    spans, quoted = [span for _, span in chain.answers], list[Span]()
    if marks is not None:
        plain = marks.unmarked(chain.text, spans)
        if plain is None:
            raise RowDropped("ControlTokens")
        spans, quoted = plain
    return Rendered(
        marks.removed_from(chain.text) if marks else chain.text,
        [span for turn, span in zip(turns, spans, strict=True) if turn in trained],
        "Chat",
        example.messages[: max(turn for turn in turns if turn in trained)],
        example.tools,
        context=[span for turn, span in zip(turns, spans, strict=True) if turn in example.untrained],
        quoted=quoted,
    )


def _cut(item: Rendered, chars: int) -> Rendered:
    def within(spans: list[Span]) -> list[Span]:
        return [(start, min(end, chars)) for start, end in spans if start < chars]

    text = item.text[:chars]
    return replace(item, text=text, answers=within(item.answers), context=within(item.context), quoted=within(item.quoted), is_cut=True)


def _by_size(rendered: Sequence[Rendered], chars: int) -> Iterable[list[Rendered]]:
    """The same in their order, in lists of at most so many characters, or of one."""
    some: list[Rendered] = []
    size = 0
    for item in rendered:
        if some and size + len(item.text) > chars:
            yield some
            some, size = [], 0
        some.append(item)
        size += len(item.text)
    if some:
        yield some


class _Closing:
    """Finds where an answer ends in a text that ends with it."""

    def __init__(self, tokenizer: TextTokenizer, eos_ids: frozenset[int]) -> None:
        self._closing = frozenset(tokenizer.added_tokens)
        self._stops = frozenset(text for token in eos_ids if (text := tokenizer.added_token(token)))
        self._lengths = sorted({len(text) for text in self._closing}, reverse=True)

    def end_of(self, text: str, start: int) -> int:
        """After the first stop token of the run of white space and added tokens that closes the text; the text's end where none does."""
        end, position = len(text), len(text)
        while position > start:
            stripped = len(text[start:position].rstrip()) + start
            token = next(
                (
                    text[stripped - size : stripped]
                    for size in self._lengths
                    if text[max(start, stripped - size) : stripped] in self._closing
                ),
                None,
            )
            if token is None:
                return end
            end = stripped if token in self._stops else end
            position = stripped - len(token)
        return end


class StopTokenAbsent(Exception):
    """An answer does not end with a token that stops generation. `token_id`: what it ends with."""

    def __init__(self, token_id: int | None, position: int = 0) -> None:
        super().__init__(token_id)
        self.token_id = token_id
        self.position = position


def _straddles(encoding: Encoding, begins: Sequence[int], start: int) -> bool:
    """Whether a token stands for characters on both sides of `start`."""
    before = bisect_left(begins, start) - 1
    return before >= 0 and encoding.offsets[before][1] > start


def first_token_at(encoding: Encoding, begins: Sequence[int], start: int) -> int:
    """Position of the first token that stands for `start` or what follows it; one that stands for what is before as well counts."""
    first = bisect_left(begins, start)
    if first and encoding.offsets[first - 1][1] > start:
        return first - 1
    while first < len(begins) and encoding.offsets[first][1] <= start:
        first += 1
    return first


def labels_of(ids: Sequence[int], trained: Iterable[Span]) -> list[int]:
    """Each id where it is trained, -100 elsewhere."""
    labels = [IGNORED_LABEL] * len(ids)
    for start, end in trained:
        labels[start:end] = ids[start:end]
    return labels
