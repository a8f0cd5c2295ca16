"""What of conversations a chat template leaves out, in how many rows, and found by a few renderings."""

from __future__ import annotations

from typing import Any

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
