"""What is wrong in a tree of settings, in sentences: the field, its line in the file, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.yaml_lines import Marked, Place
from ollama_tune.core.text import one_line

MOST = 5
"""So many mistakes are told at once."""
CHANGE = "Change it and try again."
QUOTE = "Put it into quotes, if that is what you mean."
IMPOSSIBLE = "impossible"
"""The kind of error of settings that exclude each other; its `found` is what `impossible` returns."""


@dataclass(frozen=True)
class Mistake:
    """One thing wrong: the dotted field, what it is and what to do in sentences, the line where it stands."""

    field: str
    what: str
    fix: str
    line: int | None = None

    @property
    def words(self) -> str:
        """What is wrong, with its line, and the fix where it says more than that."""
        where = f"Line {self.line}: " if self.line else ""
        return f"{where}{self.what}" + ("" if self.fix == CHANGE else f" {self.fix}")


class SettingsError(UsageError):
    """Settings that are refused; `mistakes` holds each of them, for programs.

    Args:
        mistakes: at least one.
        marked: the file in which they stand, if they stand in one.
    """

    code = "settings"

    def __init__(self, mistakes: Sequence[Mistake], marked: Marked | None = None) -> None:
        self.mistakes = tuple(mistakes)
        first = self.mistakes[0]
        if len(self.mistakes) == 1:
            line = f", line {first.line}" if first.line else ""
            where = f"In {marked.path}{line}: " if marked else ""
            super().__init__(where + first.what, first.fix)
            return
        told = " ".join(f"({n}) {each.words}" for n, each in enumerate(self.mistakes[:MOST], 1))
        more = len(self.mistakes) - MOST
        rest = f" And {more} more." if more > 0 else ""
        where = f"{marked.path} has" if marked else "There are"
        super().__init__(f"{where} {len(self.mistakes)} mistakes. {told}{rest}", "Mend them and try again.")


def refusal(
    error: ValidationError, tree: Any, names: Sequence[str], marked: Marked | None = None
) -> SettingsError:
    """The error for what pydantic found in a tree; `names` are all dotted fields there are."""
    found: dict[str, Mistake] = {}
    for each in error.errors(include_url=False):
        if each["type"] == IMPOSSIBLE:
            found |= {why: _conflict(fields, why, tree, marked) for fields, why in each["ctx"]["found"]}
            continue
        place = _place(tree, each["loc"])
        path = ".".join(place)
        line = marked.line(place) if marked else None
        unknown = each["type"] == "extra_forbidden"
        made = _unknown(path, names, line) if unknown else _wrong(path, each, line)
        found.setdefault(path, made)
    return SettingsError(sorted(found.values(), key=lambda each: each.line or 0), marked)


def _conflict(fields: Sequence[str], why: str, tree: Any, marked: Marked | None) -> Mistake:
    """Settings of which each is right and that do not go together, at the first that the file names."""
    places = [_place(tree, field.split(".")) for field in fields]
    path, place = next(
        ((field, place) for field, place in zip(fields, places, strict=True) if ".".join(place) == field),
        (fields[0], ()),
    )
    line = marked.line(place) if marked and place else None
    return Mistake(path, f"These settings do not go together: {why}.", CHANGE, line)


def _place(tree: Any, location: Sequence[int | str]) -> Place:
    """Where in the tree an error lies; pydantic's own words for the branch of a union are left out."""
    return tuple(_steps(tree, location))


def _steps(value: Any, location: Sequence[int | str]) -> Iterator[str]:
    """Names in a file may be numbers or truths, which the settings read as text."""
    for part in location:
        if isinstance(value, dict):
            names = {str(key).lower(): key for key in value} | {key: key for key in value}
            if part not in names:
                continue
            value = value[names[part]]
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            continue
        yield str(part)


def _unknown(path: str, names: Sequence[str], line: int | None) -> Mistake:
    return Mistake(path, f"There is no setting {one_line(path, 80)!r}.", nearest(path, names), line)


def _wrong(path: str, error: ErrorDetails, line: int | None) -> Mistake:
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":
        text = "it is a section, with settings of its own below it"
    subject = f"The setting {path} is" if path else "The settings are"
    bare = error["type"] == "string_type" and isinstance(error["input"], (bool, int, float))
    return Mistake(path, f"{subject} wrong: {text}.", QUOTE if bare else CHANGE, line)


def nearest(path: str, names: Sequence[str]) -> str:
    """The right name that is meant most likely, as a question; else where all of them stand."""
    last = path.rpartition(".")[2]
    sections = {name.partition(".")[0] for name in names} if "." not in path else set()
    close = [name for name in _elsewhere(last) if name in names][:1]
    close = close or difflib.get_close_matches(path, [*names, *sorted(sections)], n=1)
    close = close or [name for name in names if name.endswith(f".{last}")][:1]
    if close:
        return f"Did you mean {close[0]!r}?"
    return "`ollama-tune schema --markdown` lists the settings."


def _elsewhere(name: str) -> list[str]:
    """The settings that other tools call so."""
    from ollama_tune.core.plan.import_tables import TABLES

    rules = [table[name] for table in TABLES.values() if name in table]
    return [path for rule in rules for value in (1, True) for path in rule(value).values]
