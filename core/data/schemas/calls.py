"""Tools that a conversation may call, and the calls, from the forms that data files give them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ollama_tune.core.data.schemas.cells import Unusable, cell_text, decoded
from ollama_tune.core.data.values import ToolCall

_WRITTEN = (
    re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL),
    re.compile(r"<functioncall>[ \t]*(\{[^\n]*\})"),
)
_ARGUMENTS = ("arguments", "parameters", "args", "input", "arguments_json")


def tools_of(value: Any) -> str:
    """The JSON text of a list of tools as chat templates take it; empty without any.

    A bare function becomes `{"type": "function", "function": ...}`. Keys without a value are left out,
    because Parquet gives every tool the keys of all others. Raises `Unusable` for what is no list of tools.
    """
    if not value:
        return ""
    return _tools_text(value) if isinstance(value, str) else _tools(value)


@lru_cache(maxsize=256)
def _tools_text(text: str) -> str:
    found = decoded(text)
    if isinstance(found, str):
        if not text.strip() or text.strip().lower() in ("none", "null"):
            return ""
        raise Unusable("bad-tools", "The list of tools is not valid JSON.")
    return _tools(found)


def _tools(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("tools") or ([value] if "name" in value or "function" in value else [])
    if not isinstance(value, (list, tuple)):
        raise Unusable("bad-tools", "The tools are not a list of functions.")
    tools = [_tool(decoded(entry)) for entry in value]
    return json.dumps(tools, ensure_ascii=False, default=cell_text) if tools else ""


def _tool(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise Unusable("bad-tools", "The tools are not a list of functions.")
    function = decoded(entry.get("function")) if entry.get("function") else entry
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unusable("bad-tools", "A tool has no name.")
    plain = {key: cell for key, cell in _filled(function).items() if function is not entry or key != "type"}
    if "input_schema" in plain:
        plain["parameters"] = plain.pop("input_schema")
    if isinstance(plain.get("parameters"), str):
        plain["parameters"] = decoded(plain["parameters"])
    return {"type": "function", "function": plain}


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(cell) for key, cell in value.items() if cell is not None}
    return [_filled(cell) for cell in value] if isinstance(value, list) else value


def written_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The calls that an answer writes between marks of its own, and its text without them.

    `<tool_call>` is the form of Hermes and Qwen, `<functioncall>` that of Glaive. None where one of them
    cannot be read.
    """
    for form in _WRITTEN:
        found = form.findall(text)
        try:
            calls = tuple(call for written in found for call in calls_of(written))
        except Unusable:
            return text, ()
        if calls:
            return form.sub("", text).strip(), calls
    return text, ()


def is_calls(value: Any) -> bool:
    """True for a list of calls, or JSON text of one, which stands where an answer is expected."""
    found = decoded(value)
    entries = found if isinstance(found, list) else []
    return bool(entries) and all(
        isinstance(call, Mapping) and {"name", "arguments"} <= set(call) for call in entries
    )


def calls_of(value: Any) -> tuple[ToolCall, ...]:
    """The calls of one answer: a list of them, a single one, or JSON text of either.

    Raises `Unusable` for a call without a name or with arguments that are not an object.
    """
    found = decoded(value)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, (list, tuple)) or not found:
        raise Unusable("bad-tool-call", "The call of a tool is not valid JSON.")
    return tuple(_call(decoded(entry)) for entry in found)


def _call(entry: Any) -> ToolCall:
    if not isinstance(entry, Mapping):
        raise Unusable("bad-tool-call", "The call of a tool is not an object.")
    function = decoded(entry.get("function"))
    if not isinstance(function, Mapping):
        function = {**entry, "name": function} if isinstance(function, str) else entry
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise Unusable("bad-tool-call", "The call of a tool has no name.")
    given = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), None)
    return ToolCall(name, arguments_of(given), cell_text(entry.get("id")))


def arguments_of(value: Any) -> str:
    """The arguments of a call as the JSON text of an object; `Unusable` where they are none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    found = decoded(value)
    if not isinstance(found, Mapping):
        raise Unusable("bad-tool-call", "The arguments of a tool call are not a JSON object.")
    plain = _filled(found) if found is value else found
    return json.dumps(plain, ensure_ascii=False, default=cell_text)
