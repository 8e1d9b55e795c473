"""Step 5: the whole run on one page; Enter starts it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import runs_dir, state_dir
from ollama_tune.core.text import human_bytes, human_count, human_seconds, one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.confirm import TypedConfirmScreen
from ollama_tune.tui.widgets.data_summary import reading_words
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.membar import MemoryBar, duration
from ollama_tune.tui.widgets.page import BLANK, Line, Page, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings, TrainingSettings
    from ollama_tune.core.plan.values import Plan
    from ollama_tune.core.runs.folder import RunFolder


class ReviewScreen(StepScreen):
    """What will be done, with sizes, places and minutes, and the command that does the same.

    The settings are written to a `run.yaml` in the state folder while this page is shown, so that the
    command works as it stands; `w` writes a copy into the current folder.
    """

    STEP = 5
    CSS_PATH = "review.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "Start", priority=True),
        Binding("f", "take(1)", "Make it fit"),
        *(Binding(str(number), f"take({number})", f"Offer {number}", show=False) for number in range(1, 6)),
        Binding("n", "anew", "Start anew"),
        Binding("w", "write", "Write run.yaml here"),
        Binding("c", "copy", "Copy command"),
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
        self._started = self._same_run(plan.settings)
        self.call_later(self.tune.confirm_plan)
        job.show([*what_lines(plan, facts), BLANK])
        bar.show(plan, "simulating …" if "simulation" in facts.busy else "")
        self.query_one("#summary", Page).show(self._lines(plan, facts))
        self.say(str(facts.plan_error) if facts.plan_error else facts.busy.get("start", ""))

    def _lines(self, plan: Plan, facts: Facts) -> list[Line]:
        lines = list(offer_lines(plan))
        if self._started is not None:
            lines += [sign("▶", f"Started already as {visible(self._started.name)}; Enter shows it."), BLANK]
        lines += cost_lines(plan, facts)
        lines += [row("Command", Content.styled(visible(self.command()), "bold"), 10), BLANK]
        lines += [sign("!", visible(warning)) for warning in plan.warnings]
        return [*lines, *ground_lines(plan)]

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

    def _same_run(self, settings: Settings) -> RunFolder | None:
        """The run that these very answers started, if any; its run.yaml says so."""
        from ollama_tune.core.runs.folder import RunFolder

        name = self.tune.answers.run
        folder = RunFolder(runs_dir() / name) if name else None
        try:
            same = folder is not None and folder.events_path.exists() and folder.settings() == settings
        except TuneError:
            return None
        return folder if same else None

    def obstacle(self) -> str:
        """No plan, or one that is being started."""
        facts = self.tune.facts
        if "start" in facts.busy:
            return facts.busy["start"]
        if facts.plan is None:
            return "The plan is still being made." if facts.busy else "There is no plan: see above."
        return ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`f` and the numbers only where there are offers, `n` only where it was started already."""
        if action == "take":
            return bool(self._plan and len(self._plan.offers) >= int(str(parameters[0])))
        if action == "anew":
            return self._started is not None
        return super().check_action(action, parameters)

    async def action_next(self) -> None:
        """Show the run that was started with these answers, else start one."""
        if self._started is not None:
            await self.tune.open_run(self._started)
        else:
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
        names = ["run.yaml", *(f"run-{number}.yaml" for number in range(2, 1000))]
        path = next(path for name in names if not (path := Path.cwd() / name).exists())
        written = self._save(path, self._plan.settings)
        if written is not None:
            self._file = written
            self.query_one("#summary", Page).show(self._lines(self._plan, self.tune.facts))
            self.say(f"Written: {written}")

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


def what_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Model, data, training and result in words."""
    settings, spec = plan.settings, facts.spec
    training, data = settings.training, settings.data
    parameters = f", {human_count(spec.parameters)} parameters" if spec else ""
    rows = f", {facts.lengths.rows:,} rows" if facts.lengths else ""
    source = "bundled" if data.path == BUNDLED else tilde(data.path)
    held = "4 bit" if training.quantization == "nf4" else "full precision"
    return [
        row("Model", f"{one_line(spec.name if spec else settings.model.source, 80)}{parameters}"),
        row("Data", f"{source}{rows}, {data.validation_split:.0%} of them kept out to measure on"),
        *(row("", words) for words in reading_words(data)),
        row("Training", _schedule(training)),
        row("Adapter", f"LoRA, rank {training.rank}, alpha {training.alpha}; base weights in {held}"),
        row("Result", _result(settings)),
    ]


def _schedule(training: TrainingSettings) -> str:
    a_step = training.batch_size * training.gradient_accumulation_steps
    rate, longest = training.learning_rate, training.sequence_length
    return (
        f"{training.epochs:g} epochs, learning rate {rate:g}, "
        f"{a_step} rows a step of up to {longest:,} tokens"
    )


def _result(settings: Settings) -> str:
    name = settings.export.name
    kind = settings.export.type.upper()
    return f"{visible(name)} in Ollama, as {kind}" if name else "an adapter; nothing is exported"


def cost_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Time and how sure it is, energy, disk and place."""
    work = plan.work
    low, high = human_seconds(work.seconds / work.spread), human_seconds(work.seconds * work.spread)
    energy = "" if work.energy_kwh is None else f"; at most {work.energy_kwh:.2g} kWh on the GPU"
    return [
        row("Time", Content.assemble(duration(work), energy)),
        row("", Content.styled(f"between {low} and {high}: {visible(work.ground)}", "dim")),
        row("Disk", _disk(plan, facts)),
        row("Goes to", f"a new folder in {tilde(runs_dir())}"),
    ]


def _disk(plan: Plan, facts: Facts) -> str:
    work = plan.work
    written = (
        (work.checkpoint_bytes, "for checkpoints"),
        (work.export_bytes, "export"),
        (work.download_bytes, "to download"),
        (work.ollama_bytes, "in Ollama"),
    )
    words = ", ".join(f"{human_bytes(size)} {what}" for size, what in written if size)
    free = f"; {human_bytes(facts.machine.disk.free)} free" if facts.machine else ""
    return f"{words}{free}"


def ground_lines(plan: Plan) -> list[Line]:
    """What the memory's figure and the recommended values rest on."""
    from ollama_tune.core.plan.sources import count_sources

    lines = [row("Chosen", visible(count_sources(plan)))]
    if plan.memory.remark:
        lines.append(row("Memory", visible(f"{plan.memory.method}; {plan.memory.remark}")))
    return lines


def offer_lines(plan: Plan) -> list[Line]:
    """The nearest plans that fit, each with its key."""
    if not plan.offers:
        return []
    lines = [row("Would fit", "press its number (f takes the first)")]
    for number, offer in enumerate(plan.offers, 1):
        needed = human_bytes(offer.memory.needed)
        lines.append(sign(str(number), f"{visible(offer.text)} ({needed})", "$text-accent"))
    return [*lines, BLANK]
