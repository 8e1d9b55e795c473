"""What a person prefers of the tool itself: `config.toml` in the config folder, with `theme` and `mouse`.

The file is made for hands: comments and order in it survive, and what is wrong in it is told in a sentence
and otherwise ignored, for a preference must never keep anybody from their work.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import config_dir
from ollama_tune.core.text import one_line

FILE = "config.toml"


@dataclass(frozen=True)
class Preferences:
    """`theme` names the colours, `mouse` says whether clicks are taken, which takes selecting with the mouse
    away from the terminal. None leaves the choice to what suits the terminal.
    """

    theme: str | None = None
    mouse: bool | None = None


KEYS = tuple(field.name for field in fields(Preferences))


def preferences_path() -> Path:
    """The file, whether or not it is there."""
    return config_dir() / FILE


def load_preferences() -> tuple[Preferences, tuple[str, ...]]:
    """What is preferred, and a sentence for each thing in the file that was ignored."""
    try:
        text = preferences_path().read_text(encoding="utf-8")
    except (FileNotFoundError, TuneError):
        return Preferences(), ()
    except (OSError, UnicodeDecodeError) as error:
        return Preferences(), (_ignored(error),)
    try:
        return _checked(_parsed(text))
    except ValueError as error:
        return Preferences(), (_ignored(error),)


def save_preference(name: str, value: str | bool) -> Path:
    """Write one preference into the file, in one piece, and leave its other lines as they are.

    Returns the file. A file that is not TOML is not touched: `TuneError`.
    """
    path = preferences_path()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        _parsed(text)
        write_atomic(path, _with_line(text, name, value))
    except (OSError, ValueError) as error:
        raise TuneError(
            f"Your choice could not be written to {path}: {_why(error)}.",
            "It holds for this window; mend or remove the file to keep it.",
        ) from error
    return path


def _parsed(text: str) -> Mapping[str, Any]:
    """The table of a TOML text; `ValueError` where it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)


def _checked(table: Mapping[str, Any]) -> tuple[Preferences, tuple[str, ...]]:
    """The known keys of the right type; a sentence about each other one."""
    known: dict[str, Any] = {}
    remarks = []
    for key, value in table.items():
        if key not in KEYS:
            remarks.append(_unknown(key))
        elif isinstance(value, {"theme": str, "mouse": bool}[key]):
            known[key] = value
        else:
            wanted = {"theme": 'a name in quotes, such as theme = "light"', "mouse": "true or false"}[key]
            remarks.append(f"{key} in {preferences_path()} must be {wanted}; it was ignored.")
    return Preferences(**known), tuple(remarks)


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(key, KEYS, n=1)
    meant = f"did you mean {close[0]}?" if close else f"there are {' and '.join(KEYS)}."
    return f"{preferences_path()} has an unknown key {one_line(key, 40)!r}: {meant}"


def _ignored(error: Exception) -> str:
    return f"{preferences_path()} cannot be read and was ignored: {_why(error)}."


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(reason, 120).rstrip(".")


def _with_line(text: str, name: str, value: str | bool) -> str:
    """The text with the key's line replaced, or added above the first table."""
    line = f"{name} = {_toml(value)}"
    lines = text.splitlines()
    top = next((place for place, old in enumerate(lines) if old.lstrip().startswith("[")), len(lines))
    for place in range(top):
        if re.match(rf"\s*[\"']?{name}[\"']?\s*=", lines[place]):
            lines[place] = line
            break
    else:
        lines.insert(top, line)
    return "\n".join(lines) + "\n"


def _toml(value: str | bool) -> str:
    """A name or a truth as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
