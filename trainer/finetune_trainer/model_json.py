"""The JSON files of a model folder, read member by member: what is not as transformers writes it is refused with file and member.

People mend these files by hand, and conversions write them: an odd value must not end a stage in the middle, or be taken as absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError

_REASONS = {
    "tokenizer.json": Reason.INVALID_TOKENIZER,
    "tokenizer_config.json": Reason.INVALID_TOKENIZER,
    "special_tokens_map.json": Reason.INVALID_TOKENIZER,
    "chat_template.jinja": Reason.INVALID_TEMPLATE,
    "chat_template.json": Reason.INVALID_TEMPLATE,
}
"""What is invalid where it is not the model as a whole."""


def refused(file: str, words: str) -> StageError:
    return StageError(_REASONS.get(file, Reason.INVALID_MODEL), f"{file}{words}; use the {file} of the model's own repository")


def read_optional_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, empty where the file is not there. Errors: StageError(InvalidModel | InvalidTokenizer |
    InvalidTemplate)."""
    try:
        value = json.loads(path.read_bytes().decode())  # UTF-8 without a mark before it, as transformers reads it
        json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        return {}
    except IsADirectoryError as error:
        raise refused(path.name, " is a folder; expected a file") from error
    except UnicodeEncodeError as error:
        raise refused(path.name, " holds half a surrogate pair (\\ud800 and the like), which is no text") from error
    except (ValueError, RecursionError) as error:
        raise refused(path.name, " is not JSON in UTF-8 (without a byte order mark)") from error
    if not isinstance(value, dict):
        raise refused(path.name, " must hold a JSON object")
    return value


def read_members(folder: Path, file: str) -> JsonMembers:
    """Errors: see `read_optional_json`."""
    return JsonMembers(file, read_optional_json(folder / file))


@dataclass(frozen=True)
class JsonMembers:
    """An object of a file. `within`: its place there, with a dot at the end. A member that is null is as one that is absent: None.

    Errors of every method: StageError(InvalidModel | InvalidTokenizer | InvalidTemplate) for a member of another kind.
    """

    file: str
    values: Mapping[str, Any]
    within: str = ""

    def odd(self, name: str, expected: str) -> StageError:
        return refused(self.file, f": {self.within}{name} must be {expected}, and is {_kind(self.values.get(name))}")

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.odd(name, "text")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.odd(name, "true or false")
        return value

    def whole(self, name: str, least: int = 0) -> int | None:
        value = self.values.get(name)
        if value is not None and not _is_whole(value, least):
            raise self.odd(name, f"a whole number, at least {least}")
        return value

    def numbers(self, name: str) -> list[int] | None:
        """Whole numbers from 0, at least one; one alone is a list of one."""
        value = self.values.get(name)
        if value is None:
            return None
        listed: list[int] = value if isinstance(value, list) else [value]
        if not listed or not all(_is_whole(number, 0) for number in listed):
            raise self.odd(name, "a whole number from 0, or a list of them")
        return listed

    def texts(self, name: str) -> list[str]:
        """Empty where there are none."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.odd(name, "a list of texts")
        return value

    def object(self, name: str) -> JsonMembers:
        """Empty where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.odd(name, "an object")
        return JsonMembers(self.file, value or {}, f"{self.within}{name}.")

    def token(self, name: str) -> str | None:
        """A token's text: the member itself, or its `content`."""
        if isinstance(self.values.get(name), dict):
            content = self.object(name).text("content")
            if content is None:
                raise self.object(name).odd("content", "text")
            return content
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.odd(name, "text, or an object with content")
        return value


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _kind(value: Any) -> str:
    """How a message calls a value, which it does not quote where it may be long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:.9g}" if abs(value) < 1e15 else "another number"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "text" if isinstance(value, str) else "an object"
