"""Where answers stand in a rendered conversation: the same places whichever way they are found, in time that grows with the turns."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.prepare.chat_template import ChatTemplate
from finetune_trainer.prepare.turns import Chain, find_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat_templates import FAMILIES

Messages = list[dict[str, Any]]


class Counted(ChatTemplate):
    renderings = 0

    def render(self, *args: Any, **named: Any) -> str:
        self.renderings += 1
        return super().render(*args, **named)


def template_of(family: str) -> Counted:
    return Counted(FAMILIES[family].text, FAMILIES[family].special)


def end_of(family: str) -> Any:
    """After the first end token of the tail; these texts hold none elsewhere."""
    end = FAMILIES[family].end

    def find(text: str, start: int) -> int:
        found = text.find(end, start)
        return found + len(end) if found >= 0 else len(text)

    return find


def one_by_one(family: str, messages: Messages, turns: list[int]) -> list[str]:
    """Each answer as it is generated: what follows the generation prompt, up to its end."""
    template, find = template_of(family), end_of(family)
    answers = []
    for turn in turns:
        asked = template.render(messages[:turn], add_generation_prompt=True)
        answered = template.render(messages[: turn + 1])
        answers.append(answered[: find(answered, len(asked))])
    return answers


def answered(chains: list[Chain]) -> list[str]:
    return [chain.text[:end] for chain in chains for _, (_, end) in chain.answers]


def talk(contents: list[str], system: str | None = None, **answer: Any) -> Messages:
    messages: Messages = [{"role": "system", "content": system}] if system else []
    for question, reply in zip(contents[::2], contents[1::2], strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply, **answer}]
    return messages


TEXTS = st.text(st.sampled_from("ab \n.<|>"), min_size=1, max_size=6).filter(str.strip)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    contents=st.lists(TEXTS, min_size=1, max_size=8),
    has_system=st.booleans(),
    reasoning=st.sets(st.integers(0, 15)),
    first=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_answers_stand_where_a_server_would_have_put_them(
    family: str, contents: list[str], has_system: bool, reasoning: set[int], first: int
) -> None:
    messages = talk([*contents, *contents], "be kind" if has_system and FAMILIES[family].takes_system else None)
    for position in reasoning:
        if position < len(messages) and messages[position]["role"] == "assistant":
            messages[position]["reasoning_content"] = "hm"
    turns = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    turns = turns[min(first, len(turns) - 1) :]
    chains = find_answers(template_of(family), messages, None, turns, end_of(family))
    assert [turn for chain in chains for turn, _ in chain.answers] == turns
    assert answered(chains) == one_by_one(family, messages, turns)


def numbered(turns: int) -> list[str]:
    return [f"{kind} {i}" for i in range(turns) for kind in "qa"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "reasoning kept in the last turn only"])
def test_a_long_chat_is_one_text_and_rendered_a_few_times(family: str) -> None:
    template, messages = template_of(family), talk(numbered(400))
    (chain,) = find_answers(template, messages, None, list(range(1, 800, 2)), end_of(family))
    assert len(chain.answers) == 400
    assert template.renderings <= 10


CALLING = Counted(
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for t in m.tool_calls or [] %}{{ '\n<call>' + t.function.name + ' ' }}{{ t.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    {},
)


def calling(turns: int, **more: Any) -> Messages:
    """A long chat in which each answer is a call with arguments of its own, and an answer about its result."""
    messages: Messages = []
    for i in range(turns):
        call = {"type": "function", "function": {"name": f"f{i % 7}", "arguments": {f"place {i}": [i, {"deep": f"x{i}"}]}}}
        messages += [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "", "tool_calls": [call], **more}]
        messages += [{"role": "tool", "content": f"found {i}"}, {"role": "assistant", "content": f"a {i}"}]
    return messages


@pytest.mark.parametrize("content", ["", "let me see"])
def test_a_long_chat_of_calls_is_rendered_a_few_times_whatever_they_are_called_with(content: str) -> None:
    CALLING.renderings, messages, find = 0, calling(200, content=content), end_of("chatml")
    turns = list(range(1, 800, 2))
    (chain,) = find_answers(CALLING, messages, None, turns, find)
    assert CALLING.renderings <= 10
    for turn, (start, end) in chain.answers[::37]:
        asked = CALLING.render(messages[:turn], add_generation_prompt=True)
        answered = CALLING.render(messages[: turn + 1])
        assert (chain.text[:start], chain.text[start:end]) == (asked, answered[len(asked) :].removesuffix("\n"))


def unlike(turns: int) -> Messages:
    """Calls and their results with ids and names of their own each."""
    messages = calling(turns)
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            message |= {"tool_call_id": f"call_{i * 7919 % 10007:05}", "name": f"tool {i * 31 % 101}"}
        elif message.get("tool_calls"):
            message["tool_calls"] = [{**message["tool_calls"][0], "id": f"call_{(i + 1) * 7919 % 10007:05}"}]
        elif message["role"] == "user":
            message["name"] = f"Ann {i}"
    return messages


HEADERS = {
    "ids of calls": "{{ ' ' + m.tool_call_id if m.tool_call_id }}",
    "ids and names, one of them twice": "{{ ' ' + m.name + ' (' + m.tool_call_id + ',' + m.tool_call_id + ')' if m.tool_call_id }}",
    "names of people": "{{ ' name=' + m.name if m.name }}",
    "numbers of messages": "{{ ' ' ~ loop.index }}",
    "numbers of messages from 0": "{{ ' [' ~ loop.index0 ~ ']' }}",
    "numbers of rounds": "{{ ' round ' ~ (loop.index0 // 2 + 1) }}",
}


@pytest.mark.parametrize("place", ["before content", "after content"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_long_chat_is_rendered_a_few_times_though_each_turn_prints_something_of_its_own(header: str, place: str) -> None:
    where = "{{ '<|im_start|>' + m.role }}" if place == "before content" else "{{ '\n' + m.content }}"
    asked = f"{{% if m.role != 'assistant' %}}{header}{{% endif %}}"  # what an answer is asked with is what it begins with
    template, messages = Counted(CALLING.text.replace(where, where + asked), {}), unlike(200)
    assert header in template.text
    turns = list(range(1, 800, 2))
    (chain,) = find_answers(template, messages, None, turns, end_of("chatml"))
    assert template.renderings <= 60, "a few until it is known what is whose, and not two for each answer"
    assert [turn for turn, _ in chain.answers] == turns
    for turn, (start, end) in chain.answers[::37]:
        asked = template.render(messages[:turn], add_generation_prompt=True)
        answered = template.render(messages[: turn + 1])
        assert (chain.text[:start], chain.text[start:end]) == (asked, answered[len(asked) :].removesuffix("\n"))


def test_reasoning_that_is_dropped_later_is_found_among_answers_without() -> None:
    """They look the same in the whole conversation."""
    dropping = FAMILIES["reasoning kept in the last turn only"].text.replace(
        "<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + m.content",
        "' + ('<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '') + m.content",
    )
    messages = talk(numbered(6))
    messages[5]["reasoning_content"] = messages[9]["reasoning_content"] = "hm"
    chains = find_answers(ChatTemplate(dropping, {}), messages, None, list(range(1, 12, 2)), end_of("chatml"))
    found = {turn: chain.text[start:end] for chain in chains for turn, (start, end) in chain.answers}
    assert found[3] == "a 1<|im_end|>"
    assert found[5] == "<think>hm</think>a 2<|im_end|>"
    assert found[9] == "<think>hm</think>a 4<|im_end|>"


def test_only_what_is_rewritten_takes_a_text_of_its_own() -> None:
    """Answers between two questions of a user, calls of tools for instance, stand in one text."""
    messages = talk(numbered(2), reasoning_content="hm")
    messages[2:2] = [{"role": "tool", "content": "12"}, {"role": "assistant", "content": "so 12", "reasoning_content": "seen"}]
    family = "reasoning kept in the last turn only"
    chains = find_answers(template_of(family), messages, None, [1, 3, 5], end_of(family))
    assert [[turn for turn, _ in chain.answers] for chain in chains] == [[1, 3], [5]]
    assert answered(chains) == one_by_one(family, messages, [1, 3, 5])


def test_answers_far_behind_what_a_row_holds_are_not_looked_for() -> None:
    """Each would be a text of its own, as long as the conversation."""
    family = "reasoning kept in the last turn only"
    template, messages = template_of(family), talk(numbered(200), reasoning_content="hm")
    chains = find_answers(template, messages, None, list(range(1, 400, 2)), end_of(family), longest=500)
    assert 3 < len(chains) < 20
    assert template.renderings < 50
