"""The command `keys`: every key of every screen, from the bindings themselves."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import click

from ollama_tune.tui.shell import out

PACKAGES = ("screens", "widgets")
ALONE = ("explaining", "app", "palette")
"""Modules beside the packages that have keys of their own."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def keys(as_json: bool) -> None:
    """Print what every key does, screen by screen.

    \b
    --json prints {"Screen": [{"keys": ["m", "F2"], "words": "More"}, ...], ...}.

    \b
    Examples:
      ollama-tune keys
      ollama-tune keys --json
    """
    table = all_keys()
    if as_json:
        rows = {
            title: [{"keys": names, "words": words} for names, words in lines]
            for title, lines in table.items()
        }
        out(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for title, lines in table.items():
        out(f"\n{title}" if title != next(iter(table)) else title)
        for names, words in lines:
            out(f"  {', '.join(names):<20} {words}")


def all_keys() -> dict[str, list[tuple[list[str], str]]]:
    """The keys that each class declares itself, under its title: everywhere, the steps, the rest by name."""
    from ollama_tune.tui.keys import declared, named

    found: dict[str, list[tuple[list[str], str]]] = {}
    for place, kind in sorted(((_place(kind), kind) for kind in classes()), key=lambda pair: pair[0]):
        for key in named((binding, kind, True) for binding in declared(kind)):
            lines = found.setdefault(place[1], [])
            if (key.names, key.words) not in lines:
                lines.append((key.names, key.words))
    return found


def _place(kind: type[Any]) -> tuple[int, str]:
    """Where a class stands in the list, and its title."""
    from textual.app import App

    from ollama_tune.tui.explaining import ExplainedScreen
    from ollama_tune.tui.screens.base import StepScreen
    from ollama_tune.tui.state import STEPS
    from ollama_tune.tui.widgets.modal import BoxScreen

    if issubclass(kind, App) or kind is ExplainedScreen:
        return 0, "Everywhere"
    if issubclass(kind, StepScreen):
        number = vars(kind).get("STEP", 0)
        return 1 + number, f"Step {number}, {STEPS[number - 1].title}" if number else "Every step"
    if issubclass(kind, ExplainedScreen):
        return 20, _title(kind)
    return 30 if kind is BoxScreen else 31, _title(kind)


def _title(kind: type[Any]) -> str:
    """What the screen calls itself, else the name of its class in words."""
    own = vars(kind).get("TITLE_TEXT") or vars(kind).get("HELP_TOPIC", ("", ""))[1]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Screen")).capitalize()
    return str(own or words)


def classes() -> list[type[Any]]:
    """Every class of ours that can have keys: the application, screens, windows and widgets."""
    from textual.app import App
    from textual.widget import Widget

    return [
        kind
        for module in _modules()
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, (App, Widget))
    ]


def _modules() -> Iterator[ModuleType]:
    for name in ALONE:
        yield importlib.import_module(f"ollama_tune.tui.{name}")
    for package in PACKAGES:
        home = importlib.import_module(f"ollama_tune.tui.{package}")
        for found in pkgutil.iter_modules(home.__path__):
            yield importlib.import_module(f"{home.__name__}.{found.name}")
