"""YAML that somebody else wrote, read with the line of every value; what is unsafe or unclear is refused.

Only plain values come out (PyYAML's safe loader). A file is read whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ollama_tune.core.errors import UsageError
from ollama_tune.core.text import one_line

MOST_BYTES = 1 << 20
MOST_VALUES = 20_000
"""Aliases counted as often as they are used: a few lines can otherwise stand for billions of values."""

Place = tuple[str, ...]
"""Keys and list positions from the top of the file, each as text."""


@dataclass(frozen=True)
class Marked:
    """A YAML file: its values, and the line (from 1) on which each key or list entry stands."""

    path: Path
    tree: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int | None:
        """The line of a value, else of what holds it; None where nothing of it stands in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)


class Plain(yaml.SafeLoader):
    """YAML 1.2's numbers and truths: `no`, `010`, `1:30` and dates are the text that stands there, and 1e-4
    is a number. Tools that read YAML 1.1 take them for false, 8, 90, a date and text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for tag, form, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    pattern = re.compile(rf"^(?:{form})$")
    Plain.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))


def read_value(text: str) -> Any:
    """The value that a person wrote behind a name on a command line: a list, a table or a quoted text as in a
    file, else a number, a truth or the whole text as it stands. Raises `ValueError` where it is none."""
    text = text.strip()
    try:
        if text[:1] in ("[", "{", '"', "'"):
            return yaml.load(text, Loader=Plain)  # noqa: S506  # a safe one
        loader = Plain("")
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(text) from error


def read_marked(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Marked:
    """Read a YAML file; every problem is a `UsageError` that names the file and, if it has one, the line."""
    text = _text(path)
    try:
        return _marked(path, loader(text))
    except yaml.YAMLError as error:
        raise _unreadable(path, text, error) from error
    except ValueError as error:
        what = f"{path} holds a date or a number that there is not: {one_line(str(error), 80)}."
        raise UsageError(what, "Mend it, or quote it where it is text.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply.", "Write it with fewer levels.") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path} is larger than 1 MiB.", "Name the file with the settings.")
        return content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Check its name.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file.", "Save it as UTF-8 text.") from error


def _marked(path: Path, loader: yaml.SafeLoader) -> Marked:
    try:
        node = loader.get_single_node()
        if node is None:
            return Marked(path, None, {})
        _check(path, node)
        tree = loader.construct_document(node)
        return Marked(path, tree, {place: found.start_mark.line + 1 for place, found in _walk(node, ())})
    finally:
        loader.dispose()


def _check(path: Path, top: yaml.Node) -> None:
    """Refuse keys that stand twice, and files that grow beyond measure (or for ever) by their aliases."""
    count, waiting = 0, [top]
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise UsageError(
                f"{path} stands for more than {MOST_VALUES:,} values: its aliases repeat each other.",
                "Write the values out.",
            )
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    seen: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is None:
            raise UsageError(f"{path}, line {line}: a name must be a word.", "Mend that line and try again.")
        if name in seen and name != "<<":
            raise UsageError(
                f"{path}, line {line}: {one_line(name, 60)!r} stands there a second time "
                f"(first on line {seen[name]}).",
                "Keep one of them.",
            )
        seen[name] = line


def _walk(node: yaml.Node, place: Place) -> Iterator[tuple[Place, yaml.Node]]:
    """Every key and list entry below a node with its place; a later key wins, as it does in the values."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key
            yield from _walk(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*place, str(number)), value
            yield from _walk(value, (*place, str(number)))


def _unreadable(path: Path, text: str, error: yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return UsageError(f"{path} is not valid YAML.", "Save it as plain UTF-8 text and try again.")
    number = mark.line + 1
    lines = text.splitlines()
    indent = lines[mark.line][: mark.column + 1] if mark.line < len(lines) else ""
    if "\t" in indent and not indent.strip():
        return UsageError(
            f"{path}, line {number} begins with a tab, which YAML does not allow.",
            "Indent with spaces: two for each level.",
        )
    return UsageError(f"{path}, line {number} is not valid YAML.", "Mend that line and try again.")
