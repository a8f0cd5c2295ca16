"""Chat templates: what they can do, and what hostile ones get. Equality with transformers is shown in tests/trainer."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.prepare.chat_template import CHATML, ChatTemplate, TemplateRefusedRow, probe_template

ASKED = [{"role": "user", "content": "ask <b> é"}]


def test_chatml() -> None:
    template = ChatTemplate(CHATML, {})
    rendered = template.render([*ASKED, {"role": "assistant", "content": "answer"}])
    assert rendered == "<|im_start|>user\nask <b> é<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
    assert template.render(ASKED, add_generation_prompt=True).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_special_tokens_are_there_by_name() -> None:
    assert (
        ChatTemplate("{{ bos_token }}{{ eos_token }}{{ pad_token }}", {"bos_token": "<s>", "eos_token": "</s>"}).render(ASKED) == "<s></s>"
    )


def test_blocks_are_trimmed_as_transformers_does() -> None:
    assert ChatTemplate("  {% if true %}\nx\n  {% endif %}\ny", {}).render(ASKED) == "x\ny"


def test_json_is_not_escaped_for_html() -> None:
    assert ChatTemplate("{{ messages[0] | tojson }}", {}).render(ASKED) == '{"role": "user", "content": "ask <b> é"}'


def test_absent_members_are_absent_and_reasoning_has_each_of_its_names() -> None:
    template = ChatTemplate("{{ messages[0] | tojson(sort_keys=true) }}", {})
    rendered = template.render([{"role": "assistant", "content": "a", "tool_calls": None, "reasoning": "r"}])
    assert rendered == '{"content": "a", "reasoning": "r", "reasoning_content": "r", "role": "assistant", "thinking": "r"}'


def test_the_date_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    assert template.shows_the_date
    assert template.render(ASKED) == "1970-01-02"
    assert not ChatTemplate(CHATML, {}).shows_the_date


def test_a_template_may_refuse_a_conversation_and_its_words_stay_inside() -> None:
    template = ChatTemplate("{{ raise_exception('no ' ~ messages[0].content) }}", {})
    with pytest.raises(TemplateRefusedRow) as refused:
        template.render(ASKED)
    assert "ask" not in str(refused.value)


HOSTILE = {
    "class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by subscript": "{{ ''['__class__'] }}",
    "by filter": "{{ '' | attr('__class__') }}",
    "only for long chats": "{% if messages | length > 99 %}{{ cycler.__init__.__globals__.os.popen('id').read() }}{% endif %}",
    "through a namespace": "{% set n = namespace(__class__=1) %}",
    "another template": "{% include 'secrets.txt' %}",
    "an import": "{% import 'os' as os %}",
    "inheritance": "{% extends 'base' %}",
    "very long": "x" * 1_000_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_before_it_renders(name: str) -> None:
    with pytest.raises(StageError) as refused:
        ChatTemplate(HOSTILE[name], {})
    assert refused.value.reason == "HostileTemplate"


SANDBOXED = {
    "changing a list": "{{ messages.append(1) }}",
    "built names": "{% set u = '_' %}{{ (messages | attr(u ~ u ~ 'class' ~ u ~ u)).mro() }}",
    "format strings": "{{ '{0.__class__.mro}'.format(messages)() }}",
    "a private name on a namespace": "{% set n = namespace() %}{% set n._x = 1 %}",
}


@pytest.mark.parametrize("name", SANDBOXED)
def test_what_gets_past_the_eye_stops_at_the_sandbox(name: str) -> None:
    with pytest.raises((StageError, TemplateRefusedRow)) as refused:
        ChatTemplate(SANDBOXED[name], {}).render(ASKED)
    if isinstance(refused.value, StageError):
        assert refused.value.reason == "HostileTemplate"


def test_a_template_that_does_not_parse_names_the_line() -> None:
    with pytest.raises(StageError, match=r"line 2") as refused:
        ChatTemplate("a\n{% if %}", {})
    assert refused.value.reason == "InvalidTemplate"


BOMBS = {
    "repetition": "{{ ('x' * 9999999999) * 9 }}",
    "power": "{{ 9 ** 999999999 }}",
    "repetition in a condition": "{% if 9999999999 * [1] %}{% endif %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_repetitions_and_powers_are_bounded(name: str) -> None:
    with pytest.raises(StageError) as refused:
        ChatTemplate(BOMBS[name], {}).render(ASKED)
    assert refused.value.reason == "HostileTemplate"


def test_ordinary_arithmetic_is_as_it_was() -> None:
    assert ChatTemplate("{{ 2 * 3 }} {{ '-' * 3 }} {{ 2 ** 10 }} {{ none }} {{ [1, 'a'] }}", {}).render(ASKED) == "6 --- 1024 None [1, 'a']"


def test_a_memory_bomb_goes_off_in_a_process_of_its_own() -> None:
    bomb = "{{ 'x' | center(9999999999) }}"
    ChatTemplate(bomb, {})  # compiling it is harmless
    with pytest.raises(StageError) as refused:
        probe_template(bomb, {})
    assert refused.value.reason == "HostileTemplate"


def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.prepare import chat_template

    monkeypatch.setattr(chat_template, "PROBE_CPU_SECONDS", 0.1)  # the waiting side; ten times this
    with pytest.raises(StageError) as refused:
        probe_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {})
    assert refused.value.reason == "HostileTemplate"


def test_a_good_template_passes_the_probe() -> None:
    probe_template(CHATML, {})
