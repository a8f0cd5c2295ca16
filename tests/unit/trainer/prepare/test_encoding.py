"""What of a rendered conversation is trained, in the manners of well-known families of chat templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from finetune_api.sections.method import SFTLoss
from finetune_trainer.prepare.chat_template import ChatTemplate
from finetune_trainer.prepare.encoding import Encoder, StopTokenAbsent, TemplateUnsplittable, TokenRow
from finetune_trainer.prepare.rows import Conversation, Example, Pair, RowDropped, Text
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import IGNORED_LABEL

from tests.chat_templates import FAMILIES
from tests.tiny_models import bpe_model

QUESTIONS = ("how many files?", "and with --quiet?")
ANSWERS = ("all of them", "none, unless --max is given")


@cache
def tokenizer_of(control: tuple[str, ...]) -> TextTokenizer:
    folder = bpe_model(Path(mkdtemp()), control=list(control))
    return TextTokenizer(folder / "tokenizer.json", folder)


def encoder(family: str, loss: SFTLoss = SFTLoss.ASSISTANT_TURNS, max_length: int = 512) -> tuple[Encoder, frozenset[int]]:
    chosen = FAMILIES[family]
    tokenizer = tokenizer_of(tuple(chosen.control))
    end = tokenizer.id_of(chosen.end)
    assert end is not None
    return Encoder(tokenizer, ChatTemplate(chosen.text, chosen.special), loss, max_length), frozenset({end})


def conversation(turns: int, system: bool = False, reasoning: str | None = None) -> Conversation:
    messages: list[dict[str, object]] = [{"role": "system", "content": "be kind"}] if system else []
    for question, answer in zip(QUESTIONS[:turns], ANSWERS, strict=False):
        extra = {"reasoning_content": reasoning} if reasoning else {}
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **extra}]
    return Conversation(messages)


def rows(encode: Encoder, eos_ids: frozenset[int], example: Example) -> list[TokenRow]:
    found = encode.encode(encode.render(example), eos_ids)
    assert not any(isinstance(row, str) for row in found)
    return [row for row in found if isinstance(row, TokenRow)]


def trained_text(row: TokenRow, encode: Encoder) -> list[str]:
    """Each trained stretch, decoded."""
    stretches: list[list[int]] = []
    for position, label in enumerate(row.labels):
        if label != IGNORED_LABEL:
            if position == 0 or row.labels[position - 1] == IGNORED_LABEL:
                stretches.append([])
            stretches[-1].append(label)
    return [encode.tokenizer.decode(ids) for ids in stretches]


SPLITTABLE = [name for name in FAMILIES if name not in ("an end token at the very end", "reasoning kept in the last turn only")]


CASES = [
    (name, turns, system)
    for name in SPLITTABLE
    for turns in (1, 2)
    for system in (False, True)
    if FAMILIES[name].takes_system or not system
]


@pytest.mark.parametrize(("family", "turns", "system"), CASES)
def test_every_answer_is_trained_with_its_end_and_nothing_else(family: str, turns: int, system: bool) -> None:
    encode, eos_ids = encoder(family)
    (row,) = rows(encode, eos_ids, conversation(turns, system))
    end = FAMILIES[family].end
    lead = " " if family == "instructions in brackets" else ""
    assert trained_text(row, encode) == [f"{lead}{answer}{end}" for answer in ANSWERS[:turns]]
    assert all(label in (IGNORED_LABEL, token) for label, token in zip(row.labels, row.ids, strict=True))
    assert row.answer_text == lead + ANSWERS[turns - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_whole_text_tokenised_at_once(family: str) -> None:
    encode, eos_ids = encoder(family)
    for row in rows(encode, eos_ids, conversation(2)):
        assert row.ids == encode.tokenizer.encode([row.rendered.text])[0].ids
        assert row.rendered.text.startswith(row.rendered.prompt)


@pytest.mark.parametrize("family", ["an end token at the very end", "reasoning kept in the last turn only"])
def test_a_template_that_rewrites_earlier_turns_gives_a_row_for_each_answer(family: str) -> None:
    encode, eos_ids = encoder(family)
    found = rows(encode, eos_ids, conversation(2, reasoning="hm"))
    assert len(found) == 2
    lead = "<think>\nhm\n</think>\n\n" if family.startswith("reasoning") else ""
    assert [trained_text(row, encode) for row in found] == [[f"{lead}{answer}{FAMILIES[family].end}"] for answer in ANSWERS]
    # The first question and answer are context of the second row as a server would render them: without reasoning.
    assert ANSWERS[0] in found[1].rendered.prompt
    assert "hm" not in found[1].rendered.prompt


def test_loss_on_the_completion_trains_the_last_answer_only() -> None:
    encode, eos_ids = encoder("chatml", SFTLoss.COMPLETION)
    (row,) = rows(encode, eos_ids, conversation(2))
    assert trained_text(row, encode) == [f"{ANSWERS[1]}<|im_end|>"]


def test_loss_on_all_tokens() -> None:
    encode, eos_ids = encoder("chatml", SFTLoss.ALL_TOKENS)
    (row,) = rows(encode, eos_ids, conversation(2))
    assert row.labels == row.ids


def test_turns_of_a_prompt_are_not_trained() -> None:
    encode, eos_ids = encoder("chatml")
    example = Conversation(conversation(2).messages, first_trained=3)
    (row,) = rows(encode, eos_ids, example)
    assert trained_text(row, encode) == [f"{ANSWERS[1]}<|im_end|>"]


def test_white_space_at_the_edges_of_an_answer_belongs_to_it() -> None:
    encode, eos_ids = encoder("chatml")
    example = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": " b \n"}])
    (row,) = rows(encode, eos_ids, example)
    assert trained_text(row, encode) == [" b \n<|im_end|>"]


def test_an_answer_that_quotes_the_end_token_is_trained_to_its_real_end() -> None:
    encode, eos_ids = encoder("chatml")
    example = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<|im_end|> ends a turn"}])
    (row,) = rows(encode, eos_ids, example)
    assert trained_text(row, encode) == ["<|im_end|> ends a turn<|im_end|>"]


def test_an_end_that_does_not_stop_generation_is_found() -> None:
    encode, _ = encoder("chatml")
    other = encode.tokenizer.id_of("<|endoftext|>")
    assert other is not None
    with pytest.raises(StopTokenAbsent) as absent:
        encode.encode(encode.render(conversation(1)), frozenset({other}))
    assert absent.value.token_id == encode.tokenizer.id_of("<|im_end|>")


def test_a_generation_prompt_that_no_answer_begins_with_is_refused() -> None:
    text = FAMILIES["chatml"].text.replace("'<|im_start|>assistant\\n' }}\n{%- endif", "'<|im_start|>assistant\\n<think>\\n' }}\n{%- endif")
    assert text != FAMILIES["chatml"].text
    encode = Encoder(tokenizer_of(()), ChatTemplate(text, {}), SFTLoss.ASSISTANT_TURNS, 512)
    with pytest.raises(TemplateUnsplittable):
        encode.render(conversation(1))


def test_a_conversation_that_the_template_refuses_is_dropped() -> None:
    encode, _ = encoder("no system role, model instead of assistant")
    with pytest.raises(RowDropped) as dropped:
        encode.render(conversation(1, system=True))
    assert dropped.value.reason == "RefusedByTemplate"


def test_text_is_trained_whole_and_ends() -> None:
    encode, eos_ids = encoder("chatml")
    (row,) = rows(encode, eos_ids, Text("set --verbose"))
    assert row.labels == row.ids
    assert encode.tokenizer.decode(row.ids) == "set --verbose<|im_end|>"


def test_a_completion_is_trained_with_eos_and_its_prompt_is_not() -> None:
    encode, eos_ids = encoder("chatml")
    (row,) = rows(encode, eos_ids, Pair("print", " more of it"))
    assert trained_text(row, encode) == [" more of it<|im_end|>"]
    assert row.rendered.prompt == "print"
    assert row.answer_text == " more of it"


def test_long_rows_keep_their_start_and_say_so() -> None:
    (whole,) = rows(*encoder("chatml"), conversation(1))
    limit = whole.answers[0][0] + 2
    (row,) = rows(*encoder("chatml", max_length=limit), conversation(1))
    assert row.truncated
    assert row.ids == whole.ids[:limit]
    assert row.labels == whole.labels[:limit]


def test_a_row_cut_before_its_answer_is_dropped() -> None:
    (whole,) = rows(*encoder("chatml"), conversation(1))
    encode, eos_ids = encoder("chatml", max_length=whole.answers[0][0])
    assert encode.encode(encode.render(conversation(1)), eos_ids) == ["NothingLeftToTrain"]
