"""What every command prints with --json, as JSON Schema: the notation of `assets/docs/outputs.yaml` read."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from ollama_tune.core.errors import UsageError

TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "whole": {"type": "integer"},
    "truth": {"type": "boolean"},
    "any": {},
}
ANY_NAME, ONE_OF, FURTHER = "*", "or", "..."
LINES = ("run", "attach", "resume", "chat")
"""Commands that print one such object a line."""


@cache
def _described() -> dict[str, dict[str, Any]]:
    import yaml

    from ollama_tune.core.paths import asset

    read: dict[str, dict[str, Any]] = yaml.safe_load(asset("docs/outputs.yaml").read_text(encoding="utf-8"))
    return read


def commands() -> list[str]:
    """Every command whose output is described."""
    return list(_described()["commands"])


def output_schema(command: str, *, closed: bool = False) -> dict[str, Any]:
    """The JSON Schema of what a command prints, or of one line of it; an error is described too.

    `closed` refuses keys that are not named, for tests: programs must not, because keys may be added.
    Raises `UsageError` for a command that there is not.
    """
    shapes = _described()["commands"]
    if command not in shapes:
        near = difflib.get_close_matches(command, shapes, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else "`ollama-tune --help` lists the commands."
        raise UsageError(f"There is no command {command!r}.", fix)
    what = f"One line of `ollama-tune {command} --json`." if command in LINES else f"`{command} --json`."
    found = {"anyOf": [_schema(shapes[command], closed), _schema("$error", closed)]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": what, **found}


def _schema(shape: Any, closed: bool) -> dict[str, Any]:
    if isinstance(shape, list):
        return {"type": "array", "items": _schema(shape[0], closed)}
    if isinstance(shape, dict):
        return _table(shape, closed)
    if shape.endswith("~"):
        return {"anyOf": [_schema(shape[:-1], closed), {"type": "null"}]}
    if shape.startswith("="):
        return {"enum": shape[1:].split("|")}
    if shape.startswith("$"):
        return _schema(_described()["shapes"][shape[1:]], closed)
    return TYPES[shape]


def _table(shape: dict[str, Any], closed: bool) -> dict[str, Any]:
    if ONE_OF in shape:
        return {"anyOf": [_schema(each, closed) for each in shape[ONE_OF]]}
    if ANY_NAME in shape:
        return {"type": "object", "additionalProperties": _schema(shape[ANY_NAME], closed)}
    named = {key: value for key, value in shape.items() if key != FURTHER}
    return {
        "type": "object",
        "properties": {key.rstrip("~"): _schema(value, closed) for key, value in named.items()},
        "required": [key for key in named if not key.endswith("~")],
        "additionalProperties": not closed or FURTHER in shape,
    }
