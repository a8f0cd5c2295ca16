"""What of conversations a chat template leaves out, in how many rows, and found by a few renderings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.prepare import contents
from finetune_trainer.prepare.chat_template import ChatTemplate
from finetune_trainer.prepare.members import PrintedMembers
from finetune_trainer.prepare.records import Location
from finetune_trainer.prepare.rows import Conversation

ROWS = 1000


class Counted(ChatTemplate):
    renderings = 0

    def render(self, *args: Any, **named: Any) -> str:
        self.renderings += 1
        return super().render(*args, **named)


CONTENT_OR_CALLS = (
    "{% for m in messages %}{{ m.role }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
FIRST_WORD = "{% for m in messages %}{{ m.role + (m.content if m.content.startswith('a') else '') }}{% endfor %}"


def row(answer: dict[str, Any]) -> Conversation:
    return Conversation([{"role": "user", "content": "ask"}, {"role": "assistant", **answer}])


def watch(template: ChatTemplate, answers: list[dict[str, Any]]) -> PrintedMembers:
    members = PrintedMembers(template)
    for number, answer in enumerate(answers, 1):
        members.look(row(answer), [1], Location("d", "d.jsonl", number))
    return members


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def test_rows_that_lose_a_member_are_counted_wherever_they_stand() -> None:
    template = Counted(CONTENT_OR_CALLS, {})
    answers = [{"content": "a"}, {"content": "a", "tool_calls": [CALL]}, {"content": "", "tool_calls": [CALL]}]
    members = watch(template, [answer for answer in answers for _ in range(ROWS)])
    (lost,) = members.lost().items()
    assert lost[0] == "content of assistant messages"
    assert (lost[1].rows, lost[1].lost, lost[1].first) == (2 * ROWS, ROWS, Location("d", "d.jsonl", ROWS + 1))
    assert members.lacking(is_over=True) is None
    assert members.unprinted() == {}
    assert template.renderings < 2500, "of 200 rows for each shape, and few others"


def test_where_rows_of_one_shape_differ_each_is_tried() -> None:
    members = watch(ChatTemplate(FIRST_WORD, {}), [{"content": "b" if i % 7 == 3 else "a"} for i in range(ROWS)])
    assert members.lost()["content of assistant messages"].lost == len(range(3, ROWS, 7))


def test_what_no_row_prints_is_lacking_from_the_first_row_that_has_it() -> None:
    members = watch(ChatTemplate(FIRST_WORD, {}), [{"content": "a"}, {"content": "a", "tool_calls": [CALL]}])
    lacking = ("tool_calls of assistant messages", Location("d", "d.jsonl", 2))
    assert members.lacking(is_over=True) == members.lacking(is_over=False) == lacking
    later = watch(ChatTemplate(CONTENT_OR_CALLS.replace("m.content", "''"), {}), [{"content": "a"}])
    assert later.lacking(is_over=False) is None, "another row may be printed"
    assert later.lacking(is_over=True) is not None


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def looked(template: str, rows: list[list[dict[str, Any]]], **more: Any) -> PrintedMembers:
    """Rows of one text each."""
    compiled = ChatTemplate(template, {})
    members = PrintedMembers(compiled)
    for number, messages in enumerate(rows, 1):
        example = Conversation(messages)
        text = compiled.render(messages)
        members.look(example, [len(messages) - 1], Location("d", "d.jsonl", number), [text], **more)
    return members


EACH = "{%% for m in messages %%}[{{ m.role }}: {%% set content = m.content %%}%s]{%% endfor %%}"
CUTTING = {
    "before the end of a tag": EACH % "{{ content.split('</think>')[-1] }}",
    "of another name": EACH % "{{ content.split('</plan>')[-1] | trim }}",
    "of earlier turns alone": EACH % "{{ content if loop.last else content.split('</think>')[-1] }}",
    "the tags alone": EACH % "{{ content | replace('<think>', '') | replace('</think>', '') }}",
    "what is long": EACH % "{{ content[:8] }}",
    "the last line": EACH % "{{ content.split('\n')[0] }}",
    "capitals": EACH % "{{ content | lower }}",
    "for HTML": EACH % "{{ content | e }}",
}
THOUGHTS = "<think>Hm\nor so</think>\n\nYes<plan>1, 2</plan>\ndone"


@pytest.mark.parametrize("template", CUTTING.values(), ids=CUTTING)
def test_content_that_a_template_cuts_or_changes_is_counted_whatever_it_is(template: str) -> None:
    plain = [message("user", "ask"), message("assistant", "tell")]
    thought = [message("user", "ask"), message("assistant", THOUGHTS), message("user", "more"), message("assistant", "that")]
    members = looked(template, [plain, thought, plain, thought])
    assert {role: (met.rows, met.first) for role, met in members.altered.items()} == {"assistant": (2, Location("d", "d.jsonl", 2))}
    assert members.lost() == {}


KEEPING = {
    "as it is": EACH % "{{ content }}",
    "trimmed": EACH % "{{ content | trim }}",
    "in other lines": EACH % "{{ content.split() | join('\n') }}",
    "with a thought set apart": EACH % "{{ content | replace('</think>', '\n</think>\n\n') }}",
    "as JSON": EACH % "{{ content | tojson }}",
    "as JSON in ASCII": EACH % "{{ content | tojson(ensure_ascii=True) }}",
    "the last first": "{% for m in messages | reverse %}[{{ m.content }}]{% endfor %}",
    "twice": "{% for m in messages %}[{{ m.content }}{{ m.content }}]{% endfor %}",
}


@pytest.mark.parametrize("template", KEEPING.values(), ids=KEEPING)
def test_white_space_order_and_json_take_nothing_away(template: str) -> None:
    odd = [
        message("system", ' "a"\tb\u00e4 \n\\ '),
        message("user", "ask\n\nme"),
        message("assistant", THOUGHTS),
        message("user", "x"),
        message("assistant", "y"),
    ]
    assert looked(template, [odd]).altered == {}


def test_content_that_is_left_out_as_a_whole_is_not_told_twice() -> None:
    rows = [[message("user", "ask"), message("tool", "found"), message("assistant", "tell")]]
    members = looked("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", rows)
    assert (set(members.lost()), members.altered) == ({"content of tool messages"}, {})


def test_an_answer_of_which_nothing_is_left_is_lost_content() -> None:
    cutting, asked = CUTTING["before the end of a tag"], message("user", "ask")
    members = looked(cutting, [[asked, message("assistant", "<think>Hm</think>")]], is_silent=True)
    assert members.lacking(is_over=True) == ("content of assistant messages", Location("d", "d.jsonl", 1))
    assert members.altered == {}
    members.look(Conversation([asked, message("assistant", "b")]), [1], Location("d", "d.jsonl", 2), ["[user: ask][assistant: b]"])
    assert members.lacking(is_over=True) is None
    lost = members.lost()["content of assistant messages"]
    assert (lost.rows, lost.lost, lost.first) == (2, 1, Location("d", "d.jsonl", 1))


def test_an_answer_is_looked_for_in_the_text_that_it_is_generated_in() -> None:
    """A template that drops thoughts of earlier turns has them in texts of their own, and what lies behind all texts is not trained."""
    messages = [message("user", "a"), message("assistant", "<think>b</think>c"), message("user", "d"), message("assistant", "e")]
    members = PrintedMembers(ChatTemplate(CUTTING["of earlier turns alone"], {}))
    texts = ["[user: a][assistant: <think>b</think>c]", "[user: a][assistant: c][user: d][assistant: e]"]
    members.look(Conversation(messages), [1, 3], Location("d", "d.jsonl", 1), texts)
    members.look(Conversation(messages), [1], Location("d", "d.jsonl", 2), texts[:1])
    assert members.altered == {}
    members.look(Conversation(messages), [3], Location("d", "d.jsonl", 3), texts[1:])
    assert members.altered["assistant"].first == Location("d", "d.jsonl", 3)


def test_a_long_chat_is_gone_through_once_whatever_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone_through = 0

    class Spy(str):
        def find(self, *args: Any) -> int:  # type: ignore[override]
            nonlocal gone_through
            found = str.find(self, *args)
            gone_through += (found if found >= 0 else len(self)) - (args[1] if len(args) > 1 else 0)
            return found

    monkeypatch.setattr(contents, "_without_space", lambda text: Spy("".join(text.split())))
    contents_of = [f'result "{i}" of many' for i in range(1000)]
    text = Spy("".join(f"[{json.dumps(content)}]" for content in contents_of))
    example = Conversation([message("tool", content) for content in contents_of])
    assert contents.AsWritten().altered(example, [text], [1000]) == set()
    assert gone_through < 10 * len(text)
