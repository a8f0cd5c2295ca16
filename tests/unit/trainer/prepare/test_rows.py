"""Rows: what each format's record becomes, and what bad ones get."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.run import LocalDataset
from finetune_api.sections.data import DatasetFormat
from finetune_trainer.errors import StageError
from finetune_trainer.prepare.rows import Conversation, Pair, RowDropped, RowInvalid, RowReader, Text, clean, content_hash

ASKED = {"role": "user", "content": "ask"}
ANSWERED = {"role": "assistant", "content": "answer"}


def reader(has_template: bool = True, **settings: Any) -> RowReader:
    return RowReader(LocalDataset.model_validate({"name": "d", "source": "x", **settings}), has_template)


def conversation(*messages: dict[str, Any]) -> Conversation:
    return Conversation(list(messages))


GOOD: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "messages": ({}, {"messages": [ASKED, ANSWERED]}, conversation(ASKED, ANSWERED)),
    "sharegpt": (
        {},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]},
        conversation(ASKED, ANSWERED),
    ),
    "sharegpt with roles": ({}, {"conversations": [ASKED, ANSWERED]}, conversation(ASKED, ANSWERED)),
    "alpaca": (
        {},
        {"instruction": "ask", "input": "this", "output": "answer"},
        conversation({"role": "user", "content": "ask\n\nthis"}, ANSWERED),
    ),
    "alpaca without input": ({}, {"instruction": "ask", "input": "", "output": "answer"}, conversation(ASKED, ANSWERED)),
    "prompt and completion": ({}, {"prompt": "ask", "completion": "answer"}, conversation(ASKED, ANSWERED)),
    "prompt and completion as messages": (
        {},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        Conversation([ASKED, ANSWERED], first_trained=1),
    ),
    "text": ({}, {"text": "words"}, Text("words")),
    "own column names": ({"columns": {"prompt": "q", "completion": "a"}}, {"q": "ask", "a": "answer"}, conversation(ASKED, ANSWERED)),
    "a format said aloud wins over other columns": (
        {"format": "Text"},
        {"text": "words", "messages": [ASKED, ANSWERED]},
        Text("words"),
    ),
    "system message of the data set": (
        {"systemMessage": "be kind"},
        {"messages": [ASKED, ANSWERED]},
        conversation({"role": "system", "content": "be kind"}, ASKED, ANSWERED),
    ),
    "a row's own system message stays": (
        {"systemMessage": "be kind"},
        {"messages": [{"role": "system", "content": "own"}, ASKED, ANSWERED]},
        conversation({"role": "system", "content": "own"}, ASKED, ANSWERED),
    ),
    "system column": (
        {},
        {"system": "from the row", "instruction": "ask", "output": "answer"},
        conversation({"role": "system", "content": "from the row"}, ASKED, ANSWERED),
    ),
    "content in parts": (
        {},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]}, ANSWERED]},
        conversation(ASKED, ANSWERED),
    ),
    "control characters and CRLF go": ({}, {"text": "a\x00b\r\nc\td"}, Text("ab\nc\td")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_record_becomes_an_example(name: str) -> None:
    settings, record, want = GOOD[name]
    assert reader(**settings).read(record) == want


def test_a_prompt_and_its_completion_stay_text_where_the_model_has_no_chat_template() -> None:
    assert reader(has_template=False).read({"prompt": "ask", "completion": "answer"}) == Pair("ask", "answer")


def test_a_system_message_moves_the_first_trained_turn() -> None:
    example = reader(systemMessage="be kind").read({"prompt": [ASKED], "completion": [ANSWERED]})
    assert isinstance(example, Conversation)
    assert example.first_trained == 2


DROPPED: dict[str, tuple[dict[str, Any], str]] = {
    "empty answer": ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "EmptyField"),
    "null answer": ({"prompt": "ask", "completion": None}, "EmptyField"),
    "no messages": ({"messages": []}, "EmptyField"),
    "nobody answers": ({"messages": [ASKED]}, "NoAnswer"),
    "the user has the last word": ({"messages": [ASKED, ANSWERED, ASKED]}, "EndsWithoutAnswer"),
    "two questions in a row": ({"messages": [ASKED, ASKED, ANSWERED]}, "RoleOrder"),
    "the assistant begins": ({"messages": [ANSWERED, ASKED, ANSWERED]}, "RoleOrder"),
    "system in the middle": ({"messages": [ASKED, {"role": "system", "content": "x"}, ANSWERED]}, "RoleOrder"),
    "a role nobody knows": ({"messages": [{"role": "narrator", "content": "x"}, ANSWERED]}, "UnknownRole"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWERED]}, "NotText"),
    "half a surrogate pair": ({"text": "a\ud800"}, "InvalidUnicode"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_row_that_cannot_be_trained_on_is_dropped_with_its_reason(name: str) -> None:
    record, reason = DROPPED[name]
    with pytest.raises(RowDropped) as dropped:
        reader().read(record)
    assert dropped.value.reason == reason


INVALID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "columns of no format": ({}, {"question": "secret", "reply": "secret"}, "columns of one format"),
    "the format's column is missing": ({"format": "Messages"}, {"text": "secret"}, "'messages'"),
    "a renamed column is missing": ({"format": "Text", "columns": {"text": "body"}}, {"text": "secret"}, "'body'"),
    "messages that are text": ({"format": "Messages"}, {"messages": "secret"}, "a list of messages"),
    "messages without roles": ({"format": "Messages"}, {"messages": [{"content": "secret"}]}, "'role'"),
    "a number where text belongs": ({"format": "Text"}, {"text": 7}, "text in 'text'"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_row_of_another_shape_refuses_the_data_set_without_quoting_it(name: str) -> None:
    settings, record, words = INVALID[name]
    with pytest.raises(RowInvalid) as refused:
        reader(**settings).read(record)
    assert words in refused.value.expected
    assert "secret" not in refused.value.expected


def test_conversations_need_a_chat_template() -> None:
    with pytest.raises(StageError) as refused:
        reader(has_template=False).read({"messages": [ASKED, ANSWERED]})
    assert refused.value.reason == "NoChatTemplate"
    assert "model.chatTemplate" in refused.value.message


def test_the_format_is_told_once_and_holds_for_all_rows() -> None:
    one = reader()
    one.read({"text": "a"})
    assert one.format is DatasetFormat.TEXT
    with pytest.raises(RowInvalid):
        one.read({"messages": [ASKED, ANSWERED]})


def test_equal_content_has_one_hash_whatever_format_it_came_in() -> None:
    first = reader().read({"messages": [ASKED, ANSWERED]})
    second = reader().read({"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]})
    assert content_hash(first) == content_hash(second)
    assert content_hash(Pair("ab", "c")) != content_hash(Pair("a", "bc"))
    assert content_hash(Text("a")) != content_hash(Text("b"))


def test_cleaning_keeps_what_is_clean() -> None:
    assert clean("tab\tline\né 😀") == "tab\tline\né 😀"
