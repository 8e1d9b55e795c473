"""Step 2: which base model is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ollama_tune.core.models.catalogue import find_listed
from ollama_tune.core.models.values import ModelChoice
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import BUNDLED, Facts, WizardState
from ollama_tune.tui.tasks import model_source
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.model_lines import (
    OWN,
    USUAL,
    advice,
    describe,
    describe_listed,
    list_line,
    offered,
)
from ollama_tune.tui.widgets.options import Options
from ollama_tune.tui.widgets.page import Line, Page

if TYPE_CHECKING:
    from ollama_tune.core.models.catalogue import CatalogueModel

BUNDLED_CHOICE = ModelChoice(BUNDLED, BUNDLED, BUNDLED, None, "")
NO_FORM = "A base model: it has no chat form (the marks around questions and answers)."
HINT = "or type a folder, or a hub id such as org/name"


class ModelScreen(StepScreen):
    """A list of what is on this box and of the hub's listed models, a line for anything else, and details.

    The highlighted model is the chosen one; a listed one that is not here yet is read from the hub on Enter.
    A typed one is read on Enter or when the line is left; its error stands below the line.
    """

    STEP = 2
    CSS_PATH = "model.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "app.focus_next", "List / line")]

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[str] = []
        self._filled: object = None
        self._looked: CatalogueModel | None = None

    def body(self) -> ComposeResult:
        """List, recommendation, line, details."""
        yield Options(id="models", markup=False, compact=True)
        yield Static(id="base", markup=False)
        yield TextField(id="source", placeholder=HINT)
        yield Static(id="source-state", markup=False)
        with VerticalScroll(id="details"):
            yield Page(id="spec")

    def on_mount(self) -> None:
        """The line holds a model that was typed before; the training libraries warm up from here on."""
        super().on_mount()
        self.call_after_refresh(self.tune.warm_up)

    def facts_changed(self, facts: Facts) -> None:
        """List, state of the reading, and details; the listed models are weighed where that is due."""
        self.tune.weigh_bases()
        self._fill(facts)
        listed = self.tune.answers.model in self._sources
        line = self.query_one("#source", TextField)
        if not listed and not line.has_focus and not line.value:
            line.value = _shown(self.tune.answers)
        self.query_one("#base", Static).update(advice(facts.base))
        self.query_one("#source-state", Static).update(self._state(facts))
        self.query_one("#spec", Page).show(self._details(facts))

    def on_resize(self) -> None:
        """The lines of the list are cut to the width."""
        self.call_after_refresh(self._fill, self.tune.facts)

    def _details(self, facts: Facts) -> list[Line]:
        if self._looked is not None:
            rows = USUAL if self.tune.answers.data == BUNDLED else OWN
            return describe_listed(self._looked, facts.fits.get(self._looked.id), rows)
        return describe(facts.spec, facts) if facts.spec else []

    def _state(self, facts: Facts) -> Content:
        if self._looked is not None:
            return Content("Enter asks the hub for its small files; its weights come when the run starts.")
        if "model" in facts.busy:
            return Content(visible(facts.busy["model"]))
        offer = offered(facts)
        if offer is not None:
            words = f"{NO_FORM} Enter takes “{offer.name}”: {offer.reason}"
            return Content.assemble(("! ", "$text-warning bold"), visible(words))
        if facts.model_error is not None:
            return sentence(facts.model_error)
        if facts.spec is None:
            return Content("")
        name = one_line(facts.spec.name, 50)
        if facts.plan is not None and not facts.plan.memory.fits:
            words = f"{name} needs more memory than is free here. Review offers plans that fit."
            return Content.assemble(("! ", "$text-warning bold"), words)
        return Content.assemble(("✓ ", "$text-success bold"), f"{name} can be tuned.")

    def _fill(self, facts: Facts) -> None:
        choices, chosen = in_order(facts), self.tune.answers.model
        width = self.query_one("#models").scrollable_content_region.width
        shown = choices, chosen, facts.base, facts.fits, width
        if shown == self._filled:
            return
        self._filled = shown
        models, sources = self.query_one("#models", OptionList), [choice.source for choice in choices]
        lines = [list_line(choice, choice.source == chosen, facts, width) for choice in choices]
        if sources == self._sources:
            for index, line in enumerate(lines):
                models.replace_option_prompt_at_index(index, line)
        else:
            self._list(models, sources, lines)

    def _list(self, models: OptionList, sources: list[str], lines: list[Content]) -> None:
        self._sources = sources
        chosen = self._looked.id if self._looked is not None else self.tune.answers.model
        with self.prevent(OptionList.OptionHighlighted):
            models.clear_options()
            models.add_options(Option(line) for line in lines)
            models.highlighted = sources.index(chosen) if chosen in sources else None

    @on(OptionList.OptionHighlighted, "#models")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        with self.prevent(TextField.Changed):
            self.query_one("#source", TextField).value = ""
        source, facts = self._sources[event.option_index], self.tune.facts
        far = source != self.tune.answers.model and source not in here(facts)
        self._looked = find_listed(source) if far else None
        if self._looked is None:
            self.tune.choose_model(source)
        self.facts_changed(self.tune.facts)

    def _typed(self) -> tuple[str, str | None] | None:
        typed = self.query_one("#source", TextField).value.strip()
        return model_source(typed) if typed else None

    def leaving(self) -> None:
        """Take what was typed."""
        self._take_typed()

    def _take_typed(self) -> bool:
        """Read what was typed, when it is new; True when it is being read now."""
        typed = self._typed()
        if typed is None or typed == (self.tune.answers.model, self.tune.answers.revision):
            return False
        self.query_one("#models", OptionList).highlighted = None
        self._looked = None
        self.tune.choose_model(*typed)
        return True

    def _take_listed(self) -> bool:
        """Ask the hub for the listed model that is looked at; True when it is being read now."""
        listed, self._looked = self._looked, None
        if listed is not None:
            self.tune.choose_model(listed.id)
        return listed is not None

    @on(TextField.Blurred, "#source")
    def _left_line(self) -> None:
        self.leaving()

    def help_topic(self) -> tuple[str, str]:
        """The help of the list, or of the line."""
        places = {"models": ("model", "list"), "source": ("model", "source")}
        return places.get(self.focused.id or "" if self.focused else "", super().help_topic())

    def obstacle(self) -> str:
        """A model that cannot be read; one that is still being read may be read on."""
        facts = self.tune.facts
        blocked = facts.model_error is not None and offered(facts) is None
        return "Choose another model first: see above." if blocked else ""

    async def action_next(self) -> None:
        """A typed or listed model is read and shown first, and again after an error; the next Enter goes on.

        Where a chat form is offered for a base model, Enter takes it and goes on.
        """
        if self._take_typed() or self._take_listed():
            return
        answers, facts = self.tune.answers, self.tune.facts
        if offered(facts) is not None:
            self.tune.take_template()
        elif facts.model_error is not None:
            self.tune.choose_model(answers.model, answers.revision)
            return
        await super().action_next()


def here(facts: Facts) -> set[str]:
    """What need not be asked of the hub: the sources of the models on this box."""
    return {choice.source for choice in facts.models or (BUNDLED_CHOICE,) if choice.kind != "catalogue"}


def in_order(facts: Facts) -> list[ModelChoice]:
    """The bundled model, the recommended one, those on this box, and the rest of the list."""
    base = facts.base.value.id if facts.base is not None else ""
    places = {BUNDLED: 0, base: 1}
    return sorted(facts.models or (BUNDLED_CHOICE,), key=lambda choice: places.get(choice.source, 2))


def _shown(answers: WizardState) -> str:
    return tilde(answers.model) + (f"@{visible(answers.revision)}" if answers.revision else "")
