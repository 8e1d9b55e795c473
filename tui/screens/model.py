"""Step 2: which base model is tuned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ollama_tune.core.models.values import ModelChoice
from ollama_tune.core.text import human_bytes, human_count, one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import BUNDLED, Facts, WizardState
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.form import TextField

if TYPE_CHECKING:
    from ollama_tune.core.models.values import ModelSpec

BUNDLED_CHOICE = ModelChoice(BUNDLED, BUNDLED, BUNDLED, None, "")
HINT = "or type a folder, or a hub id such as org/name"


class ModelScreen(StepScreen):
    """A list of what is on this box, a line for anything else, and what the chosen one is.

    The highlighted model is the chosen one. A typed one is read on Enter or when the line is left;
    its error stands below the line.
    """

    STEP = 2
    CSS_PATH = "model.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "app.focus_next", "List / line")]

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[str] = []
        self._filled: tuple[tuple[ModelChoice, ...], str] | None = None

    def body(self) -> ComposeResult:
        """List, line, details."""
        yield OptionList(id="models", markup=False, compact=True)
        yield TextField(id="source", placeholder=HINT)
        yield Static(id="source-state", markup=False)
        with VerticalScroll(id="details"):
            yield Static(id="spec", markup=False)

    def on_mount(self) -> None:
        """The line holds a model that was typed before; the training libraries warm up from here on."""
        super().on_mount()
        self.call_after_refresh(self.tune.warm_up)

    def facts_changed(self, facts: Facts) -> None:
        """List, state of the reading, and details."""
        self._fill(facts)
        listed = self.tune.answers.model in self._sources
        line = self.query_one("#source", TextField)
        if not listed and not line.has_focus and not line.value:
            line.value = _shown(self.tune.answers)
        self.query_one("#source-state", Static).update(self._state(facts))
        details = describe(facts.spec) if facts.spec else Content("")
        self.query_one("#spec", Static).update(details)

    def _state(self, facts: Facts) -> Content:
        if "model" in facts.busy:
            return Content(visible(facts.busy["model"]))
        if facts.model_error is not None:
            return sentence(facts.model_error)
        if facts.spec is None:
            return Content("")
        return Content.assemble(
            ("✓ ", "$text-success bold"), f"{one_line(facts.spec.name, 50)} can be tuned."
        )

    def _fill(self, facts: Facts) -> None:
        choices, chosen = facts.models or (BUNDLED_CHOICE,), self.tune.answers.model
        if (choices, chosen) == self._filled:
            return
        models = self.query_one("#models", OptionList)
        lines = [_line(choice, choice.source == chosen) for choice in choices]
        if self._filled and choices == self._filled[0]:
            for index, line in enumerate(lines):
                models.replace_option_prompt_at_index(index, line)
        else:
            self._list(models, [choice.source for choice in choices], lines)
        self._filled = choices, chosen

    def _list(self, models: OptionList, sources: list[str], lines: list[Content]) -> None:
        self._sources = sources
        chosen = self.tune.answers.model
        with self.prevent(OptionList.OptionHighlighted):
            models.clear_options()
            models.add_options(Option(line) for line in lines)
            models.highlighted = sources.index(chosen) if chosen in sources else None

    @on(OptionList.OptionHighlighted, "#models")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        with self.prevent(TextField.Changed):
            self.query_one("#source", TextField).value = ""
        self.tune.choose_model(self._sources[event.option_index])

    def _typed(self) -> tuple[str, str | None] | None:
        typed = self.query_one("#source", TextField).value.strip()
        return _split(typed) if typed else None

    def leaving(self) -> None:
        """Take what was typed."""
        self._take_typed()

    def _take_typed(self) -> bool:
        """Read what was typed, when it is new; True when it is being read now."""
        typed = self._typed()
        if typed is None or typed == (self.tune.answers.model, self.tune.answers.revision):
            return False
        self.query_one("#models", OptionList).highlighted = None
        self.tune.choose_model(*typed)
        return True

    @on(TextField.Blurred, "#source")
    def _left_line(self) -> None:
        self.leaving()

    def obstacle(self) -> str:
        """A model that cannot be read; one that is still being read may be read on."""
        return "Choose another model first: see above." if self.tune.facts.model_error else ""

    async def action_next(self) -> None:
        """A typed model is read and shown first, and again after an error; the next Enter goes on."""
        if self._take_typed():
            return
        answers = self.tune.answers
        if self.tune.facts.model_error is not None:
            self.tune.choose_model(answers.model, answers.revision)
        else:
            await super().action_next()


def _shown(answers: WizardState) -> str:
    return tilde(answers.model) + (f"@{visible(answers.revision)}" if answers.revision else "")


def _split(typed: str) -> tuple[str, str | None]:
    """A folder, or a hub id with or without `@revision`."""
    folder = Path(typed).expanduser()
    if typed.startswith(("~", "/", ".")) or folder.exists():
        return str(folder.absolute()), None
    source, _, revision = typed.partition("@")
    return source.strip(), revision.strip() or None


def _line(choice: ModelChoice, chosen: bool) -> Content:
    size = f"  {human_bytes(choice.size)}" if choice.size else ""
    note = "  " + one_line(choice.note, 60) if choice.note else ""
    mark = ("● ", "$text-accent") if chosen else ("○ ", "dim")
    return Content.assemble(mark, one_line(choice.name, 44), (size, "dim"), (note, "dim"))


def describe(spec: ModelSpec) -> Content:
    """A base model in lines of label and figure."""
    size = f"{human_bytes(spec.weight_bytes)} in {visible(spec.weight_dtype)}"
    shape = f"{spec.layers} layers, width {spec.hidden_size:,}, {spec.vocabulary_size:,} tokens known"
    template = "yes" if spec.chat_template else "no: this is no chat model"
    rows = [
        ("Parameters", f"{human_count(spec.parameters)}, {size}"),
        ("Kind", f"{one_line(spec.architecture, 40)}: {shape}"),
        ("Context", f"{spec.context_length:,} tokens"),
        ("Chat form", template),
        ("Licence", one_line(spec.licence, 60) or "not stated"),
        ("Export", one_line(spec.export_reason, 200) or "✓ can be exported to Ollama"),
        ("Place", "comes with ollama-tune" if spec.source == BUNDLED else tilde(spec.folder)),
    ]
    return Content("\n").join(Content.assemble((f"{label:<12}", "dim"), text) for label, text in rows)
