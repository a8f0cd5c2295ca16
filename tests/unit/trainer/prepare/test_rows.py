"""Rows: what each format's record becomes, and what bad ones get."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.run import LocalDataset
from finetune_api.sections.data import DatasetFormat
from finetune_trainer.errors import StageError
from finetune_trainer.prepare.chat_template import CHATML, ChatTemplate
from finetune_trainer.prepare.quoting import Quoting
from finetune_trainer.prepare.rows import Conversation, Pair, RowDropped, RowInvalid, RowReader, Text, clean, content_hash

ASKED = {"role": "user", "content": "ask"}
ANSWERED = {"role": "assistant", "content": "answer"}


CALLING = ChatTemplate(
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}",
    {},
)


def reader(template: ChatTemplate | None = CALLING, **settings: Any) -> RowReader:
    return RowReader(LocalDataset.model_validate({"name": "d", "source": "x", **settings}), template)


def conversation(*messages: dict[str, Any]) -> Conversation:
    return Conversation(list(messages))


GOOD: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "messages": ({}, {"messages": [ASKED, ANSWERED]}, conversation(ASKED, ANSWERED)),
    "sharegpt": (
        {},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]},
        conversation(ASKED, ANSWERED),
    ),
    "sharegpt with roles and something else in from": (
        {},
        {"conversations": [{**ASKED, "from": "forum"}, ANSWERED]},
        conversation({**ASKED, "from": "forum"}, ANSWERED),
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
    "alpaca with history": (
        {},
        {"instruction": "again", "output": "yes", "history": [["ask", "answer"]]},
        conversation(ASKED, ANSWERED, {"role": "user", "content": "again"}, {"role": "assistant", "content": "yes"}),
    ),
    "alpaca without history": ({}, {"instruction": "ask", "output": "answer", "history": []}, conversation(ASKED, ANSWERED)),
    "a history of another name": (
        {"columns": {"history": "before"}},
        {"instruction": "again", "output": "yes", "before": [["ask", "answer"]]},
        conversation(ASKED, ANSWERED, {"role": "user", "content": "again"}, {"role": "assistant", "content": "yes"}),
    ),
    "control characters and CRLF go": ({}, {"text": "a\x00b\r\nc\td"}, Text("ab\nc\td")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_record_becomes_an_example(name: str) -> None:
    settings, record, want = GOOD[name]
    assert reader(**settings).read(record) == want


def test_a_prompt_and_its_completion_stay_text_where_the_model_has_no_chat_template() -> None:
    assert reader(template=None).read({"prompt": "ask", "completion": "answer"}) == Pair("ask", "answer")


def test_a_system_message_moves_the_first_trained_turn() -> None:
    example = reader(systemMessage="be kind").read({"prompt": [ASKED], "completion": [ANSWERED]})
    assert isinstance(example, Conversation)
    assert example.first_trained == 2


CALL = {"type": "function", "function": {"name": "count", "arguments": {"box": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3"}
CALLS: dict[str, Any] = {
    "as OpenAI's client sends it": {"tool_calls": [{"type": "function", "function": {"name": "count", "arguments": '{"box": 1}'}}]},
    "as an object": {"tool_calls": [CALL]},
    "bare": {"tool_calls": [{"name": "count", "arguments": {"box": 1}}]},
    "a list written as text": {"tool_calls": '[{"name": "count", "arguments": {"box": 1}}]'},
    "OpenAI's older member": {"function_call": {"name": "count", "arguments": '{"box": 1}'}},
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_tools_become_what_templates_know(name: str) -> None:
    record = {"messages": [ASKED, {"role": "assistant", "content": None, **CALLS[name]}, RESULT, ANSWERED]}
    assert reader().read(record) == conversation(ASKED, CALLED, RESULT, ANSWERED)


@pytest.mark.parametrize("arguments", ["", "{}", None, {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    record = {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": arguments}}]}]}
    example = reader().read(record)
    assert isinstance(example, Conversation)
    assert example.messages[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


@pytest.mark.parametrize("tag", ["function_call", "tool_call", "Function_Call"])
def test_sharegpts_call_is_a_turn_of_the_assistant(tag: str) -> None:
    value = json.dumps({"name": "count", "arguments": {"box": 1}})
    turns = [("human", "ask"), (tag, value), ("observation", "3"), ("gpt", "answer")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    assert reader().read(record) == conversation(ASKED, CALLED, RESULT, ANSWERED)
    as_text = reader(template=ChatTemplate(CHATML, {})).read(record)
    assert as_text == conversation(ASKED, {"role": "assistant", "content": value}, RESULT, ANSWERED)


BARE = {"parameters": {"type": "object"}, "name": "count", "strict": True}
TOOL = {"type": "function", "function": BARE}
AS_SERVED = {"type": "function", "function": {"name": "count", "description": "", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "tools", [[TOOL], TOOL, [BARE], json.dumps([BARE]), [json.dumps(BARE)], json.dumps(TOOL), [{"type": "function", **BARE}]]
)
def test_tools_are_read_however_they_are_written(tools: Any) -> None:
    example = reader().read({"messages": [ASKED, ANSWERED], "tools": tools})
    assert isinstance(example, Conversation)
    assert json.dumps(example.tools) == json.dumps([AS_SERVED])


RETURNS = {**BARE, "return": {"type": "string"}}
LOST: dict[str, tuple[Any, set[str]]] = {
    "a list": ([RETURNS], {"tools.function.return"}),
    "a list written as text": (json.dumps([RETURNS]), {"tools.function.return"}),
    "a list of texts": ([json.dumps({"type": "function", "function": RETURNS})], {"tools.function.return"}),
    "members beside the function": ([{**TOOL, "description": "counts", "examples": [1], "note": None}], {"tools.description", "tools.examples"}),
    "a tool that is no function": ([{"type": "code_interpreter", "container": "auto"}], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_no_client_can_send_of_a_tool_is_known(name: str) -> None:
    tools, lost = LOST[name]
    one = reader()
    one.read({"messages": [ASKED, ANSWERED], "tools": tools})
    assert one.unread == lost


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert reader().read({"messages": [ASKED, ANSWERED], "tools": tools}) == conversation(ASKED, ANSWERED)


@pytest.mark.parametrize("said", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": True, "weight": 0}])
def test_an_answer_can_be_context(said: dict[str, Any]) -> None:
    record = {"messages": [ASKED, {**ANSWERED, **said}, {**ASKED, "weight": 0}, {**ANSWERED, "weight": 1, "train": True}]}
    assert reader().read(record) == Conversation([ASKED, ANSWERED, ASKED, ANSWERED], untrained=frozenset({1}))
    with_system = reader(systemMessage="be kind").read(record)
    assert isinstance(with_system, Conversation)
    assert with_system.untrained == {2}


def test_columns_that_nothing_reads_are_known() -> None:
    one = reader()
    one.read({"instruction": "a", "output": "b", "category": "qa", "id": 0, "note": None, "tags": []})
    assert one.unread == {"category", "id"}


TURNS = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]
CITED = [{"type": "text", "text": "answer", "citations": [1], "cache_control": None}]
OVERRULED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "ShareGPT's turns with names of Messages": (
        {"conversations": [{**TURNS[0], "content": "other", "role": "tool"}, {**TURNS[1], "content": "other"}]},
        {"conversations.content", "conversations.role"},
    ),
    "parts with more than text": ({"messages": [ASKED, {"role": "assistant", "content": CITED}]}, {"messages.content.citations"}),
    "completions in parts": ({"prompt": [ASKED], "completion": [{"role": "assistant", "content": CITED}]}, {"completion.content.citations"}),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRULED)
def test_members_that_others_overrule_are_known(name: str) -> None:
    record, unread = OVERRULED[name]
    one = reader()
    example = one.read(record)
    assert isinstance(example, Conversation)
    assert example.messages == [ASKED, ANSWERED]
    assert one.unread == unread


def test_a_call_in_the_older_member_beside_calls_is_known() -> None:
    one = reader()
    both = {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "other", "arguments": "{}"}}
    assert one.read({"messages": [ASKED, both, RESULT, ANSWERED]}) == conversation(ASKED, CALLED, RESULT, ANSWERED)
    assert one.unread == {"messages.function_call"}


@pytest.mark.parametrize("member", ["tool_calls", "function_call"])
def test_calls_beside_sharegpts_turn_that_calls_are_known(member: str) -> None:
    value = {"name": "count", "arguments": {"box": 1}}
    turns = [
        TURNS[0],
        {"from": "function_call", "value": value, member: {"name": "other"}},
        {"from": "observation", "value": "3"},
        TURNS[1],
    ]
    one = reader()
    assert one.read({"conversations": turns}) == conversation(ASKED, CALLED, RESULT, ANSWERED)
    assert one.unread == {f"conversations.{member}"}


@pytest.mark.parametrize(("said", "rows"), [("other", 1), (" be kind\n", 0), ("", 0), (None, 0)])
def test_a_system_column_beside_another_system_message_is_known(said: str | None, rows: int) -> None:
    one = reader()
    system = {"role": "system", "content": "be kind"}
    assert one.read({"messages": [system, ASKED, ANSWERED], "system": said}) == conversation(system, ASKED, ANSWERED)
    assert {words.split(",")[0]: number for words, number in one.notes.items() if number} == (
        {"the column 'system' is not read": rows} if rows else {}
    )


@pytest.mark.parametrize(("said", "rows"), [({"weight": 1}, 1), ({"train": True}, 1), ({"weight": 0}, 0)])
def test_a_question_that_asks_to_be_trained_is_known(said: dict[str, Any], rows: int) -> None:
    one = reader()
    assert one.read({"messages": [{**ASKED, **said}, ANSWERED]}) == conversation(ASKED, ANSWERED)
    assert one.notes.total() == rows


def test_rows_that_lost_control_characters_are_counted() -> None:
    one = reader()
    for text in ("a\x00", "b\x1b[31m", "c\r\n", "d"):
        one.read({"text": text})
    assert one.cleaned == 2


def test_a_named_column_that_no_row_has_is_known_at_the_end() -> None:
    one = reader(columns={"input": "contxt"})
    one.read({"instruction": "a", "context": "b", "output": "c"})
    assert one.never_found() == (
        "columns.input: no row has a column 'contxt'; name the right one, or remove it; columns that are not read: context"
    )
    one.read({"instruction": "a", "contxt": "b", "output": "c"})
    assert one.never_found() is None


def nested(depth: int) -> str:
    """A JSON object of so many levels."""
    return '{"a": ' * depth + "0" + "}" * depth


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
    "an image with words": (
        {"messages": [{"role": "user", "content": [{"type": "image", "text": "a", "image": "b"}]}, ANSWERED]},
        "NotText",
    ),
    "arguments that are broken JSON": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]}]},
        "InvalidToolCall",
    ),
    **{
        f"arguments that are no strict JSON, {text}": (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]},
            "InvalidToolCall",
        )
        for text in ('{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e400}')
    },
    **{
        f"arguments that nest {depth} levels deep": (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nested(depth)}}]}]},
            "InvalidToolCall",
        )
        for depth in (257, 500, 900, 100_000)
    },
    "calls that nest too deep, as text": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": f'[{{"function": {{"name": "f", "arguments": {nested(300)}}}}}]'}]},
        "InvalidToolCall",
    ),
    "a ShareGPT call that nests too deep": (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": f'{{"name": "f", "arguments": {nested(300)}}}'},
            ]
        },
        "InvalidToolCall",
    ),
    "arguments that no JSON holds": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [float("nan")]}}}]}]},
        "InvalidToolCall",
    ),
    "arguments that are no object": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "InvalidToolCall",
    ),
    "a call without a name": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]},
        "InvalidToolCall",
    ),
    "half a surrogate pair": ({"text": "a\ud800"}, "InvalidUnicode"),
}


@pytest.mark.parametrize("depth", [257, 500, 900, 100_000])
def test_tools_that_nest_too_deep_are_refused_with_the_bound(depth: int) -> None:
    tool = f'{{"name": "f", "parameters": {nested(depth)}}}'
    for tools in (f"[{tool}]", [tool]):
        with pytest.raises(RowInvalid) as refused:
            reader().read({"messages": [ASKED, ANSWERED], "tools": tools})
        assert "nested at most 256 levels deep" in refused.value.expected


def test_text_that_nests_as_deep_as_rows_may_is_read() -> None:
    call = {"function": {"name": "f", "arguments": nested(256)}}
    tool = f'{{"name": "f", "parameters": {nested(255)}}}'
    read = reader().read({"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]})
    assert isinstance(read, Conversation)
    assert json.dumps(read.messages[1]["tool_calls"][0]["function"]["arguments"]) == nested(256)
    content_hash(read)
    Quoting(["<|im_end|>"]).marked(read)
    assert nested(256) in ChatTemplate("{% for m in messages %}{{ (m.tool_calls or []) | tojson }}{% endfor %}", {}).render(
        read.messages, read.tools
    )


@pytest.mark.parametrize("name", DROPPED)
def test_a_row_that_cannot_be_trained_on_is_dropped_with_its_reason(name: str) -> None:
    record, reason = DROPPED[name]
    with pytest.raises(RowDropped) as dropped:
        reader().read(record)
    assert dropped.value.reason == reason


@pytest.mark.parametrize(
    ("tag", "words"), [("Narrator", "a role is called 'Narrator'; known are system, "), ("my secret: 1", "of no known name")]
)
def test_an_unknown_role_is_named_where_it_is_a_name(tag: str, words: str) -> None:
    with pytest.raises(RowDropped) as dropped:
        reader().read({"messages": [{"role": tag, "content": "x"}, ANSWERED]})
    assert words in (dropped.value.words or "")
    assert "secret" not in (dropped.value.words or "")


INVALID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "columns of no format": ({}, {"question": "secret", "reply": "secret"}, "columns of one format"),
    "the format's column is missing": ({"format": "Messages"}, {"text": "secret"}, "'messages'"),
    "a renamed column is missing": ({"format": "Text", "columns": {"text": "body"}}, {"text": "secret"}, "'body'"),
    "messages that are text": ({"format": "Messages"}, {"messages": "secret"}, "a list of messages"),
    "messages without roles": ({"format": "Messages"}, {"messages": [{"content": "secret"}]}, "'role'"),
    "a weight in between": ({}, {"messages": [ASKED, {**ANSWERED, "weight": 0.5}]}, "0 or 1"),
    "tools whose text names a member twice": (
        {},
        {"messages": [ASKED, ANSWERED], "tools": '[{"name": "secret", "name": "f"}]'},
        "in 'tools'",
    ),
    "tools that are none": ({}, {"messages": [ASKED, ANSWERED], "tools": "secret"}, "in 'tools'"),
    "a history of another shape": ({}, {"instruction": "a", "output": "b", "history": ["secret"]}, "[question, answer] pairs in 'history'"),
    "a column of another format is named": ({"columns": {"prompt": "text"}}, {"text": "secret"}, "has no columns.prompt"),
    "a system message for plain text": ({"systemMessage": "secret"}, {"text": "secret"}, "remove systemMessage"),
    "a list of rows in one object": (
        {},
        {"data": [{"messages": ["secret"]}]},
        "there is a list of objects, 'data': write them one on each line",
    ),
    "a list of rows beside others": ({}, {"version": 1, "rows": [{"prompt": "secret"}]}, "there is a list of objects, 'rows'"),
    "a conversation of another name": ({}, {"id": 1, "chat": [ASKED, ANSWERED]}, "set format: Messages with columns.messages: chat"),
    "turns of another name": (
        {},
        {"turns": [{"from": "human", "value": "secret"}]},
        "set format: ShareGPT with columns.conversations: turns",
    ),
    "names that tell": (
        {},
        {"question": "secret", "answer_text": "secret"},
        "set format: PromptCompletion with columns.prompt: question and columns.completion: answer_text",
    ),
    "names in capitals": (
        {},
        {"userQuery": "secret", "botResponse": "secret"},
        "columns.prompt: userQuery and columns.completion: botResponse",
    ),
    "a text of another name": ({}, {"article": "secret"}, "format: Text with columns.text: article"),
    "names that tell nothing": ({}, {"x": "secret", "y": 1}, "there are x, y; set format and columns"),
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
        reader(template=None).read({"messages": [ASKED, ANSWERED]})
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
    assert content_hash(Text("a")) == content_hash(Text(" a\n"))
    spaced = reader().read({"messages": [{**ASKED, "content": " ask\n"}, {**ANSWERED, "content": "\tanswer "}]})
    assert content_hash(first) == content_hash(spaced)
    assert content_hash(first) != content_hash(Conversation([ASKED, ANSWERED], untrained=frozenset({1})))
    assert content_hash(Pair("ab", "c")) != content_hash(Pair("a", "bc"))
    assert content_hash(Text("a")) != content_hash(Text("b"))


def test_cleaning_keeps_what_is_clean() -> None:
    assert clean("tab\tline\né 😀") == "tab\tline\né 😀"
