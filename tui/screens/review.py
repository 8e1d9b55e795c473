"""Step 5: the whole run on one page; Enter starts it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ollama_tune.core.paths import state_dir
from ollama_tune.core.text import human_bytes, visible
from ollama_tune.tui.run_file import free_place, started_with
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.confirm import TypedConfirmScreen
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.membar import MemoryBar
from ollama_tune.tui.widgets.page import BLANK, Line, Page, heading, row, sign
from ollama_tune.tui.widgets.review_lines import cost_lines, more_lines, place_lines, what_lines

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.plan.values import Plan
    from ollama_tune.core.runs.folder import RunFolder

LOW = 24
"""Lines of a window below which the page is drawn closer together."""
SHOWS = "Enter shows it, n starts another."


class ReviewScreen(StepScreen):
    """What will be done, with sizes, places and minutes, and the command that does the same.

    The settings are written to a `run.yaml` in the state folder while this page is shown, so that the
    command works as it stands; `w` writes a copy into the current folder.
    """

    STEP = 5
    CSS_PATH = "review.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "Start", priority=True),
        Binding("enter", "show", "Show the run", priority=True),
        Binding("f", "take(1)", "Make it fit"),
        *(Binding(str(number), f"take({number})", f"Offer {number}", show=False) for number in range(1, 6)),
        Binding("n", "anew", "Start anew"),
        Binding("w", "write", "Write run.yaml here"),
        Binding("c", "copy", "Copy command"),
        Binding("l", "rates", "Try learning rates"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._file: Path | None = None
        self._plan: Plan | None = None
        self._started: RunFolder | None = None

    def body(self) -> ComposeResult:
        """One page, scrolled where the window is low."""
        with VerticalScroll(id="review"):
            yield Page(id="job")
            yield MemoryBar(id="memory")
            yield Page(id="summary")

    def on_mount(self) -> None:
        """Whether a logout would end the run is asked while the page is read."""
        super().on_mount()
        self.tune.read_logout()

    def facts_changed(self, facts: Facts) -> None:
        """Show the plan; write its run.yaml when it is a new one."""
        plan = facts.plan
        job, bar = self.query_one("#job", Page), self.query_one("#memory", MemoryBar)
        bar.display = plan is not None
        if plan is None:
            error = facts.plan_error or facts.model_error or facts.data_error
            waiting = Content(visible(next(iter(facts.busy.values()), "")))
            job.show([Line(sentence(error) if error else waiting)])
            self.query_one("#summary", Page).show([])
            return
        if plan is not self._plan:
            self._plan = plan
            self._file = self._save(state_dir() / "run.yaml", plan.settings)
        self._started = started_with(self.tune.answers.run, plan.settings)
        self.call_later(self.tune.confirm_plan)
        bar.show(plan, "simulating …" if "simulation" in facts.busy else "")
        self._show_plan(plan, facts)
        self.say(str(facts.plan_error) if facts.plan_error else facts.busy.get("start", ""))

    def on_resize(self) -> None:
        """A low window has the same lines closer together."""
        if self._plan is not None:
            self._show_plan(self._plan, self.tune.facts)

    def _show_plan(self, plan: Plan, facts: Facts) -> None:
        """The lines before the memory bar, and those after it."""
        job = [*self._already(), *what_lines(plan, facts), BLANK, heading("Cost")]
        self.query_one("#job", Page).show(self._fitted(job))
        self.query_one("#summary", Page).show(self._fitted(self._lines(plan, facts)))

    def _already(self) -> list[Line]:
        if self._started is None:
            return []
        return [sign("▶", f"Started already as {visible(self._started.name)}; {SHOWS}"), BLANK]

    def _fitted(self, lines: list[Line]) -> list[Line]:
        """In a low window no headings and no empty lines, so that what matters is in sight at once."""
        low = self.app.size.height < LOW
        return [line for line in lines if line.indent] if low else lines

    def _lines(self, plan: Plan, facts: Facts) -> list[Line]:
        command = [
            row("Command", Content.styled(visible(self.command()), "bold")),
            row("", Content.styled("does the same without the wizard", "dim")),
        ]
        title, *place = place_lines(plan, facts)
        low = self.app.size.height < LOW
        where = [*command, *place] if low else [*place, *command]
        return [*cost_lines(plan, facts), BLANK, title, *where, BLANK, *more_lines(plan)]

    def command(self) -> str:
        """The command that does the same; empty when run.yaml could not be written."""
        if self._file is None:
            return ""
        place = tilde(self._file)
        safe = place.removeprefix("~/")
        return f"ollama-tune run {place if shlex.quote(safe) == safe else shlex.quote(str(self._file))}"

    def _save(self, path: Path, settings: Settings) -> Path | None:
        try:
            settings.save(path)
        except OSError as error:
            self.say(f"{path} cannot be written: {error.strerror}.")
            return None
        return path

    def obstacle(self) -> str:
        """No plan, one that is not yet or never will be that of the values that were typed last, or one that
        is being started."""
        facts = self.tune.facts
        if "start" in facts.busy:
            return facts.busy["start"]
        if facts.plan_error is not None:
            return str(facts.plan_error)
        if facts.plan is None or "plan" in facts.busy:
            return "The plan is still being made." if facts.busy else "There is no plan: see above."
        return ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`f` and the numbers only where there are offers, `n` only where it was started already."""
        if action == "take":
            return bool(self._plan and len(self._plan.offers) >= int(str(parameters[0])))
        if action in ("anew", "show"):
            return self._started is not None
        if action == "next":
            return self._started is None
        return super().check_action(action, parameters)

    async def action_show(self) -> None:
        """Show the run that was started with these answers."""
        if self._started is not None:
            await self.tune.open_run(self._started)

    async def action_next(self) -> None:
        """Start."""
        self.action_anew()

    def action_anew(self) -> None:
        """Start; a plan that does not fit only after a typed yes."""
        obstacle, plan = self.obstacle(), self.tune.facts.plan
        self.say(obstacle)
        if obstacle or plan is None:
            return
        if plan.memory.fits:
            self.tune.start_run(plan.settings)
            return
        question = TypedConfirmScreen("This plan does not fit", _doubt(plan))
        self.app.push_screen(question, self._answered)

    def _answered(self, yes: bool | None) -> None:
        plan = self.tune.facts.plan
        if yes and plan is not None:
            self.tune.start_run(plan.settings)

    def action_take(self, number: int) -> None:
        """Take an offer, counted from 1: the nearest plans that fit."""
        if self._plan is not None:
            self.tune.take_offer(self._plan.offers[number - 1])

    def action_write(self) -> None:
        """Write run.yaml into the current folder, beside one that is there already."""
        if self._plan is None:
            return
        path = free_place()
        written = self._save(path, self._plan.settings)
        if written is not None:
            self._file = written
            self._show_plan(self._plan, self.tune.facts)
            self.say(f"Written. Run it with: {self.command()}")

    def action_rates(self) -> None:
        """Try three learning rates on short runs, in a window."""
        from ollama_tune.tui.screens.rates import open_rates

        open_rates(self.tune)

    def action_copy(self) -> None:
        """Send the command to the clipboard; whether the terminal takes it cannot be known."""
        self.app.copy_to_clipboard(self.command())
        self.say("Sent to your terminal's clipboard; not every terminal takes it.")


def _doubt(plan: Plan) -> str:
    needed, free = human_bytes(plan.memory.needed), human_bytes(plan.memory.free)
    return (
        f"It needs about {needed} and {free} are free. The run will most likely end with an "
        "out-of-memory error after some minutes; nothing else on this machine is harmed."
    )
