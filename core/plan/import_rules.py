"""How one field of another tool's config becomes ours: small rules that the tables of formats are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_tune.core.plan.settings import Settings

Outcome = Literal["taken", "approximated", "default", "dropped", "missing"]
"""`taken`: means the same here. `approximated`: the nearest there is. `default`: not in the file, and what
the tool does then. `dropped`: changes nothing in the trained model. `missing`: has no equivalent, and the
trained model may differ."""


@dataclass(frozen=True)
class Found:
    """What becomes of a value: the settings it gives by dotted path, and why it is not taken as it is."""

    outcome: Outcome
    values: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


Rule = Callable[[Any], Found]
LAST = re.compile(r"(?:\(([\w|]+)\))?(\w*)\$?$")
"""What a pattern of names ends with: alternatives, and what follows them."""


def take(*paths: str) -> Rule:
    """The value as it is, for one or more settings."""
    return lambda value: Found("taken", dict.fromkeys(paths, value))


def words(table: Mapping[str, Found], other: Found) -> Rule:
    """By the value as text in lower case; `other` is for values that the table lacks."""
    return lambda value: table.get(str(value).strip().lower(), other)


def named(path: str, table: Mapping[str, Any], near: Mapping[str, tuple[Any, str]] | None = None) -> Rule:
    """A setting of a few words: those with the same meaning, and the nearest of others with the reason."""
    found = {word: Found("taken", {path: value}) for word, value in table.items()}
    for word, (value, why) in (near or {}).items():
        found[word] = Found("approximated", {path: value}, why)
    default = Settings().get(path)
    return words(found, Found("missing", why=f"{path} takes none of this kind; left out, it is {default}."))


def flag(path: str, on: Any = True, off: Any = False) -> Rule:
    """Yes or no; `auto` leaves it to this tool."""
    both = {"true": Found("taken", {path: on}), "false": Found("taken", {path: off})}
    return words(both | {"auto": UNSAID}, Found("missing", why="This is neither true nor false."))


def dropped(why: str) -> Rule:
    """Without influence on the trained model."""
    return lambda value: Found("dropped", why=why)


def missing(why: str, same: tuple[Any, ...] = ()) -> Rule:
    """Nothing like it here; values in `same` mean what is done here anyway."""
    here = Found("dropped", why="This is how it is done here too.")
    return lambda value: here if value in same and value is not False else Found("missing", why=why)


def name_list(path: str, everything: tuple[str, ...]) -> Rule:
    """Module names as a list or with commas; the words in `everything` mean all linear layers. Of a pattern
    (a regular expression) the last part is read, such as `(q|v)_proj`."""

    def rule(value: Any) -> Found:
        parts = value if isinstance(value, list) else str(value).split(",")
        names = [str(part).strip() for part in parts if str(part).strip()]
        if any(name in everything for name in names):
            return Found("taken", {path: "all-linear"})
        if all(re.fullmatch(r"[\w.-]+", name) for name in names):
            return Found("taken", {path: names})
        named = [one for name in names for one in _alternatives(name)]
        if not all(re.fullmatch(r"\w+", name) for name in named):
            return Found("missing", why=f"This pattern is not read: {path} takes names of layers.")
        why = "The layers of these names are taken wherever they are."
        return Found("approximated", {path: list(dict.fromkeys(named))}, why)

    return rule


def _alternatives(pattern: str) -> list[str]:
    """The names at the end of a pattern: `layers.[\\d]+.self_attn.(q|v)_proj` -> `q_proj`, `v_proj`."""
    end = LAST.search(pattern)
    choices = end.group(1).split("|") if end and end.group(1) else [""]
    return [f"{choice}{end.group(2)}" for choice in choices] if end else [pattern]


def share(path: str, why: str) -> Rule:
    """A share of the whole; a count, from 1 up, cannot be one, because the whole is not known here."""

    def rule(value: Any) -> Found:
        number = as_number(value)
        if number is None or number >= 1:
            return Found("missing", why=why)
        return Found("taken", {path: number})

    return rule


def count(path: str, why: str) -> Rule:
    """A count of steps; below 1 it is a share of them, which is not one here."""

    def rule(value: Any) -> Found:
        number = as_number(value)
        if number is None or 0 < number < 1:
            return Found("missing", why=why)
        return Found("taken", {path: int(number)})

    return rule


def as_number(value: Any) -> float | None:
    """The number in a value, also where YAML took it for text such as `1e-4`."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


UNSAID = Found("dropped", why="What is not said is chosen for the box here too.")
