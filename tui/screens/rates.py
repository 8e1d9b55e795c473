"""Three learning rates tried on short runs: what it costs, how far they are, and which to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import visible
from ollama_tune.tui.rates import (
    ABOUT,
    LETTERS,
    cost_line,
    outcome_line,
    search_of,
    seconds_of,
    table_lines,
    waiting_line,
)
from ollama_tune.tui.widgets.modal import BoxScreen
from ollama_tune.tui.widgets.overlay import Line, Overlay

if TYPE_CHECKING:
    from ollama_tune.core.runs.rates import Outcome, RateSearch, Tried
    from ollama_tune.tui.app import TuneApp
    from ollama_tune.tui.screens.base import FramedScreen

RATE = "training.learning_rate"
EVERY = 1.0
"""Seconds between two looks at the logs."""
STARTS = "Enter starts them in the background: you can close this window, and even leave."
GOES_ON = "Enter goes on with what is left of them."
GOING = "They go on in the background when you close this window; s ends them."
FAILED = "None of them came to its end; ollama-tune sweep run.yaml --rates 3 says more."


def open_rates(app: TuneApp, took: Callable[[float], object] = lambda _rate: None) -> None:
    """Show the search that belongs to the plan; the rate that is taken is set as if it were typed.

    `took` is told of it first. Where there can be no search the screen says why.
    """
    facts = app.facts
    screen = cast("FramedScreen", app.screen)
    if facts.plan is None or facts.spec is None or facts.lengths is None or facts.machine is None:
        screen.say("The plan is still being made.")
        return
    try:
        search = search_of(facts.plan, facts.recommended)
    except TuneError as error:
        screen.say(str(error))
        return
    seconds, spread = seconds_of(search, facts.spec, facts.lengths, facts.machine)

    def closed(rate: float | None) -> None:
        if rate is None:
            screen.say("The learning rates go on being tried." if search.going else "")
            return
        took(rate)
        if rate != search.middle:
            app.set_value(RATE, rate)
        elif RATE in app.answers.changed:
            app.restore_value(RATE)
        screen.say(f"The learning rate is {rate:g} now.")

    app.push_screen(RatesScreen(search, seconds, spread), closed)


class RatesScreen(BoxScreen[float]):
    """Starts the search, follows it, and gives the rate that was taken; Esc gives none and ends nothing."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Learning rates")
    DEFAULT_CSS = """
    RatesScreen #curves { height: 6; display: none; margin-bottom: 1; }
    RatesScreen.-tall #curves { height: 10; }
    RatesScreen #table { display: none; text-wrap: nowrap; }
    RatesScreen.-begun #about { display: none; }
    RatesScreen.-begun #curves, RatesScreen.-begun #table { display: block; }
    RatesScreen.-begun.-short #curves { display: none; }
    RatesScreen #now { margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Try them", priority=True),
        Binding("enter", "take", "Take the best", priority=True),
        Binding("s", "stop", "Stop"),
    ]

    @dataclass
    class Seen(Message):
        """How far the rates are, whether somebody tries them, and what those wait for."""

        tried: tuple[Tried, ...]
        going: bool
        waits_for: str

    @dataclass
    class Failed(Message):
        """The search could not be started."""

        error: TuneError

    def __init__(self, search: RateSearch, seconds: float, spread: float) -> None:
        super().__init__("Try three learning rates")
        self._search, self._cost = search, cost_line(search, seconds, spread)
        self._going = self._begun = False
        self._found: Outcome | None = None

    def content(self) -> ComposeResult:
        """What it is and costs, the curves, the table, and what Enter does."""
        yield Static(f"{ABOUT} {self._cost}", id="about", markup=False)
        yield Overlay(id="curves")
        yield Static(id="table", markup=False)
        yield Static("Looking …", id="now", markup=False)

    def on_mount(self) -> None:
        """Look now and every second: a search of before may be going, or over."""
        self._look()
        self.set_interval(EVERY, self._look)

    @work(thread=True, exclusive=True, exit_on_error=False, group="look")
    def _look(self) -> None:
        from ollama_tune.core.runs.rates import look

        going, waits_for = self._search.going, self._search.waits_for
        self.post_message(self.Seen(look(self._search), going, waits_for))

    @work(thread=True, exclusive=True, exit_on_error=False, group="begin")
    def _begin(self) -> None:
        from ollama_tune.core.runs.rates import begin

        try:
            begin(self._search)
        except TuneError as error:
            self.post_message(self.Failed(error))
        self._begun = False

    @on(Seen)
    def _seen(self, message: Seen) -> None:
        from ollama_tune.core.runs.rates import outcome

        self._going, self._found = message.going, outcome(self._search, message.tried)
        lines = [
            Line(letter, point.train, [pair for pair in point.held_out if pair[0]])
            for letter, point in zip(LETTERS, message.tried, strict=False)
        ]
        self.set_class(self._going or any(point.step or point.over for point in message.tried), "-begun")
        self.query_one(Overlay).show(lines, lambda step: f"step {step:,.0f}")
        table = table_lines(self._search, message.tried, self._found)
        self.query_one("#table", Static).update("\n".join(table))
        self._say(self._words(message.tried, message.waits_for))
        self.refresh_bindings()

    def _words(self, tried: tuple[Tried, ...], waits_for: str) -> str:
        """What came of it, or what Enter does."""
        if self._found is not None:
            return f"{outcome_line(self._found)} Enter takes it."
        if waits_for:
            return f"{waiting_line(waits_for)} s ends them."
        if self._going or self._begun:
            return GOING
        if all(point.over for point in tried):
            return FAILED
        return GOES_ON if any(point.step for point in tried) else STARTS

    def _say(self, words: str) -> None:
        self.query_one("#now", Static).update(visible(words))

    @on(Failed)
    def _failed(self, message: Failed) -> None:
        self._say(f"✗ {message.error}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter starts or takes, as far as there is something to; `s` ends what goes on."""
        if action == "start":
            return self._found is None and not self._going and not self._begun
        if action == "take":
            return self._found is not None
        if action == "stop":
            return self._going
        return super().check_action(action, parameters)

    def action_start(self) -> None:
        """In the background; what was tried before is not tried again."""
        self._begun = True
        self._say(GOING)
        self._begin()

    def action_take(self) -> None:
        """Close with the best rate."""
        self.dismiss(self._found.rate if self._found is not None else None)

    def action_stop(self) -> None:
        """End the run that goes on; what was tried is kept."""
        from ollama_tune.core.runs.rates import end

        end(self._search)
        self._say("Stopping after this step …")
