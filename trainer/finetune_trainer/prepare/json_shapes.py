"""What a JSON file holds where it does not hold rows, one object on each line: said so that its owner knows how to write it anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_BLANK = b" \t\r\n"
_MEMBER = re.compile(r"[A-Za-z_][\w-]{0,63}")
"""Names that a message may show: longer and stranger ones may be data."""
_LISTS_OF_A_ROW = ("messages", "conversations", "prompt", "completion", "tools")
_ROWS_OF_PANDAS = "write rows, pandas.DataFrame(…).to_json('train.jsonl', orient='records', lines=True)"
_ROWS_OF_JQ = "write the rows alone, each on a line (jq -c '.[]')"


def other_shape(path: Path, most_bytes: int) -> str | None:
    """What a file is that holds whole JSON and is neither lines of objects nor one row; None for all else, files beyond `most_bytes`
    among them."""
    with path.open("rb") as file:
        first = file.readline(most_bytes).removeprefix(b"\xef\xbb\xbf")
        if _is_whole(first) and file.read(1 << 16).strip(_BLANK):
            return None
        file.seek(0)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        return None
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode().strip()
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    on_one_line = "\n" not in text[:end]
    if text[end:].strip():
        return None if on_one_line else "several JSON values, each over several lines; write each on a line of its own (jq -c .)"
    return _one_line(value) if on_one_line else _several_lines(value)


def _is_whole(line: bytes) -> bool:
    """Whether a line is JSON, of whatever value: one that is and cannot be read is refused by its number."""
    try:
        json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):
        return True
    return True


def _several_lines(value: Any) -> str:
    if isinstance(value, list):
        return "one JSON array, which is read under a name that ends in .json"
    return f"one JSON object over several lines, which {_shape(value) or _rows_below(value) or 'is no list of rows'}"


def _one_line(value: Any) -> str | None:
    """An object on one line may be a row as well: it is only where its members cannot be a row's."""
    if not isinstance(value, dict):
        return None
    words = _shape(value) or (_rows_below(value) if len(value) == 1 else None)
    return words and f"one JSON object, which {words}"


def _shape(value: Any) -> str | None:
    """Columns, or rows under a key each: what no row looks like."""
    if not isinstance(value, dict) or not value:
        return None
    members = list(value.values())
    if all(isinstance(member, dict) and member for member in members):
        if all(name.isdecimal() for member in members for name in member):
            return f"holds columns by index; {_ROWS_OF_PANDAS}"
        return f"holds its rows under a key each; {_ROWS_OF_JQ}"
    if all(isinstance(member, list) and member for member in members) and not all(_are_objects(member) for member in members):
        return f"holds columns, a list for each; {_ROWS_OF_PANDAS}"
    return None


def _rows_below(value: Any) -> str | None:
    """Rows that are a list under one member."""
    found = (name for name, member in value.items() if isinstance(member, list) and member and _are_objects(member))
    rows = next((name for name in found if name not in _LISTS_OF_A_ROW and _MEMBER.fullmatch(name)), None)
    return f"holds its rows under {rows!r}; write that array by itself (jq '.{rows}')" if rows else None


def _are_objects(members: list[Any]) -> bool:
    return all(isinstance(member, dict) for member in members)
