"""What a row of a data set means: its record in one of the formats, made into one of three examples."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.sections.data import Columns, Dataset, DatasetFormat

from finetune_trainer.errors import StageError
from finetune_trainer.prepare import json_text
from finetune_trainer.prepare.chat_template import ChatTemplate

Record = Mapping[str, Any]


class RowDropped(Exception):
    """A row that cannot be trained on; `reason` is counted in the report. `words`: more of it, which quote no data."""

    def __init__(self, reason: str, words: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.words = words


class RowInvalid(Exception):
    """A row that is not of its format; the data set is refused. `expected` says what should be there and quotes no data."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


@dataclass(frozen=True)
class Conversation:
    """Messages of system, user, assistant and tool; assistant turns from `first_trained` on may be trained, those of `untrained` are
    context whatever the loss."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first_trained: int = 0
    untrained: frozenset[int] = frozenset()


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
    """128 bits that name an example's content, the same in every data set; white space around a text does not count.

    Errors: RowDropped(InvalidUnicode).
    """
    if isinstance(example, Conversation):
        messages = [{**message, "content": str(message["content"]).strip()} for message in example.messages]
        value: list[Any] = ["conversation", messages, example.tools, example.first_trained, sorted(example.untrained)]
    elif isinstance(example, Pair):
        value = ["pair", example.prompt.strip(), example.completion.strip()]
    else:
        value = ["text", example.text.strip()]
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    try:
        return hashlib.blake2b(canonical.encode(), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise RowDropped("InvalidUnicode") from error


_COLUMNS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages", "system"),
    DatasetFormat.SHAREGPT: ("conversations", "system"),
    DatasetFormat.ALPACA: ("instruction", "input", "output", "history", "system"),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion", "system"),
    DatasetFormat.TEXT: ("text",),
}
"""What each format reads, by the names of `Columns`, which are the columns' own names where none is mapped."""
_KEPT_NAMES = 64


class RowReader:
    """Reads the records of one data set. The format is told once, from the first record, and holds for all.

    `unread`: columns with values that nothing reads; `notes`: what else is not read, as sentences, with the number of rows; `cleaned`: rows
    that lost control characters.
    """

    def __init__(self, dataset: Dataset, template: ChatTemplate | None) -> None:
        self._dataset = dataset
        self._template = template
        self._mapped = {name: str(column) for name, column in dataset.columns if column}
        self._found: set[str] = set()
        self.format = dataset.format
        self.unread: set[str] = set()
        self.notes: Counter[str] = Counter()
        self.cleaned = 0

    def read(self, record: Record) -> Example:
        """Errors: RowDropped, RowInvalid; StageError(NoChatTemplate)."""
        if self.format is DatasetFormat.AUTO:
            self.format = detect_format(record, self._dataset.columns)
        return _READERS[self.format](self, self._used(record))

    def never_found(self) -> str | None:
        """A column that `columns` names and no row has, in words."""
        missing = next((name for name in self._mapped if name not in self._found), None)
        if missing is None:
            return None
        others = f"; columns that are not read: {', '.join(sorted(self.unread))}" if self.unread else ""
        return f"columns.{missing}: no row has a column {self._mapped[missing]!r}; name the right one, or remove it{others}"

    def _column(self, name: str) -> str:
        return self._mapped.get(name, name)

    def _used(self, record: Record) -> dict[str, Any]:
        """What the format reads of a record, by the names of `Columns`, without control characters."""
        names = _COLUMNS[self.format]
        other = next((name for name in self._mapped if name not in names), None)
        if other is not None:
            raise RowInvalid(f"rows of format {self.format}, which has no columns.{other}; remove it, or set another format")
        columns = {name: self._column(name) for name in names}
        if self.format is not DatasetFormat.TEXT:
            columns["tools"] = "tools"
        used = {name: record[column] for name, column in columns.items() if column in record}
        self._found.update(name for name in used if name in self._mapped)
        self._note_unread(record, set(columns.values()))
        cleaner = _Cleaner()
        cleaned: dict[str, Any] = cleaner.clean(used)
        self.cleaned += cleaner.changed
        return cleaned

    def _note_unread(self, record: Record, read: set[str]) -> None:
        self._tell_unread(name for name in _given(record) if name not in read)

    def _tell_unread(self, names: Iterable[str]) -> None:
        if len(self.unread) < _KEPT_NAMES:
            self.unread.update(names)

    def _value(self, used: Record, name: str) -> Any:
        if name not in used:
            raise RowInvalid(f"a column {self._column(name)!r} (format {self.format}); name it in columns, or set another format")
        return used[name]

    def _text(self, used: Record, name: str) -> str:
        return _text_of(self._value(used, name), self._column(name))

    def _optional_text(self, used: Record, name: str) -> str:
        value = used.get(name)
        return _text_of(value, self._column(name)) if value is not None else ""

    def _system(self, used: Record) -> str | None:
        if "system" in self._mapped and "system" not in used:
            raise RowInvalid(f"a column {self._column('system')!r}; name the right one in columns.system")
        return self._optional_text(used, "system") or self._dataset.system_message

    def _conversation(self, messages: list[dict[str, Any]], used: Record, first_trained: int = 0) -> Conversation:
        if self._template is None:
            raise StageError(
                Reason.NO_CHAT_TEMPLATE,
                f"data set {self._dataset.name} holds conversations and the model has no chat template; "
                "set model.chatTemplate (type Named, named ChatML, where the tokenizer has its tokens)",
            )
        system = self._system(used)
        if messages and messages[0]["role"] in ("system", "developer"):
            self._note_other_system(used, messages[0]["content"])
        elif system and messages:
            messages = [{"role": "system", "content": system}, *messages]
            first_trained += 1 if first_trained else 0
        _check_order(messages)
        untrained = frozenset(position for position, message in enumerate(messages) if not _is_trained(message))
        self.notes[_WEIGHED_QUESTIONS] += any(_is_weighed_in_vain(message) for message in messages)
        shown = [{name: value for name, value in message.items() if name not in _WEIGHTS} for message in messages]
        tools, lost = read_tools(used.get("tools"))
        self._tell_unread(lost)
        return Conversation(shown, tools, first_trained, untrained)

    def _note_other_system(self, used: Record, said: str) -> None:
        """The system message that stands in a conversation is kept; a column with another is of no use there."""
        column = self._optional_text(used, "system").strip()
        words = (
            f"the column {self._column('system')!r} is not read, as the conversation begins with another system message; keep one of them"
        )
        self.notes[words] += bool(column) and column != said.strip()

    def _read_messages(self, used: Record, name: str, members: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
        calls_as_text = self._template is not None and not self._template.prints_tool_calls
        messages = MessageReader(members, calls_as_text)
        read = messages.read(self._value(used, name))
        self._tell_unread(f"{self._column(name)}.{member}" for member in messages.unread)
        return read

    def _messages(self, used: Record) -> Example:
        return self._conversation(self._read_messages(used, "messages"), used)

    def _sharegpt(self, used: Record) -> Example:
        listed = self._value(used, "conversations")
        first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
        members = ("from", "value") if "role" not in first or {"from", "value"} <= first.keys() else ("role", "content")
        return self._conversation(self._read_messages(used, "conversations", members), used)

    def _alpaca(self, used: Record) -> Example:
        instruction, answer = self._text(used, "instruction"), self._text(used, "output")
        extra = self._optional_text(used, "input")
        _require_content(instruction, answer)
        question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
        earlier = _earlier_turns(used.get("history"), self._column("history"))
        return self._conversation([*earlier, *_turn(question, answer)], used)

    def _prompt_completion(self, used: Record) -> Example:
        prompt, completion = self._value(used, "prompt"), self._value(used, "completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            asked = self._read_messages(used, "prompt")
            return self._conversation(asked + self._read_messages(used, "completion"), used, first_trained=len(asked))
        prompt, completion = _text_of(prompt, self._column("prompt")), _text_of(completion, self._column("completion"))
        _require_content(prompt, completion)
        if self._template is not None:
            return self._conversation(_turn(prompt, completion), used)
        self._refuse_system_message("a prompt and a completion without a chat template")
        self.unread.update(self._column(name) for name in ("system", "tools") if used.get(name))
        return Pair(prompt, completion)

    def _plain(self, used: Record) -> Example:
        text = self._text(used, "text")
        _require_content(text)
        self._refuse_system_message("plain text")
        return Text(text)

    def _refuse_system_message(self, rows: str) -> None:
        if self._dataset.system_message:
            raise RowInvalid(f"conversations, which systemMessage is for, and not {rows}; remove systemMessage")


_READERS: dict[DatasetFormat, Callable[[RowReader, Record], Example]] = {
    DatasetFormat.MESSAGES: RowReader._messages,
    DatasetFormat.SHAREGPT: RowReader._sharegpt,
    DatasetFormat.ALPACA: RowReader._alpaca,
    DatasetFormat.PROMPT_COMPLETION: RowReader._prompt_completion,
    DatasetFormat.TEXT: RowReader._plain,
}


class _Cleaner:
    """Cleans every text of a value. `changed`: control characters were removed."""

    def __init__(self) -> None:
        self.changed = False

    def clean(self, value: Any) -> Any:
        if isinstance(value, str):
            self.changed = self.changed or _CONTROL.search(value) is not None
            return clean(value)
        if isinstance(value, dict):
            return {name: self.clean(member) for name, member in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(member) for member in value]
        return value


_NEEDED = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHAREGPT: ("conversations",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.TEXT: ("text",),
}


def detect_format(record: Record, columns: Columns) -> DatasetFormat:
    """The format that a record's columns tell. Errors: RowInvalid where they tell none."""
    for format, names in _NEEDED.items():
        if all((getattr(columns, name) or name) in record for name in names):
            return format
    raise RowInvalid(
        "columns of one format: messages (Messages), conversations (ShareGPT), prompt and completion (PromptCompletion), "
        f"instruction and output (Alpaca) or text (Text); {_suggestion(record)}"
    )


_QUESTIONS = ("question", "query", "instruction", "prompt", "input", "problem", "user", "human", "q")
_ANSWERS = ("answer", "response", "output", "completion", "reply", "assistant", "solution", "target", "a")
_TEXTS = ("text", "content", "body", "document", "article")


_TURN_MEMBERS = frozenset({"role", "from"})


def _suggestion(record: Record) -> str:
    """Which columns a record has, and the mapping that fits them. Names only; what may be no name is left out."""
    names = [name for name in record if re.fullmatch(r"[\w .:/-]{1,40}", name)][:20]
    rows = next((name for name in names if isinstance(record[name], list) and record[name] and isinstance(record[name][0], dict)), None)
    if rows and not _TURN_MEMBERS.intersection(record[rows][0]):
        return f"there is a list of objects, {rows!r}: write them one on each line, or that array by itself"
    texts = [name for name in names if isinstance(record[name], str)]
    question, answer, text = (_like(texts, known) for known in (_QUESTIONS, _ANSWERS, _TEXTS))
    found = f"there are {', '.join(names) or 'none'}"
    if question and answer and question != answer:
        return f"{found}; set format: PromptCompletion with columns.prompt: {question} and columns.completion: {answer}"
    if rows:
        by_role = "role" in record[rows][0]
        return f"{found}; set " + (
            f"format: Messages with columns.messages: {rows}" if by_role else f"format: ShareGPT with columns.conversations: {rows}"
        )
    if text:
        return f"{found}; set format: Text with columns.text: {text}"
    return f"{found}; set format and columns"


def _like(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The name that has one of the known words in it, the earlier word first."""
    words = {name: re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names}
    return next((name for word in known for name in names if word in words[name] or word + "s" in words[name]), None)


_CALLS = ("tool_calls", "function_call")
_CALL_ROLES = ("function_call", "function-call", "tool_call", "tool-call", "tool_calls")


class MessageReader:
    """Reads one row's messages. `members`: what a message's role and content are called; `calls_as_text`: what a turn of role
    function_call holds is its text, because the template prints no tool calls.

    `unread`: members that nothing reads, of what was read so far.
    """

    def __init__(self, members: tuple[str, str], calls_as_text: bool = False) -> None:
        self._role, self._content = members
        self._calls_as_text = calls_as_text
        self.unread: set[str] = set()

    def read(self, listed: Any) -> list[dict[str, Any]]:
        """Messages with the roles that templates know; empty system messages are left out. Errors: RowDropped, RowInvalid."""
        if listed is None:
            raise RowDropped("EmptyField")
        if not isinstance(listed, list):
            raise RowInvalid(f"a list of messages, each with {self._role!r} and {self._content!r}")
        messages = [self._message(item) for item in listed]
        if not messages:
            raise RowDropped("EmptyField")
        return [message for message in messages if message["role"] != "system" or message["content"]]

    def _message(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, dict) or not isinstance(item.get(self._role), str):
            raise RowInvalid(f"messages that are objects with {self._role!r} and {self._content!r}")
        if item[self._role].lower() in _CALL_ROLES:
            item = self._call_turn(item)
        role = _ROLES.get(item[self._role].lower())
        if role is None:
            raise RowDropped("UnknownRole", _unknown_role(item[self._role]))
        text = self._text(item.get(self._content))
        extra = self._extra(item)
        if not text.strip() and role != "system" and not extra.get("tool_calls"):
            raise RowDropped("EmptyField")
        return {"role": role, "content": text, **extra}

    def _call_turn(self, item: Record) -> Record:
        """ShareGPT's turn that calls a function, as the assistant's."""
        called = item.get(self._content)
        if not called:
            raise RowDropped("EmptyField")
        self.unread.update(name for name in _CALLS if item.get(name))
        turn = {**{name: value for name, value in item.items() if name not in _CALLS}, self._role: "assistant"}
        if self._calls_as_text:
            return {**turn, self._content: called if isinstance(called, str) else json.dumps(called, ensure_ascii=False)}
        return {**turn, self._content: None, "tool_calls": called}

    def _text(self, content: Any) -> str:
        if isinstance(content, list):
            self.unread.update(f"{self._content}.{name}" for part in content for name in _beside_text(part))
            return _joined_parts(content)
        return _text_of(content, self._content) if content is not None else ""

    def _extra(self, item: Record) -> dict[str, Any]:
        """A message's members beside role and content, its calls as templates expect them."""
        extra = {name: value for name, value in item.items() if name not in (self._role, self._content) and value is not None}
        overruled: list[str] = [name for name in ("role", "content") if name in extra]
        if extra.get("tool_calls") and extra.get("function_call"):
            overruled.append("function_call")
        self.unread.update(overruled)
        return _with_tool_calls({name: value for name, value in extra.items() if name not in overruled})


_NAME = re.compile("[A-Za-z][A-Za-z0-9_-]{0,31}")


def _unknown_role(tag: str) -> str:
    """What a role is called, where that may be a name and is no text, and what it may be called."""
    named = f"called {tag!r}" if _NAME.fullmatch(tag) else "of no known name"
    return f"a role is {named}; known are {', '.join((*_ROLES, *_CALL_ROLES[:1]))}"


def _with_tool_calls(extra: dict[str, Any]) -> dict[str, Any]:
    """A message's other members with its calls as templates expect them: OpenAI's `tool_calls`, arguments as objects."""
    calls = extra.get("tool_calls") or extra.get("function_call")
    extra = {name: value for name, value in extra.items() if name not in _CALLS}
    calls = _parsed(calls) if isinstance(calls, str) and calls else calls
    listed = [calls] if isinstance(calls, dict) else calls or []
    if not isinstance(listed, list):
        raise RowDropped("InvalidToolCall")
    return {**extra, "tool_calls": [_tool_call(call) for call in listed]} if listed else extra


def _tool_call(call: Any) -> dict[str, Any]:
    call = _parsed(call) if isinstance(call, str) else call
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowDropped("InvalidToolCall")
    arguments = function.get("arguments")
    arguments = (_parsed(arguments) if arguments.strip() else {}) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict | None) or not json_text.can_hold(arguments):
        raise RowDropped("InvalidToolCall")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _parsed(text: str) -> Any:
    try:
        return json_text.parse(text)
    except ValueError as error:
        raise RowDropped("InvalidToolCall") from error


_WEIGHTS = ("weight", "train")


def _is_trained(message: Record) -> bool:
    """Whether an assistant's message may be trained: OpenAI's and Mistral's `weight`, others' `train`. Errors: RowInvalid."""
    if message["role"] != "assistant":
        return True
    for name in _WEIGHTS:
        if message.get(name, 1) not in (0, 1):
            raise RowInvalid(f"0 or 1, or false or true, in {name!r} of a message: a turn is trained or it is context")
    return all(message.get(name, 1) for name in _WEIGHTS)


_WEIGHED_QUESTIONS = "weight or train stands on a message that is not the assistant's and is not read: only answers are trained, all of them unless theirs is 0"


def _is_weighed_in_vain(message: Record) -> bool:
    """Whether a message that is no answer asks to be trained."""
    return len(message) > 2 and message["role"] != "assistant" and any(message.get(name) for name in _WEIGHTS)


def _joined_parts(parts: list[Any]) -> str:
    """The text of content given in parts, as multimodal data writes it. Errors: RowDropped(NotText)."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) and _is_of_text(part) for part in parts):
        raise RowDropped("NotText")
    return "".join(part["text"] for part in parts)


def _is_of_text(part: Record) -> bool:
    """Whether a part says that it is text: `text`, or `input_text` and `output_text` as OpenAI's Responses have it."""
    return str(part.get("type") or "text").endswith("text")


def _beside_text(part: Any) -> Iterator[str]:
    """What a part of text holds beside it, for instance where it is quoted from."""
    return (name for name in _given(part) if name not in ("type", "text")) if isinstance(part, dict) else iter(())


def _text_of(value: Any, column: str) -> str:
    if value is None:
        raise RowDropped("EmptyField")
    if not isinstance(value, str):
        raise RowInvalid(f"text in {column!r}")
    return value


def _require_content(*texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise RowDropped("EmptyField")


def _turn(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _earlier_turns(history: Any, column: str) -> list[dict[str, Any]]:
    """Alpaca's `history`: pairs of question and answer that came before."""
    messages = []
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowInvalid(f"a list of [question, answer] pairs in {column!r}")
        question, answer = (_text_of(text, column) for text in pair)
        _require_content(question, answer)
        messages += _turn(question, answer)
    return messages


def read_tools(value: Any) -> tuple[list[dict[str, Any]] | None, set[str]]:
    """The functions that a conversation's assistant may call, as servers hand them to templates, None where there are none; and the
    members of them that no client can send.

    Errors: RowInvalid.
    """
    try:
        value = json_text.parse(value) if isinstance(value, str) and value.strip() else value
        listed = [value] if isinstance(value, dict) else value or []
        written = [json_text.parse(tool) if isinstance(tool, str) else tool for tool in listed]
        return [_tool(tool) for tool in written] or None, {name for tool in written for name in _lost_of_tool(tool)}
    except (ValueError, TypeError) as error:
        raise RowInvalid(
            "a list of functions, each with a name and a JSON schema of its parameters, in 'tools', "
            f"nested at most {json_text.MAX_DEPTH} levels deep"
        ) from error


_TOOL_MEMBERS: dict[str, Any] = {"name": "", "description": "", "parameters": {}}
"""What llama-server keeps of a function that a client sends, in this order, with what it puts where a member is absent."""


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise TypeError
    function = _function(tool)
    if function is None:
        return tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TypeError
    known = {name: absent if function.get(name) is None else function[name] for name, absent in _TOOL_MEMBERS.items()}
    return {"type": "function", "function": known}


def _function(tool: Record) -> Any:
    """What a tool says of its function; None for a tool that is none."""
    return tool.get("function", tool if isinstance(tool.get("name"), str) else None)


def _lost_of_tool(tool: Record) -> Iterator[str]:
    """Members of a function, and beside it, that a client cannot send. `strict` is none: it says how a server decodes."""
    function = _function(tool)
    if function is None:
        return
    yield from (f"tools.function.{name}" for name in _given(function) if name not in (*_TOOL_MEMBERS, "strict", "type"))
    if function is not tool:
        yield from (f"tools.{name}" for name in _given(tool) if name not in ("type", "function"))


def _given(value: Record) -> Iterator[str]:
    """Members that hold something."""
    return (name for name, member in value.items() if member not in (None, "", [], {}))


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
