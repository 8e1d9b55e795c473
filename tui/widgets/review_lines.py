"""The summary of a run in the order in which a person decides: what, cost, place, command, and the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from ollama_tune.core.paths import runs_dir
from ollama_tune.core.text import human_bytes, human_count, one_line, visible
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.data_summary import reading_words
from ollama_tune.tui.widgets.membar import duration
from ollama_tune.tui.widgets.page import BLANK, Line, heading, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings, TrainingSettings
    from ollama_tune.core.plan.values import Plan


def what_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Model, data, training and result in words."""
    settings, spec = plan.settings, facts.spec
    parameters = f", {human_count(spec.parameters)} parameters" if spec else ""
    return [
        heading("What"),
        row("Model", f"{one_line(spec.name if spec else settings.model.source, 80)}{parameters}"),
        row("Data", _data(settings, facts)),
        *(row("", words) for words in reading_words(settings.data)),
        row("Training", _schedule(settings.training)),
        row("Result", _result(settings)),
    ]


def _data(settings: Settings, facts: Facts) -> str:
    source = "bundled" if settings.data.path == BUNDLED else tilde(settings.data.path)
    share = settings.data.validation_split
    if facts.lengths is None:
        return f"{source}, {share:.0%} of the rows are held out to measure on"
    rows = facts.lengths.rows
    held_out = round(rows * share)
    return f"{source}, {rows:,} rows; {held_out:,} of them are held out to measure on"


def _schedule(training: TrainingSettings) -> str:
    a_step = training.batch_size * training.gradient_accumulation_steps
    rows = "packed sequences" if training.packing else "rows"
    epochs = "1 epoch (pass" if training.epochs == 1 else f"{training.epochs:g} epochs (passes"
    longest = training.sequence_length
    return f"{epochs} over all rows), {a_step:,} {rows} a step of up to {longest:,} tokens"


def _result(settings: Settings) -> str:
    name, kind = settings.export.name, settings.export.type.upper()
    return f"{visible(name)} in Ollama, as {kind}" if name else "the trained part; no file for Ollama"


def cost_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Ways to make it fit where it does not, time, disk, and what should be known before."""
    work = plan.work
    energy = "" if work.energy_kwh is None else f"; at most {work.energy_kwh:.2g} kWh on the GPU"
    time = Content.assemble(duration(work), energy)
    return [
        *offer_lines(plan),
        row("Time", time),
        row("Disk", _disk(plan, facts)),
        *(sign("!", visible(warning)) for warning in plan.warnings),
    ]


def offer_lines(plan: Plan) -> list[Line]:
    """The nearest plans that fit, each with its key."""
    if not plan.offers:
        return []
    lines = [row("Would fit", "press its number (f takes the first)")]
    for number, offer in enumerate(plan.offers, 1):
        needed = human_bytes(offer.memory.needed)
        lines.append(sign(str(number), f"{visible(offer.text)} ({needed})", "$text-accent"))
    return [*lines, BLANK]


def _disk(plan: Plan, facts: Facts) -> str:
    work = plan.work
    written = (
        (work.download_bytes, "to download"),
        (work.checkpoint_bytes, "for checkpoints"),
        (work.export_bytes, "for the file"),
        (work.ollama_bytes, "in Ollama"),
    )
    words = ", ".join(f"{human_bytes(size)} {what}" for size, what in written if size)
    free = f"; {human_bytes(facts.machine.disk.free)} free" if facts.machine else ""
    return f"{words}{free}"


def place_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Where the run, its file and the model go."""
    lines = [heading("Place"), row("Run", f"a new folder in {tilde(runs_dir())}")]
    if plan.work.download_bytes and facts.machine is not None and facts.machine.models_disk is not None:
        lines.append(row("Download", f"to {tilde(facts.machine.models_disk.path)}"))
    if plan.settings.export.name:
        lines.append(row("Ollama", _ollama(plan, facts)))
    return lines


def _ollama(plan: Plan, facts: Facts) -> str:
    server = facts.machine.ollama if facts.machine is not None else None
    if plan.settings.export.push and server is not None and server.reachable:
        return f"at {visible(server.url)}, once the file is proved"
    why = "does not answer now: " if plan.settings.export.push else ""
    return f"{why}file and commands wait in the run's folder"


def more_lines(plan: Plan) -> list[Line]:
    """What only experts ask: the adapter, what the time and the memory rest on, how sure the values are."""
    from ollama_tune.core.plan.sources import count_sources

    training = plan.settings.training
    held = "4 bit" if training.quantization == "nf4" else "full precision"
    adapter = (
        f"LoRA, rank {training.rank}, alpha {training.alpha}, learning rate {training.learning_rate:g}; "
        f"base weights in {held}"
    )
    lines = [row("Adapter", adapter), row("Time", f"rests on {visible(plan.work.ground)}")]
    if plan.memory.remark:
        lines.append(row("Memory", visible(f"{plan.memory.method}; {plan.memory.remark}")))
    lines.append(row("Chosen", visible(count_sources(plan))))
    return [heading("More"), *(Line(line.content.stylize("dim"), line.indent) for line in lines)]
