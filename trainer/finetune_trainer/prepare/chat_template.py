"""Chat templates: rendered as transformers renders them, byte for byte, and never trusted.

Source: https://huggingface.co/docs/transformers/chat_templating_writing (what a template may use); tests/trainer compares.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
    """The template itself refused a conversation (`raise_exception`) or cannot render it. Its words may quote the data: never shown."""


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
    """A compiled template with its special tokens. `render` is pure but for the date, which is taken once."""

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        self.text = text
        self._special_tokens = dict(special_tokens)
        environment = _environment(stage_time())
        _refuse_hostile(text, environment)
        self._template = environment.from_string(text)

    @property
    def shows_the_date(self) -> bool:
        return "strftime_now" in self.text

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, add_generation_prompt: bool = False) -> str:
        """The conversation as text. Errors: TemplateRefusedRow; StageError(HostileTemplate) for a step out of the sandbox."""
        try:
            return self._template.render(
                messages=[_as_templates_expect(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except SecurityError as error:
            raise _hostile("it reaches for what the sandbox forbids") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError, OverflowError) as error:
            raise TemplateRefusedRow from error


def _as_templates_expect(message: Message) -> dict[str, Any]:
    """Absent instead of null members, and reasoning under each of its names: what transformers hands to a template."""
    present = {name: value for name, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING_NAMES if name in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _hostile(why: str) -> StageError:
    return StageError(Reason.HOSTILE_TEMPLATE, f"the chat template was refused: {why}; use a template you trust")


def _refuse_hostile(text: str, environment: ImmutableSandboxedEnvironment) -> None:
    """Refuses what no chat template needs, whether or not a rendering would get there.

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
    reached += [str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    if any(name.startswith("__") and name.endswith("__") for name in reached):
        raise _hostile("it reaches for Python internals")


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
