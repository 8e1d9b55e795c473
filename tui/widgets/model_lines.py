"""A base model in words: its line in the list, what to expect of it here, and its facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from textual.content import Content

from ollama_tune.core.text import human_bytes, human_count, human_estimate, one_line, visible
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.page import Line, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.models.catalogue import CatalogueModel
    from ollama_tune.core.models.chat_templates import TemplateOffer
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.values import Choice

LABEL = 11
SIZE = 10
WIDE_NAME, NAME, NARROW_NAME = 42, 27, 24
EXPECTED: tuple[tuple[float, str], ...] = (
    (50e6, "shows how everything works; knows nothing of the world"),
    (500e6, "one narrow task with short answers, such as labels"),
    (1.2e9, "simple answers in your style; few facts, slips at times"),
    (2.5e9, "short texts and simple questions, well enough for many tasks"),
    (5e9, "good everyday answers; follows instructions reliably"),
    (10e9, "good answers and some reasoning: enough for most tasks"),
    (40e9, "strong answers on hard tasks"),
)
"""What models below so many parameters are good for after tuning, by common experience."""
OWN, USUAL = "your rows", "1,000 usual chats"
"""What the time of a listed model is for: until the data is known, for rows as people bring them."""
MOST = "the strongest answers that one machine can give"


def expectation(parameters: float) -> str:
    """What quality to expect of a model of this size, in a few words."""
    return next((words for limit, words in EXPECTED if parameters < limit), MOST)


def offered(facts: Facts) -> TemplateOffer | None:
    """The chat form that is offered for the chosen base model and not taken yet."""
    return facts.about.offer if facts.about is not None and facts.model_error is not None else None


def advice(base: Choice | None) -> Content:
    """Which base model suits this box, and why."""
    if base is None:
        return Content("")
    return Content.assemble(
        ("★ ", "$text-accent bold"), f"{visible(base.value.name)} suits this machine: ", (base.reason, "dim")
    )


def list_line(choice: ModelChoice, chosen: bool, facts: Facts, width: int) -> Content:
    """Name, download, and what it would be here: the time, or what is in the way; at most `width` cells."""
    mark = ("● ", "$text-accent") if chosen else ("○ ", "dim")
    room = WIDE_NAME if width >= 90 else NAME if width >= 70 else NARROW_NAME
    name = one_line(choice.name, 200)
    name = name if len(name) <= room else one_line(name.rpartition("/")[2], room)
    size = human_bytes(choice.size) if choice.size else ""
    head = f"{set_cell_size(name, room)}{size:>{SIZE}}  "
    left = max(width - 2 - room - SIZE - 2, 0)
    return Content.assemble(mark, head, _verdict(choice, facts, left))


def _verdict(choice: ModelChoice, facts: Facts, room: int) -> Content:
    fit, far = facts.fits.get(choice.source), choice.kind == "catalogue"
    if fit is None:
        return Content.styled("" if far else one_line(choice.note, room), "dim")
    best = facts.base is not None and facts.base.value.id == choice.source
    words = fit.obstacle or f"{human_estimate(fit.seconds)} to train"
    notes = ("recommended" if best else "", "licence to accept" if far and fit.model.gated else "")
    for note in filter(None, notes):
        words += f"; {note}" if len(words) + len(note) + 4 <= room else ""
    words = words if len(words) + 2 <= room else words.removesuffix(" to train")
    fits = ("! " if fit.slow else "✗ ", "dim") if fit.obstacle else ("✓ ", "$text-success")
    look, style = ("★ ", "$text-accent") if best else fits
    return Content.assemble((look, style), (one_line(words, max(room - 2, 1)), "" if best else "dim"))


def describe(spec: ModelSpec, facts: Facts) -> list[Line]:
    """The chosen model: first what it will be good for here, then its facts, last what only experts ask."""
    found = facts.about
    size = f"{human_count(spec.parameters)}, {human_bytes(spec.weight_bytes)} in {visible(spec.weight_dtype)}"
    return [
        row("Expect", expectation(spec.parameters), LABEL),
        *_here(spec, facts),
        row("Reads", f"up to {spec.context_length:,} tokens (pieces of words) at once", LABEL),
        row("Parameters", size, LABEL),
        row("Chat form", _chat_form(spec, facts), LABEL),
        row("Licence", _licence(spec.licence, found is not None and bool(found.gated)), LABEL),
        row("Export", one_line(spec.export_reason, 200) or "✓ can be exported to Ollama", LABEL),
        *([row("Hub", visible(found.newer), LABEL)] if found is not None and found.newer else []),
        _place(spec, facts),
        _technical(spec, found.tokenizer if found else ""),
    ]


def _here(spec: ModelSpec, facts: Facts) -> list[Line]:
    """What training it takes here with the present data, once that is planned."""
    plan = facts.plan
    if plan is None or facts.spec is not spec or plan.settings.model.source != spec.source:
        return []
    memory, time = plan.memory, human_estimate(plan.work.seconds)
    free = human_bytes(memory.free)
    if memory.fits:
        words = f"✓ trains in {human_bytes(memory.needed)} of {free} free, about {time}"
    else:
        words = f"✗ needs {human_bytes(memory.needed)} to train, {free} free"
    return [row("Here", words, LABEL)]


def _technical(spec: ModelSpec | CatalogueModel, tokenizer: str) -> Line:
    kind = f"{one_line(spec.architecture, 40)}: {spec.layers} layers, width {spec.hidden_size:,}"
    read = f"tokenizer: {visible(tokenizer)}" if tokenizer else f"{spec.vocabulary_size:,} tokens known"
    return row("Technical", Content.styled(f"{kind}; {read}", "dim"), LABEL)


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


def describe_listed(model: CatalogueModel, fit: BaseFit | None, rows: str) -> list[Line]:
    """A listed model that is not here yet, and what it would need on this box to learn those `rows`."""
    size = f"{human_count(model.parameters)}, about {human_bytes(2 * model.parameters)} to download"
    lines = [row("Expect", expectation(model.parameters), LABEL)]
    if fit is not None:
        words = (
            f"trains in {human_bytes(fit.training_bytes)}, {human_estimate(fit.seconds)} for {rows}; "
            f"runs as {fit.gguf_type} in {human_bytes(fit.serving_bytes)}"
        )
        lines.append(row("Here", words, LABEL))
    if fit is not None and fit.obstacle:
        lines.append(sign("!", f"Not recommended here: {visible(fit.obstacle)}."))
    return [
        *lines,
        row("Reads", f"up to {model.context_length:,} tokens (pieces of words) at once", LABEL),
        row("Parameters", size, LABEL),
        row("Licence", _licence(model.licence, bool(model.gated)), LABEL),
        _technical(model, ""),
    ]
