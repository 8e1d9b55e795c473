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

from ollama_tune.core.models.catalogue import find_listed
from ollama_tune.core.models.values import ModelChoice
from ollama_tune.core.text import human_bytes, human_count, human_seconds, one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import BUNDLED, Facts, WizardState
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.page import Line, Page, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.models.catalogue import CatalogueModel
    from ollama_tune.core.models.chat_templates import TemplateOffer
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.values import Choice

BUNDLED_CHOICE = ModelChoice(BUNDLED, BUNDLED, BUNDLED, None, "")
LABEL = 11
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
        yield OptionList(id="models", markup=False, compact=True)
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

    def _details(self, facts: Facts) -> list[Line]:
        if self._looked is not None:
            return describe_listed(self._looked, facts.fits.get(self._looked.id))
        return describe(facts.spec, facts) if facts.spec else []

    def _state(self, facts: Facts) -> Content:
        if self._looked is not None:
            return Content("Enter asks the hub for its small files; its weights come when the run starts.")
        if "model" in facts.busy:
            return Content(visible(facts.busy["model"]))
        offer = offered(facts)
        if offer is not None:
            words = f"A base model without a chat form. Enter takes “{offer.name}”: {offer.reason}"
            return Content.assemble(("! ", "$text-warning bold"), visible(words))
        if facts.model_error is not None:
            return sentence(facts.model_error)
        if facts.spec is None:
            return Content("")
        return Content.assemble(
            ("✓ ", "$text-success bold"), f"{one_line(facts.spec.name, 50)} can be tuned."
        )

    def _fill(self, facts: Facts) -> None:
        choices, chosen = in_order(facts), self.tune.answers.model
        shown = choices, chosen, facts.base, facts.fits
        if shown == self._filled:
            return
        self._filled = shown
        models, sources = self.query_one("#models", OptionList), [choice.source for choice in choices]
        lines = [_line(choice, choice.source == chosen, facts) for choice in choices]
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


def offered(facts: Facts) -> TemplateOffer | None:
    """The chat form that is offered for the chosen base model and not taken yet."""
    return facts.about.offer if facts.about is not None and facts.model_error is not None else None


def here(facts: Facts) -> set[str]:
    """What need not be asked of the hub: the sources of the models on this box."""
    return {choice.source for choice in facts.models or (BUNDLED_CHOICE,) if choice.kind != "catalogue"}


def in_order(facts: Facts) -> list[ModelChoice]:
    """The bundled model, the recommended one, those on this box, and the rest of the list."""
    base = facts.base.value.id if facts.base is not None else ""
    places = {BUNDLED: 0, base: 1}
    return sorted(facts.models or (BUNDLED_CHOICE,), key=lambda choice: places.get(choice.source, 2))


def advice(base: Choice | None) -> Content:
    """Which base model suits this box, and why."""
    if base is None:
        return Content("")
    return Content.assemble(
        ("★ ", "$text-accent bold"), f"{visible(base.value.name)} suits this machine: ", (base.reason, "dim")
    )


def _shown(answers: WizardState) -> str:
    return tilde(answers.model) + (f"@{visible(answers.revision)}" if answers.revision else "")


def _split(typed: str) -> tuple[str, str | None]:
    """A folder, or a hub id with or without `@revision`."""
    folder = Path(typed).expanduser()
    if typed.startswith(("~", "/", ".")) or folder.exists():
        return str(folder.absolute()), None
    source, _, revision = typed.partition("@")
    return source.strip(), revision.strip() or None


def _line(choice: ModelChoice, chosen: bool, facts: Facts) -> Content:
    fit, size = facts.fits.get(choice.source), f"  {human_bytes(choice.size)}" if choice.size else ""
    far = choice.kind == "catalogue"
    gated = "licence to accept" if fit is not None and far and fit.model.gated else ""
    notes = ("" if far else one_line(choice.note, 60), gated, fit.obstacle if fit is not None else "")
    note = "; ".join(filter(None, notes))
    mark = ("● ", "$text-accent") if chosen else ("○ ", "dim")
    best = facts.base is not None and facts.base.value.id == choice.source
    star = ("  ★ recommended", "$text-accent") if best else ""
    return Content.assemble(
        mark, one_line(choice.name, 44), (size, "dim"), star, (f"  {note}" if note else "", "dim")
    )


def describe(spec: ModelSpec, facts: Facts) -> list[Line]:
    """A base model in lines of label and figure."""
    found = facts.about
    size = f"{human_bytes(spec.weight_bytes)} in {visible(spec.weight_dtype)}"
    return [
        row("Parameters", f"{human_count(spec.parameters)}, {size}", LABEL),
        row("Kind", _kind(spec), LABEL),
        row("Context", _context(spec, found.tokenizer if found else ""), LABEL),
        row("Chat form", _chat_form(spec, facts), LABEL),
        row("Licence", _licence(spec.licence, found is not None and bool(found.gated)), LABEL),
        row("Export", one_line(spec.export_reason, 200) or "✓ can be exported to Ollama", LABEL),
        _place(spec, facts),
    ]


def _kind(spec: ModelSpec | CatalogueModel) -> str:
    return f"{one_line(spec.architecture, 40)}: {spec.layers} layers, width {spec.hidden_size:,}"


def _context(spec: ModelSpec | CatalogueModel, tokenizer: str) -> str:
    read = f"; tokenizer: {visible(tokenizer)}" if tokenizer else f"; {spec.vocabulary_size:,} tokens known"
    return f"{spec.context_length:,} tokens{read}"


def _chat_form(spec: ModelSpec, facts: Facts) -> str:
    offer = facts.about.offer if facts.about is not None else None
    if spec.chat_template is not None:
        return "✓ the model brings its own"
    if offer is None:
        return "none: this is a base model, and no token of it ends an answer"
    return f"none; {'offered' if offered(facts) else 'taken'}: {visible(offer.name)}"


def _licence(licence: str, gated: bool) -> str:
    asked = "; it has to be accepted on the hub" if gated else ""
    return (one_line(licence, 60) or "not stated") + asked


def _place(spec: ModelSpec, facts: Facts) -> Line:
    """Where the model lies; what is to be fetched against the room for it."""
    size = facts.about.to_download if facts.about is not None else 0
    if not size:
        place = "comes with ollama-tune" if spec.source == BUNDLED else tilde(spec.folder)
        return row("Place", place, LABEL)
    disk = facts.machine.models_disk if facts.machine is not None else None
    room = f", {human_bytes(disk.free)} free" if disk is not None else ""
    short = ("✗ ", "$text-error") if disk is not None and size > disk.free else ""
    words = f"{human_bytes(size)} when the run starts{room}"
    return row("Download", Content.assemble(short, words), LABEL)


def describe_listed(model: CatalogueModel, fit: BaseFit | None) -> list[Line]:
    """A listed model that is not here yet, and what it would need on this box."""
    size = f"{human_count(model.parameters)}, about {human_bytes(2 * model.parameters)} to download"
    lines = [
        row("Parameters", size, LABEL),
        row("Kind", _kind(model), LABEL),
        row("Context", _context(model, ""), LABEL),
        row("Licence", _licence(model.licence, bool(model.gated)), LABEL),
    ]
    if fit is None:
        return lines
    words = (
        f"trains in {human_bytes(fit.training_bytes)} and {human_seconds(fit.seconds)}, "
        f"runs as {fit.gguf_type} in {human_bytes(fit.serving_bytes)}"
    )
    lines.append(row("Here", words, LABEL))
    return (
        lines if not fit.obstacle else [*lines, sign("!", f"Not recommended here: {visible(fit.obstacle)}.")]
    )
