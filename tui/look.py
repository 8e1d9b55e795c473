"""How the window is to look: what the command says, else the environment, else what was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ollama_tune.core.errors import UsageError
from ollama_tune.core.preferences import load_preferences, preferences_path
from ollama_tune.core.text import one_line

Command = TypeVar("Command", bound=Callable[..., Any])
THEMES = ("dark", "light", "high-contrast", "ansi-dark", "ansi-light")
VARIABLE = "OLLAMA_TUNE_THEME"
PLAIN_VARIABLE = "ACCESSIBLE"


@dataclass(frozen=True)
class Look:
    """`theme` is None where the terminal decides; `remarks` say which preferences were ignored."""

    theme: str | None = None
    mouse: bool = True
    remarks: tuple[str, ...] = ()


def check_theme(name: str) -> str:
    """The name, or `UsageError` with the names there are."""
    if name not in THEMES:
        raise UsageError(f"There is no theme {one_line(name, 40)!r}.", f"There are {', '.join(THEMES)}.")
    return name


def find_look(theme: str | None = None, mouse: bool | None = None) -> Look:
    """What holds: the command's options, else `OLLAMA_TUNE_THEME`, else `config.toml`.

    A theme that is not there is an error in a command and in the environment, and a remark in the file.
    """
    saved, remarks = load_preferences()
    named = theme or os.environ.get(VARIABLE)
    kept = saved.theme
    if kept is not None and kept not in THEMES:
        there = f"There are {', '.join(THEMES)}."
        remarks += (f"{preferences_path()} names an unknown theme {one_line(kept, 40)!r}. {there}",)
        kept = None
    wanted = saved.mouse if mouse is None else mouse
    taken = wanted if wanted is not None else not _in_screen()
    return Look(check_theme(named) if named else kept, taken, remarks)


def _in_screen() -> bool:
    """Whether GNU screen is the terminal: while it reports the mouse, it holds Esc back till the next key."""
    return "STY" in os.environ and "TMUX" not in os.environ


def asked_look(context: click.Context) -> Look:
    """What holds for a command that was given `look_options`, before its name or after it."""
    links = [context, *([context.parent] if context.parent is not None else [])]
    said = [link.params for link in links]
    theme = next((given["theme"] for given in said if given.get("theme") is not None), None)
    mouse = next((given["mouse"] for given in said if given.get("mouse") is not None), None)
    return find_look(theme, mouse)


def look_options(command: Command) -> Command:
    """`--theme` and `--mouse/--no-mouse` for a command that opens a window; `asked_look` reads them."""
    mouse = click.option(
        "--mouse/--no-mouse", default=None, help="Take clicks, or leave the mouse to the terminal."
    )
    theme = click.option("--theme", metavar="NAME", help=f"Colours: {', '.join(THEMES)}.")
    return theme(mouse(command))


def wants_plain(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal can draw no window, or its person cannot use one: `TERM=dumb`, `ACCESSIBLE=1`."""
    dumb = environment.get("TERM", "dumb") in ("dumb", "")
    return dumb or environment.get(PLAIN_VARIABLE, "0").lower() not in ("", "0", "false", "no")
