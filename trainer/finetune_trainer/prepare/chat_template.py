"""Chat templates: rendered as transformers renders them, byte for byte, and never trusted.

Source: https://huggingface.co/docs/transformers/chat_templating_writing (what a template may use); tests/trainer compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from finetune_api.outcome import Reason
from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from finetune_trainer.errors import StageError

Message = Mapping[str, Any]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Source: https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md"""

NAMED_TEMPLATES = {"ChatML": CHATML}

_MAX_TEMPLATE_CHARS = 1_000_000
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class TemplateRefusedRow(Exception):
    """The template itself refused a conversation (`raise_exception`) or cannot render it.

    `words`: the template's own where they stand in its text as they are; others may quote the data and are never shown.
    """

    def __init__(self, words: str | None = None) -> None:
        super().__init__(words)
        self.words = words


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` renders its body: where answers are is found by rendering turn by turn instead."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block call like transformers' own, so that variables set inside stay inside there too.
        return nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Any) -> Any:
        return caller()


class _GuardedNamespace(Namespace):
    """A namespace that takes no private names, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a chat template may not set private attributes")


class _DictMaker:
    """`dict(…)` for templates, without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


_LONGEST_REPETITION = 10_000_000
_LARGEST_EXPONENT = 1_000


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which neither a repetition nor a power can fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > _LARGEST_EXPONENT:
            raise SecurityError("a power too large")
        for repeated, times in ((left, right), (right, left)):
            is_repetition = operator == "*" and isinstance(repeated, str | list | tuple) and isinstance(times, int)
            if is_repetition and len(repeated) * times > _LONGEST_REPETITION:
                raise SecurityError("a repetition too long")
        return super().call_binop(context, operator, left, right)


@pass_context
def _as_it_is(context: Context, value: Any) -> Any:
    """What an expression prints. Being told the context, it cannot run at compile time, so constants are not folded there: a bomb
    would go off before anything is rendered."""
    return value


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    environment = _BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_as_it_is, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
        "dict": _DictMaker(),
        "namespace": _GuardedNamespace,
    }
    return environment


def stage_time() -> datetime:
    """The time that templates see: SOURCE_DATE_EPOCH where set (a reproducible build), else now, local like transformers'."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now()


class ChatTemplate:
    """A compiled template with its special tokens. `render` is pure but for the date, which is taken once.

    `tool_use`: the text that stands for it wherever there are tools, as in transformers and llama.cpp.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str], tool_use: str | None = None) -> None:
        self.text = text
        self.tool_use = tool_use
        self._special_tokens = dict(special_tokens)
        environment = _environment(stage_time())
        self._own_words: set[str] = set()
        for part in (text, tool_use or ""):
            self._own_words |= _refuse_hostile(part, environment)
        self._template = environment.from_string(text)
        self._with_tools = environment.from_string(tool_use) if tool_use is not None else self._template

    @property
    def shows_the_date(self) -> bool:
        return "strftime_now" in self.text + (self.tool_use or "")

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, add_generation_prompt: bool = False) -> str:
        """The conversation as text. Errors: TemplateRefusedRow; StageError(HostileTemplate) for a step out of the sandbox."""
        as_text = any("tool_calls" in message for message in messages) and self.takes_arguments_as_text
        return self._rendered([_as_templates_expect(message, as_text) for message in messages], tools, add_generation_prompt)

    def _rendered(self, messages: list[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        template = self._with_tools if tools else self._template
        try:
            text = template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
            text.encode()  # an escape in the template may print half a surrogate pair, which no tokenizer takes
            return text
        except SecurityError as error:
            raise _hostile("it reaches for what the sandbox forbids") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError, OverflowError) as error:
            words = str(error) if isinstance(error, TemplateError) else ""
            raise TemplateRefusedRow(words if words in self._own_words else None) from error

    @cached_property
    def prints_tool_calls(self) -> bool:
        """Whether the call of a tool leaves a trace in the text. A template that refuses every such conversation is asked row by row."""
        texts = [text for as_text in (False, True) for text in self._probed_calls(as_text)]
        return not texts or any(_PROBE_CALL in text for text in texts)

    @cached_property
    def takes_arguments_as_text(self) -> bool:
        """Whether a call's arguments are printed as JSON only when they come as JSON text, and not as an object."""
        as_object, as_text = (any(_prints_arguments(text) for text in self._probed_calls(as_text)) for as_text in (False, True))
        return as_text and not as_object

    def _probed_calls(self, as_text: bool) -> list[str]:
        """A conversation with a call, with the tool told and without; those that the template refuses are left out."""
        texts = []
        for tools in ([_PROBE_TOOL], None):
            with contextlib.suppress(TemplateRefusedRow):
                texts.append(self._rendered([_as_templates_expect(message, as_text) for message in _PROBE_CALLED], tools, False))
        return texts


_PROBE_CALL, _PROBE_ARGUMENT = "look_for_it", "needle"
_PROBE_CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": _PROBE_CALL, "arguments": {_PROBE_ARGUMENT: "hay"}}}],
    },
]
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "another", "description": "", "parameters": {"type": "object", "properties": {}, "required": []}},
}


def _prints_arguments(text: str) -> bool:
    """Whether the probe's arguments stand there as themselves: neither as JSON within JSON nor as Python prints a dictionary."""
    return _PROBE_ARGUMENT in text and f'\\"{_PROBE_ARGUMENT}' not in text and f"{{'{_PROBE_ARGUMENT}'" not in text


def _as_templates_expect(message: Message, arguments_as_text: bool = False) -> dict[str, Any]:
    """Absent instead of null members, and reasoning under each of its names: what transformers hands to a template."""
    present = {name: value for name, value in message.items() if value is not None}
    if arguments_as_text and "tool_calls" in present:
        present["tool_calls"] = [_with_text_arguments(call) for call in present["tool_calls"]]
    reasoning = next((present[name] for name in _REASONING_NAMES if name in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _hostile(why: str) -> StageError:
    return StageError(Reason.HOSTILE_TEMPLATE, f"the chat template was refused: {why}; use a template you trust")


def _refuse_hostile(text: str, environment: ImmutableSandboxedEnvironment) -> set[str]:
    """Refuses what no chat template needs, whether or not a rendering would get there. The strings that stand in the template.

    Errors: StageError(HostileTemplate | InvalidTemplate).
    """
    if len(text) > _MAX_TEMPLATE_CHARS:
        raise _hostile("it is longer than a million characters")
    try:
        tree = environment.parse(text)
    except TemplateSyntaxError as error:
        raise StageError(Reason.INVALID_TEMPLATE, f"the chat template does not parse (line {error.lineno}): {error.message}") from error
    except RecursionError as error:
        raise _hostile("it nests too deep") from error
    if any(True for _ in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
        raise _hostile("it loads other templates")
    reached = [node.attr for node in tree.find_all(nodes.Getattr)]
    reached += [node.key for node in tree.find_all(nodes.Keyword)] + [node.attr for node in tree.find_all(nodes.NSRef)]
    constants = {str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    if any(name.startswith("__") and name.endswith("__") for name in (*reached, *constants)):
        raise _hostile("it reaches for Python internals")
    return constants


PROBE_CPU_SECONDS = 10
PROBE_MEMORY_BYTES = 2 << 30
_PROBE_MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def probe_template(text: str, special_tokens: Mapping[str, str]) -> None:
    """Renders one conversation in a process with little time and memory, so that a bomb goes off there.

    Errors: StageError(HostileTemplate). A template that merely refuses the conversation passes: rows are judged one by one.
    """
    import subprocess

    request = json.dumps({"text": text, "tokens": dict(special_tokens)})
    command = [sys.executable, "-m", "finetune_trainer.prepare.chat_template"]
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=10 * PROBE_CPU_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _hostile("rendering two short messages does not end") from error
    if done.returncode != 0:
        raise _hostile(f"rendering two short messages takes more than {PROBE_CPU_SECONDS} s or {PROBE_MEMORY_BYTES >> 30} GiB")


def _probe() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (PROBE_CPU_SECONDS, PROBE_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (PROBE_MEMORY_BYTES, PROBE_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    try:
        template = ChatTemplate(request["text"], request["tokens"])
    except StageError:
        return  # judged by the caller, in words of its own
    for add_generation_prompt in (False, True):
        try:
            template.render(_PROBE_MESSAGES, add_generation_prompt=add_generation_prompt)
        except MemoryError:
            sys.exit(1)
        except (TemplateRefusedRow, StageError):
            continue


if __name__ == "__main__":
    _probe()
