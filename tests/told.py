"""What a command printed with --json, held against the schema that `ollama-tune schema COMMAND` publishes."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ollama_tune.tui.outputs import LINES, output_schema


def told(command: str, printed: str) -> Any:
    """The object, or the list of objects of a command that prints lines; a key without a name is an error."""
    judge = Draft202012Validator(output_schema(command, closed=True))
    found = [json.loads(line) for line in printed.splitlines()] if command in LINES else [json.loads(printed)]
    for value in found:
        error = best_match(judge.iter_errors(value))
        assert error is None, f"{command} {error.json_path}: {error.message[:400]}"
    return found if command in LINES else found[0]
