"""What all steps share: the frame around a step, and the keys that go on and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from ollama_tune.core.text import visible
from ollama_tune.tui.explaining import ExplainedScreen, Topic, size_classes
from ollama_tune.tui.state import STEPS, Facts, Step
from ollama_tune.tui.widgets.keybar import KeyBar
from ollama_tune.tui.widgets.steps import StepHeader, StepList

if TYPE_CHECKING:
    from ollama_tune.tui.app import TuneApp

TOO_SMALL = "This window is too small: make it at least 60 columns wide and 18 lines high."


class FramedScreen(ExplainedScreen[None]):
    """A screen with the header line, the key line, and one sentence where the window is too small.

    A subclass fills `body()`. Facts arrive by `facts_changed`, once at the start and at every change.
    """

    TITLE_TEXT: ClassVar[str] = ""

    @property
    def tune(self) -> TuneApp:
        """The application, typed."""
        return cast("TuneApp", self.app)

    def compose(self) -> ComposeResult:
        """Header, body, keys, and the sentence that covers all when there is no room."""
        self.add_class(*size_classes(self.app))
        yield self.header()
        with Horizontal(id="frame"):
            yield from self.side()
            with Vertical(id="page"):
                with Vertical(id="body"):
                    yield from self.body()
                yield Static(id="notice", markup=False)
        yield KeyBar()
        yield Static(TOO_SMALL, id="too-small")

    def header(self) -> StepHeader:
        """The line at the top."""
        return StepHeader(None, self.TITLE_TEXT, self.about())

    def about(self) -> str:
        """What the screen is about, shown at the right of the header; the text must be harmless."""
        return ""

    def side(self) -> ComposeResult:
        """What stands at the left."""
        yield from ()

    def body(self) -> ComposeResult:
        """The screen's own widgets."""
        yield from ()

    def on_mount(self) -> None:
        """Follow the facts."""
        self.watch(self.tune, "facts", self._watch_facts)

    def _watch_facts(self, facts: Facts) -> None:
        if self.is_running and self.is_current:
            self.facts_changed(facts)
            self.refresh_bindings()

    def on_screen_resume(self) -> None:
        """A screen that was covered missed the facts of that time."""
        self._watch_facts(self.tune.facts)

    def facts_changed(self, facts: Facts) -> None:
        """Show what is known now; called in the screen's own time, never from a thread."""

    def say(self, sentence: str) -> None:
        """Show one sentence above the keys; empty takes it away. Control characters become visible."""
        notice = self.query_one("#notice", Static)
        notice.update(visible(sentence))
        notice.display = bool(sentence)

    def dims(self, action: str) -> bool:
        """True where the key bar shows the action dimmed, though the key still answers."""
        return False

    def screen_topic(self) -> Topic:
        """The help of the screen as a whole."""
        return "screens", self.TITLE_TEXT


class StepScreen(FramedScreen):
    """One step of the wizard; Enter goes on, Esc goes back, in every step.

    `obstacle` says in a sentence why going on is not possible now: Next is then dimmed and Enter
    shows the sentence. `leaving` is called before the step is left in either direction.
    """

    STEP: ClassVar[int]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "Next", priority=True),
        Binding("escape", "back", "Back"),
    ]

    _told = ""

    @property
    def step(self) -> Step:
        """Which of the nine this is."""
        return STEPS[self.STEP - 1]

    def header(self) -> StepHeader:
        """`Step n of 9` and the title."""
        return StepHeader(self.STEP, self.step.title, self.about())

    def side(self) -> ComposeResult:
        """The list of steps."""
        yield StepList(self.STEP)

    def obstacle(self) -> str:
        """Why Next is not possible now; empty when it is."""
        return ""

    def _watch_facts(self, facts: Facts) -> None:
        super()._watch_facts(facts)
        self.tell_again()

    def tell_again(self) -> None:
        """What was said against going on may not hold any more."""
        if self._told and self.is_running:
            self._told = self.obstacle()
            self.say(self._told)

    def leaving(self) -> None:
        """Take over what was typed; nothing to do by default."""

    def screen_topic(self) -> Topic:
        """The help of the step."""
        return "screens", self.step.title

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is no Back on the first step."""
        return not (action == "back" and self.STEP == 1)

    def dims(self, action: str) -> bool:
        """Next is dimmed, not hidden, where there is an obstacle."""
        return action == "next" and bool(self.obstacle())

    async def action_next(self) -> None:
        """Go on to the step after this one, or say why that is not possible."""
        self.leaving()
        self._told = self.obstacle()
        self.say(self._told)
        if not self._told:
            await self.tune.go_on(self)

    async def action_back(self) -> None:
        """Go back to the step before this one; answers stay."""
        self.leaving()
        await self.tune.go_back(self)
