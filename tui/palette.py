"""Everything by name: what can be done on this screen and in the application now, with its key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.fuzzy import Matcher
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from ollama_tune.core.errors import TuneError
from ollama_tune.core.preferences import save_preference
from ollama_tune.tui.keys import named, own_bindings
from ollama_tune.tui.look import THEMES
from ollama_tune.tui.state import STEPS
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.modal import BoxScreen
from ollama_tune.tui.widgets.options import Options

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.tui.app import TuneApp
    from ollama_tune.tui.screens.base import FramedScreen

MOVES = frozenset({"palette", "explain", "scroll", "page", "edge", "move", "close", "app.focus_next"})
"""Actions that move about on a screen, or that stand in the list under other words."""


@dataclass(frozen=True)
class Command:
    """`group: verb`, the keys that do the same, and what is called; it may be awaited."""

    group: str
    verb: str
    run: Callable[[], object | Awaitable[object]]
    keys: str = ""

    @property
    def name(self) -> str:
        """As it stands in the list."""
        return f"{self.group}: {self.verb}"


def commands(app: TuneApp) -> list[Command]:
    """What is possible now: the screen's own first, then steps, runs, looks and the rest."""
    screen = cast("FramedScreen", app.screen)
    return [
        *_of_screen(app, screen),
        *_steps(app),
        *_runs(app),
        *_themes(app),
        *_mouse(app),
        Command("help", "this screen and its keys", screen.action_explain, "F1"),
        Command("check", "doctor: what works on this machine", partial(_doctor, app)),
        Command("app", "to the shell for a while", app.action_suspend_process, "Ctrl+Z"),
        Command("app", "quit", app.action_leave, "Ctrl+Q"),
    ]


def _of_screen(app: TuneApp, screen: FramedScreen) -> Iterator[Command]:
    """The screen's keys, also those that a focused line of text would take as letters."""
    states = [
        (binding, app._check_action_state(binding.action, screen)) for binding in own_bindings(type(screen))
    ]
    for key in named((binding, screen, True) for binding, state in states if state):
        if key.action.partition("(")[0] not in MOVES and not key.action.startswith("app."):
            run = partial(app.run_action, key.action, screen)
            yield Command(screen.screen_topic()[1].lower(), _small(key.words), run, ", ".join(key.names))


def _small(words: str) -> str:
    """A word for a key begins small in a sentence, unless it is a name."""
    return words[:1].lower() + words[1:] if words[1:2].islower() or len(words) == 1 else words


def _steps(app: TuneApp) -> Iterator[Command]:
    for step in STEPS:
        if app.can_go_to(step.number):
            yield Command("go", f"step {step.number}, {step.title}", partial(app.go_to, step.number))


def _runs(app: TuneApp) -> Iterator[Command]:
    yield Command("runs", "show all, compare, duplicate", partial(_show_runs, app))
    if app.folder is not None:
        yield Command("run", "open its log", partial(_log, app, app.folder))
    if app.facts.plan is not None:
        yield Command("run", "write run.yaml here", partial(_write, app, app.facts.plan.settings))


def _show_runs(app: TuneApp) -> None:
    app.push_screen(app.runs_screen())


def _log(app: TuneApp, folder: RunFolder) -> None:
    """The whole log, followed as it grows."""
    from ollama_tune.tui.run_follower import RunFollower
    from ollama_tune.tui.screens.run_log import LogScreen

    run = getattr(app.screen, "run", None)
    if not isinstance(run, RunFollower):
        run = RunFollower(folder)
        run.poll()
    app.push_screen(LogScreen(run))


def _write(app: TuneApp, settings: Settings) -> None:
    """Write run.yaml into the current folder, beside one that is there already."""
    names = ["run.yaml", *(f"run-{number}.yaml" for number in range(2, 1000))]
    path = next(path for name in names if not (path := Path.cwd() / name).exists())
    try:
        settings.save(path)
    except OSError as error:
        app.tell(f"{tilde(path)} cannot be written: {error.strerror}.")
    else:
        app.tell(f"Written: {tilde(path)}. `ollama-tune run {path.name}` starts it.")


def _doctor(app: TuneApp) -> None:
    from ollama_tune.tui.screens.doctor import DoctorScreen

    app.push_screen(DoctorScreen())


def _themes(app: TuneApp) -> Iterator[Command]:
    for name in THEMES:
        if name != app.theme:
            yield Command("theme", name, partial(_take_theme, app, name))


def _take_theme(app: TuneApp, name: str) -> None:
    """Change the colours now and for later."""
    app.theme = name
    _keep(app, "theme", name, f"The theme is {name}, now and from now on.")


def _mouse(app: TuneApp) -> Iterator[Command]:
    verb = "leave it to the terminal, to select text" if app.look.mouse else "take clicks"
    kept = "It holds from the next start."
    keep = partial(_keep, app, "mouse", not app.look.mouse, kept)
    yield Command("mouse", f"{verb} (from the next start)", keep)


def _keep(app: TuneApp, name: str, value: str | bool, told: str) -> None:
    try:
        path = save_preference(name, value)
    except TuneError as error:
        app.tell(str(error))
    else:
        app.tell(f"{told} Kept in {tilde(path)}.")


def found(all_commands: Sequence[Command], query: str) -> list[tuple[Command, Content]]:
    """Commands whose name holds every word of the query; where none does, those that hold its letters in
    their order. The best stand first; with each its name, in which what was found is marked.
    """
    words = query.lower().split()
    if not words:
        return [(command, Content(command.name)) for command in all_commands]
    whole = [command for command in all_commands if all(word in command.name.lower() for word in words)]
    if whole:
        whole.sort(key=lambda command: query.lower().strip() not in command.name.lower())
        return [(command, _marked(command.name, words)) for command in whole]
    matcher = Matcher(query)
    scores = [(matcher.match(command.name), command) for command in all_commands]
    best = sorted((pair for pair in scores if pair[0]), key=lambda pair: -pair[0])
    return [(command, matcher.highlight(command.name)) for _, command in best]


def _marked(name: str, words: Sequence[str]) -> Content:
    content = Content(name)
    for word in words:
        start = name.lower().find(word)
        content = content.stylize("bold underline", start, start + len(word))
    return content


class PaletteScreen(BoxScreen[Command]):
    """A line to type in and the commands that fit it; Enter does the one under the cursor."""

    DEFAULT_CSS = """
    PaletteScreen { align: center top; }
    PaletteScreen #box { margin-top: 2; height: auto; max-height: 80%; }
    PaletteScreen #commands { height: auto; max-height: 10; margin-top: 1; border: none; padding: 0;
        background: $surface; scrollbar-size-vertical: 1; text-wrap: nowrap; }
    PaletteScreen.-tall #commands { max-height: 22; }
    PaletteScreen.-short #commands { max-height: 8; margin-top: 0; }
    PaletteScreen.-short #box { margin-top: 0; }
    PaletteScreen #commands > .option-list--option { padding: 0; }
    PaletteScreen #commands > .option-list--option-highlighted {
        background: $primary 40%; color: $foreground; text-style: none;
    }
    PaletteScreen #commands:ansi { background: ansi_default; }
    PaletteScreen #commands:ansi > .option-list--option-highlighted {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    PaletteScreen #commands:nocolor > .option-list--option-highlighted { text-style: reverse; }
    """
    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Commands")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Do it", priority=True),
        Binding("down", "move(1)", "Choose"),
        Binding("up", "move(-1)", "Choose", show=False),
        Binding("pagedown", "move(8)", "Page down", show=False),
        Binding("pageup", "move(-8)", "Page up", show=False),
    ]

    def __init__(self, all_commands: Sequence[Command]) -> None:
        super().__init__("Commands")
        self._all = all_commands
        self._shown: list[Command] = []

    def content(self) -> ComposeResult:
        """The line and the list."""
        yield TextField(placeholder="Type a part of what you want", id="query", max_length=60)
        commands = Options(id="commands", markup=False, compact=True)
        commands.can_focus = False
        yield commands

    def on_mount(self) -> None:
        """All of them."""
        self.call_after_refresh(self._show, "")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, query: str) -> None:
        listed = self.query_one("#commands", OptionList)
        pairs = found(self._all, query)
        self._shown = [command for command, _ in pairs]
        width = max(self.query_one("#query").size.width - 2, 20)
        listed.clear_options()
        lines = [Option(_line(name, command.keys, width)) for command, name in pairs]
        listed.add_options(lines or [Option("Nothing is called that.", disabled=True)])
        listed.highlighted = 0 if self._shown else None

    def action_move(self, by: int) -> None:
        """The command above or below."""
        listed = self.query_one("#commands", OptionList)
        if self._shown:
            listed.highlighted = min(max((listed.highlighted or 0) + by, 0), len(self._shown) - 1)

    @on(OptionList.OptionSelected)
    def action_take(self) -> None:
        """Close, then do it."""
        index = self.query_one("#commands", OptionList).highlighted
        if index is not None and index < len(self._shown):
            self.dismiss(self._shown[index])


def _line(name: Content, keys: str, width: int) -> Content:
    """The name at the left, its keys at the right."""
    room = width - len(keys) - 1
    name = name.truncate(room, ellipsis=True) if name.cell_length > room else name
    return Content.assemble(name, " " * max(width - name.cell_length - len(keys), 1), (keys, "$text-muted"))
