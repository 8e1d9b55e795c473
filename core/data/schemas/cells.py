"""What a cell of a data file holds: a text, nothing, or a list or object written as text."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

NOTHING = frozenset(
    ("", "-", "none", "null", "nan", "n/a", "na", "no input", "noinput", "<noinput>", "<no input>", "nil")
)
"""Whole cells that people write where there is nothing to say."""

LONGEST_LITERAL = 2**20
"""Characters of a cell that is tried as Python text, which costs far more memory than JSON."""

_MEDIA = ("image", "audio", "video", "file", "document")
_ARRAY = re.compile(r"\barray\(|,\s*dtype=object\)|(?<=\])\)")
_BETWEEN = re.compile(r"\}\s*\n\s*\{")


class Unusable(Exception):
    """Why a record is set aside: a stable `kind` and a sentence, which never quotes the record."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


def decoded(value: Any) -> Any:
    """A cell of a table that holds a list or an object as JSON or Python text, as that; else unchanged.

    pandas writes a list of objects without commas between them, and nested lists as `array([...])`.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if len(value) > LONGEST_LITERAL:
        return value
    found = _literal(value)
    return _literal(_BETWEEN.sub("}, {", _ARRAY.sub("", value))) if found is None else found


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, (list, dict)) else None


def is_nothing(value: Any) -> bool:
    """True for an empty cell, a missing value, and a text that only says that there is nothing."""
    if isinstance(value, str):
        return value.strip().lower() in NOTHING
    return value is None or value != value or (isinstance(value, (list, dict)) and not value)


def cell_text(value: Any) -> str:
    """A cell as text: numbers, lists and objects as JSON writes them, a missing value as an empty text."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def content_text(value: Any) -> str:
    """The text of a message or a question: of parts, the texts joined; of an object, the text that it wraps.

    Raises `Unusable` for a picture or a sound.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _object_text(value)
    if not isinstance(value, list) or not value:
        return "" if isinstance(value, list) else cell_text(value)
    if all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if all(isinstance(part, dict) and ("type" in part or "text" in part) for part in value):
        return "".join(part_text(part) for part in value)
    return cell_text(value)


def _object_text(value: dict[str, Any]) -> str:
    for key in ("text", "content", "value", "parts", "full_text"):
        if isinstance(value.get(key), (str, list)):
            return content_text(value[key])
    return part_text(value) if isinstance(value.get("type"), str) else cell_text(value)


def part_text(part: dict[str, Any]) -> str:
    """The text of one part of a message; `Unusable` for a picture or a sound."""
    kind = str(part.get("type") or "text")
    if any(word in kind for word in _MEDIA):
        raise Unusable("not-text", "A message holds something other than text, such as an image.")
    found = next((part[key] for key in ("text", "content", "value") if part.get(key) is not None), None)
    if found is None:
        raise Unusable("not-text", "A message holds a part without a text.")
    return content_text(found)
