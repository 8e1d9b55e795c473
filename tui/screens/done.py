"""Step 9: how to talk to the model, what it learned, where everything is, and what can be done next."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.exporting import use_and_share, without_export
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.run_screen import RunScreen
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.bar import level

SAMPLES = 3
BAR = 20
LABEL = 13
ASK = "Ask it, for example: "
REPORT = "verification.json"
COMMANDS = "commands.txt"
ELSEWHERE = "copy {}/ there, and use its Modelfile"


class DoneScreen(RunScreen):
    """The end, with the next step: the command to type."""

    STEP = 9
    CSS_PATH = "done.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy", "Copy the command"),
        Binding("t", "again", "Train again"),
        Binding("n", "new_run", "New run"),
        Binding("l", "runs", "All runs"),
    ]

    @cached_property
    def _obstacle(self) -> str:
        """Why there can be no export; empty where there can be one."""
        return export_obstacle(self.folder.settings())

    def body(self) -> ComposeResult:
        """What to type, then what changed, then where it is; it scrolls where the window is low."""
        with VerticalScroll(id="page-of-results"):
            yield Static(id="headline", markup=False)
            yield Static(id="commands", markup=False)
            yield Static(id="ask", markup=False)
            yield Static(id="share", markup=False)
            yield Static("Where everything is", classes="heading")
            yield Static(id="places", markup=False)
            yield Static("What it learned", classes="heading")
            yield Static(id="learned", markup=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is nothing after the last step, and nothing to copy before an export."""
        if action == "next":
            return False
        if action == "copy":
            return bool(self.commands())
        return super().check_action(action, parameters)

    def commands(self) -> list[str]:
        """What to type now, as the export left it, or where there can be none; nothing before an export."""
        done = self.view.done.get("export")
        if done is None and self._obstacle:
            return without_export(self.folder)
        name = done.get("ollama_name") if done is not None else None
        return use_and_share(self._left())[0] or ([f"ollama run {name}"] if name else [])

    def _left(self) -> list[str]:
        done = self.view.done.get("export")
        return [str(command) for command in done.get("commands") or []] if done is not None else []

    def show_run(self) -> None:
        """Everything; nothing here changes while it is looked at, except after another export."""
        commands = self.commands()
        self.tell("#headline", self._headline(), layout=True)
        self.tell("#commands", "\n".join(visible(command) for command in commands), layout=True)
        self.query_one("#commands").display = bool(commands)
        self._show_question(bool(commands))
        share = [visible(command) for command in use_and_share(self._left())[1]]
        self.tell("#share", Content.styled(f"To share it: {'; '.join(share)}", "dim"), layout=True)
        self.query_one("#share").display = bool(share)
        room = self.query_one("#page-of-results").size.width - LABEL - 2
        self.tell("#learned", learned(self.view, max(room, 30)), layout=True)
        self.tell("#places", self._places(), layout=True)

    def _show_question(self, ready: bool) -> None:
        """A question that it has learned the likes of, to begin with."""
        question = next((sample.prompt for sample in self.view.samples.values()), "")
        line, room = self.query_one("#ask", Static), self.query_one("#page-of-results").size.width
        line.display = ready and bool(question)
        words = one_line(question, max(room - len(ASK) - 2, 20))
        self.tell("#ask", Content.assemble((ASK, "dim"), words))

    def on_resize(self) -> None:
        """Answers are cut at the width of the window."""
        self.call_after_refresh(self.show_run)

    def _headline(self) -> Content:
        done = self.view.done.get("export")
        if done is None:
            waits = "Training is done; there is no file for Ollama yet. Esc goes back to Export."
            return Content(self._obstacle or waits)
        name = done.get("ollama_name")
        if name:
            words = f"{one_line(str(name).removesuffix(':latest'), 60)} is in Ollama. Talk to it with:"
            return Content.assemble(("✓ ", "bold $text-success"), (words, "bold"))
        words = "The model file is ready. Where Ollama runs, type:"
        return Content.assemble(("✓ ", "bold $text-success"), (words, "bold"))

    def _places(self) -> Content:
        """The folder in full, and what is in it by names that stay readable in a narrow window."""
        places = [("folder", tilde(self.folder.path))]
        if self.view.verification is not None:
            file = one_line(self.view.verification.file, 80)
            places.append(("model file", f"{self.folder.export.name}/{file}"))
            places.append(("proof", f"{self.folder.export.name}/{REPORT}"))
        done = self.view.done.get("export")
        if done is not None and not done.get("ollama_name"):
            places.append(("elsewhere", ELSEWHERE.format(self.folder.export.name)))
        tuned = self.folder.tuned or self.folder.adapter
        places.append(("trained part", f"{tuned.name}/ (the {tuned.name})"))
        places.append(("settings", f"{self.folder.settings_path.name}: `ollama-tune run` does it again"))
        lines = [Content.assemble((f"{name:<{LABEL}}", "dim"), place) for name, place in places]
        return Content("\n").join(lines)

    def action_copy(self) -> None:
        """Send the command to the terminal's clipboard; nobody knows if it arrives, so write it too."""
        text = "\n".join(self.commands()) + "\n"
        self.app.copy_to_clipboard(text.rstrip("\n"))
        path = (self.folder.export if self.folder.export.is_dir() else self.folder.path) / COMMANDS
        try:
            write_atomic(path, text)
        except OSError as error:
            self.say(f"Sent to your terminal's clipboard. It could not be written: {error.strerror}.")
        else:
            self.say(f"Sent to your terminal's clipboard; also in {tilde(path)}")

    async def action_again(self) -> None:
        """The wizard at Settings with everything as in this run."""
        from ollama_tune.tui.duplicate import keep_answers
        from ollama_tune.tui.state import answers_of

        try:
            answers = answers_of(self.folder.settings())
        except TuneError as error:
            self.say(str(error))
            return
        keep_answers(self.tune.answers, answers)
        await self.tune.open_wizard(answers)

    async def action_new_run(self) -> None:
        """The wizard from the start."""
        await self.tune.start_over()

    async def action_runs(self) -> None:
        """The list of runs."""
        await self.app.push_screen(self.tune.runs_screen())


def learned(view: RunView, width: int) -> Content:
    """The rates before and after as bars, then a few answers of both models."""
    lines: list[Content] = []
    if view.before is not None and view.after is not None:
        words = f"of {view.answered} held-out answers exactly right"
        for name, share in (("before", view.before), ("after", view.after)):
            figure = f" {share:>6.1%} {words}"
            lines.append(Content.assemble((f"{name:<{LABEL}}", "dim"), level(share, BAR), figure))
    if view.scored is not None:
        best = f"{view.scored.words(view.scored.best)} at step {view.scored.best_step:,}, which is kept"
        lines.append(Content.assemble((f"{view.scored.title:<{LABEL}}", "dim"), one_line(best, width)))
    if view.preferred is not None:
        words = f"{view.preferred.words}: the better answer gained more"
        lines.append(Content.assemble((f"{'preferred':<{LABEL}}", "dim"), one_line(words, width)))
    for sample in list(view.samples.values())[:SAMPLES]:
        lines += _sample(sample, width)
    return Content("\n").join(
        lines or [Content.styled("Nothing was measured: no rows were held out.", "dim")]
    )


def _sample(sample: Sample, width: int) -> list[Content]:
    lines = [Content.assemble((f"{'question':<{LABEL}}", "dim"), (one_line(sample.prompt, width), "bold"))]
    for name, answer in (("before", sample.base), ("after", sample.tuned)):
        if answer is not None:
            lines.append(
                Content.assemble(
                    (f"{name:<{LABEL - 2}}", "dim"),
                    verdict(answer, sample.reference),
                    one_line(answer, width) or "(nothing)",
                )
            )
    return lines


def verdict(answer: str, reference: str) -> Content:
    """`✓` where the answer is the reference, else `✗`."""
    if exact_match(answer, reference):
        return Content.styled("✓ ", "bold $text-success")
    return Content.styled("✗ ", "bold $text-error")
