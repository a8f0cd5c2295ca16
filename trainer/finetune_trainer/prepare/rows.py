"""What a row of a data set means: its record in one of the formats, made into one of three examples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.sections.data import Columns, Dataset, DatasetFormat

from finetune_trainer.errors import StageError

Record = Mapping[str, Any]


class RowDropped(Exception):
    """A row that cannot be trained on; `reason` is counted in the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RowInvalid(Exception):
    """A row that is not of its format; the data set is refused. `expected` says what should be there and quotes no data."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


@dataclass(frozen=True)
class Conversation:
    """Messages of system, user, assistant and tool; assistant turns from `first_trained` on may be trained."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first_trained: int = 0


@dataclass(frozen=True)
class Pair:
    """A prompt and its completion, joined as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    text: str


Example = Conversation | Pair | Text

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "ipython",
}
"""Names of roles in Messages and ShareGPT data, as templates call them."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def clean(text: str) -> str:
    """The text without control characters (tab and line feed stay), CRLF as LF.

    Errors: RowDropped(InvalidUnicode) for a lone surrogate, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowDropped("InvalidUnicode") from error
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def content_hash(example: Example) -> bytes:
    """128 bits that name an example's content, the same in every data set. Errors: RowDropped(InvalidUnicode)."""
    if isinstance(example, Conversation):
        value: list[Any] = ["conversation", example.messages, example.tools, example.first_trained]
    elif isinstance(example, Pair):
        value = ["pair", example.prompt, example.completion]
    else:
        value = ["text", example.text]
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    try:
        return hashlib.blake2b(canonical.encode(), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise RowDropped("InvalidUnicode") from error


class RowReader:
    """Reads the records of one data set. The format is told once, from the first record, and holds for all."""

    def __init__(self, dataset: Dataset, has_template: bool) -> None:
        self._dataset = dataset
        self._columns = dataset.columns
        self._has_template = has_template
        self.format = dataset.format

    def read(self, record: Record) -> Example:
        """Errors: RowDropped, RowInvalid; StageError(NoChatTemplate)."""
        if self.format is DatasetFormat.AUTO:
            self.format = detect_format(record, self._columns)
        return _READERS[self.format](self, record)

    def _value(self, record: Record, own: str | None, default: str) -> Any:
        column = own or default
        if column not in record:
            raise RowInvalid(f"a column {column!r} (format {self.format}); name it in columns, or set another format")
        return record[column]

    def _text(self, record: Record, own: str | None, default: str) -> str:
        return _text_of(self._value(record, own, default), own or default)

    def _system(self, record: Record) -> str | None:
        column = self._columns.system or "system"
        if column not in record:
            if self._columns.system:
                raise RowInvalid(f"a column {column!r}; name the right one in columns.system")
            return self._dataset.system_message
        value = record[column]
        return (_text_of(value, column) if value is not None else "") or self._dataset.system_message

    def _conversation(self, messages: list[dict[str, Any]], record: Record, first_trained: int = 0) -> Conversation:
        if not self._has_template:
            raise StageError(
                Reason.NO_CHAT_TEMPLATE,
                f"data set {self._dataset.name} holds conversations and the model has no chat template; "
                "set model.chatTemplate (type Named, named ChatML, where the tokenizer has its tokens)",
            )
        system = self._system(record)
        if system and messages and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": system}, *messages]
            first_trained += 1 if first_trained else 0
        _check_order(messages)
        return Conversation(messages, _tools(record), first_trained)

    def _messages(self, record: Record) -> Example:
        listed = self._value(record, self._columns.messages, "messages")
        return self._conversation(read_messages(listed, "role", "content"), record)

    def _sharegpt(self, record: Record) -> Example:
        listed = self._value(record, self._columns.conversations, "conversations")
        first = listed[0] if isinstance(listed, list) and listed else {}
        names = ("role", "content") if isinstance(first, dict) and "role" in first else ("from", "value")
        return self._conversation(read_messages(listed, *names), record)

    def _alpaca(self, record: Record) -> Example:
        instruction = self._text(record, self._columns.instruction, "instruction")
        more = record.get(self._columns.input or "input")
        answer = self._text(record, self._columns.output, "output")
        extra = _text_of(more, "input") if more is not None else ""
        _require_content(instruction, answer)
        question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
        return self._conversation(_turn(question, answer), record)

    def _prompt_completion(self, record: Record) -> Example:
        prompt = self._value(record, self._columns.prompt, "prompt")
        completion = self._value(record, self._columns.completion, "completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            asked = read_messages(prompt, "role", "content")
            return self._conversation(asked + read_messages(completion, "role", "content"), record, first_trained=len(asked))
        prompt, completion = _text_of(prompt, "prompt"), _text_of(completion, "completion")
        _require_content(prompt, completion)
        if self._has_template:
            return self._conversation(_turn(prompt, completion), record)
        return Pair(prompt, completion)

    def _plain(self, record: Record) -> Example:
        text = self._text(record, self._columns.text, "text")
        _require_content(text)
        return Text(text)


_READERS: dict[DatasetFormat, Callable[[RowReader, Record], Example]] = {
    DatasetFormat.MESSAGES: RowReader._messages,
    DatasetFormat.SHAREGPT: RowReader._sharegpt,
    DatasetFormat.ALPACA: RowReader._alpaca,
    DatasetFormat.PROMPT_COMPLETION: RowReader._prompt_completion,
    DatasetFormat.TEXT: RowReader._plain,
}


def detect_format(record: Record, columns: Columns) -> DatasetFormat:
    """The format that a record's columns tell. Errors: RowInvalid where they tell none."""
    needed = {
        DatasetFormat.MESSAGES: [columns.messages or "messages"],
        DatasetFormat.SHAREGPT: [columns.conversations or "conversations"],
        DatasetFormat.PROMPT_COMPLETION: [columns.prompt or "prompt", columns.completion or "completion"],
        DatasetFormat.ALPACA: [columns.instruction or "instruction", columns.output or "output"],
        DatasetFormat.TEXT: [columns.text or "text"],
    }
    for format, names in needed.items():
        if all(name in record for name in names):
            return format
    raise RowInvalid(
        "columns of one format: messages (Messages), conversations (ShareGPT), prompt and completion (PromptCompletion), "
        "instruction and output (Alpaca) or text (Text); set format and columns"
    )


def read_messages(listed: Any, role_name: str, content_name: str) -> list[dict[str, Any]]:
    """Messages with the roles that templates know and cleaned texts; empty system messages are left out."""
    if listed is None:
        raise RowDropped("EmptyField")
    if not isinstance(listed, list):
        raise RowInvalid(f"a list of messages, each with {role_name!r} and {content_name!r}")
    messages = [_message(item, role_name, content_name) for item in listed]
    if not messages:
        raise RowDropped("EmptyField")
    return [message for message in messages if message["role"] != "system" or message["content"]]


def _message(item: Any, role_name: str, content_name: str) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get(role_name), str):
        raise RowInvalid(f"messages that are objects with {role_name!r} and {content_name!r}")
    role = _ROLES.get(item[role_name].lower())
    if role is None:
        raise RowDropped("UnknownRole")
    content = item.get(content_name)
    if isinstance(content, list):
        content = _joined_parts(content)
    text = _text_of(content, content_name) if content is not None else ""
    extra = {name: value for name, value in item.items() if name not in (role_name, content_name) and value is not None}
    if not text.strip() and role != "system" and not extra.get("tool_calls"):
        raise RowDropped("EmptyField")
    return {"role": role, "content": text, **extra}


def _joined_parts(parts: list[Any]) -> str:
    """The text of content given in parts, as multimodal data writes it. Errors: RowDropped(NotText)."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RowDropped("NotText")
    return "".join(part["text"] for part in parts)


def _text_of(value: Any, column: str) -> str:
    if value is None:
        raise RowDropped("EmptyField")
    if not isinstance(value, str):
        raise RowInvalid(f"text in {column!r}")
    return clean(value)


def _require_content(*texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise RowDropped("EmptyField")


def _turn(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _tools(record: Record) -> list[Any] | None:
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RowInvalid("a list of JSON schemas in 'tools'") from error
    return tools if isinstance(tools, list) and tools else None


def _check_order(messages: list[dict[str, Any]]) -> None:
    """A conversation starts with at most one system message, alternates, and ends with an answer."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowDropped("NoAnswer")
    spoken = roles[1:] if roles[0] in ("system", "developer") else roles
    if not spoken or spoken[0] != "user" or "system" in spoken or "developer" in spoken:
        raise RowDropped("RoleOrder")
    if any(first == second for first, second in pairwise(spoken) if first in ("user", "assistant")):
        raise RowDropped("RoleOrder")
    if spoken[-1] != "assistant":
        raise RowDropped("EndsWithoutAnswer")
