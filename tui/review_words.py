"""What a run will do and cost, in words: one source for the page Review and for the plain questions.

Each line is a label and a text that is harmless to show; nothing here imports Textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ollama_tune.core.paths import runs_dir
from ollama_tune.core.text import human_bytes, human_count, human_estimate, one_line, visible
from ollama_tune.tui.fields import METHODS
from ollama_tune.tui.state import BUNDLED
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Lengths
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.settings import DataSettings, Settings, TrainingSettings
    from ollama_tune.core.plan.values import Plan, WorkEstimate

Said = tuple[str, str]
"""A label and what stands beside it; the label is empty where the line before goes on."""
FORMS = {"chat": "conversations", "classification": "texts with a label", "text": "plain text"}
WITH_ADAPTER = {"lora": "LoRA", "adalora": "AdaLoRA"}


def what(plan: Plan, spec: ModelSpec | None, lengths: Lengths | None) -> list[Said]:
    """Model, data, training and result."""
    settings = plan.settings
    parameters = f", {human_count(spec.parameters)} parameters" if spec else ""
    return [
        ("Model", f"{one_line(spec.name if spec else settings.model.source, 80)}{parameters}"),
        ("Data", _data(settings, lengths)),
        *(("", words) for words in reading_words(settings.data)),
        ("Training", _schedule(settings.training)),
        *([("", _preferences(settings.training))] if settings.training.objective == "dpo" else []),
        *([("", plan.memory.together)] if plan.memory.together else []),
        ("Result", _result(settings)),
    ]


def _data(settings: Settings, lengths: Lengths | None) -> str:
    source = BUNDLED if settings.data.path == BUNDLED else tilde(settings.data.path)
    share, objective = settings.data.validation_split, settings.training.objective
    if lengths is None:
        return f"{source}, {share:.0%} of the rows are held out to measure on"
    used = lengths.learned(objective).rows
    others = f" of {_count(lengths.rows, 'row')}; the others are left out" if used < lengths.rows else ""
    rows = f"{_count(used, 'pair' if objective == 'dpo' else 'row')}{others}"
    return f"{source}, {rows}; {round(used * share):,} of them are held out to measure on"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _schedule(training: TrainingSettings) -> str:
    a_step = training.batch_size * training.gradient_accumulation_steps
    pairs = training.objective == "dpo"
    rows = _count(a_step, "packed sequence" if training.packing else "pair" if pairs else "row")
    epochs = "1 epoch (pass" if training.epochs == 1 else f"{training.epochs:g} epochs (passes"
    return f"{epochs} over all rows), {rows} a step of up to {training.sequence_length:,} tokens"


def _preferences(training: TrainingSettings) -> str:
    return f"learns to prefer the better answer of each pair (DPO, beta {training.beta:g})"


def _result(settings: Settings) -> str:
    name, kind = settings.export.name, settings.export.type.upper()
    return f"{visible(name)} in Ollama, as {kind}" if name else "the trained part; no file for Ollama"


def reading_words(data: DataSettings) -> list[str]:
    """What the person said about how the data is read, a line each."""
    columns = ", ".join(f"{part} = {one_line(name, 40)}" for part, name in data.columns.items())
    labels = ", ".join(f"{one_line(value, 20)} = {one_line(name, 40)}" for value, name in data.labels.items())
    said = (
        ("columns: ", columns),
        ("labels: ", one_line(labels, 200)),
        ("read as ", FORMS.get(data.form, "")),
        ("trained on ", one_line(data.split, 60)),
        ("measured on ", one_line(data.validation, 60)),
        ("configuration ", one_line(data.subset, 60)),
        ("revision ", one_line(data.revision, 60)),
        ("used all the same: ", one_line(", ".join(data.include), 120)),
        ("left out too: ", one_line(", ".join(data.exclude), 120)),
    )
    return [f"{head}{words}" for head, words in said if words]


def time_parts(work: WorkEstimate) -> tuple[str, str, str]:
    """How long, for how much, and the range in which the time lies; read one after the other."""
    low, high = human_estimate(work.seconds / work.spread), human_estimate(work.seconds * work.spread)
    steps = f" for {_count(work.steps, 'step')} over {human_count(work.tokens)} tokens"
    return human_estimate(work.seconds), steps, f"; {low} to {high}"


def cost(plan: Plan, machine: Machine | None) -> list[Said]:
    """Time with its range, energy, and what is written to the disk."""
    work = plan.work
    energy = "" if work.energy_kwh is None else f"; at most {work.energy_kwh:.2g} kWh on the GPU"
    written = (
        (work.download_bytes, "to download"),
        (work.checkpoint_bytes, "for checkpoints"),
        (work.export_bytes, "for the file"),
        (work.ollama_bytes, "in Ollama"),
    )
    disk = ", ".join(f"{human_bytes(size)} {what}" for size, what in written if size)
    free = f"; {human_bytes(machine.disk.free)} free" if machine else ""
    return [("Time", f"about {''.join(time_parts(work))}{energy}"), ("Disk", f"{disk}{free}")]


def doubts(plan: Plan, logout: str = "") -> list[str]:
    """What should be known before the start; `logout` is the remark where a logout would end the run."""
    return [visible(words) for words in (*plan.warnings, logout) if words]


def place(plan: Plan, machine: Machine | None) -> list[Said]:
    """Where the run, its file and the model go."""
    lines = [("Run", f"a new folder in {tilde(runs_dir())}")]
    if plan.work.download_bytes and machine is not None and machine.models_disk is not None:
        lines.append(("Download", f"to {tilde(machine.models_disk.path)}"))
    if plan.settings.export.name:
        lines.append(("Ollama", _ollama(plan, machine)))
    return lines


def _ollama(plan: Plan, machine: Machine | None) -> str:
    server = machine.ollama if machine is not None else None
    if plan.settings.export.push and server is not None and server.reachable:
        return f"at {visible(server.url)}, once the file is proved"
    why = "does not answer now: " if plan.settings.export.push else ""
    return f"{why}file and commands wait in the run's folder"


def more(plan: Plan) -> list[Said]:
    """What only experts ask: what is trained, what time and memory rest on, how sure the values are."""
    from ollama_tune.core.plan.sources import count_sources

    training, ground = plan.settings.training, visible(plan.work.ground)
    lines = [("Trained", trained_words(training)), ("Time", f"rests on {ground}")]
    if plan.memory.remark:
        lines.append(("Memory", visible(f"{plan.memory.method}; {plan.memory.remark}")))
    return [*lines, ("Chosen", visible(count_sources(plan)))]


def trained_words(training: TrainingSettings) -> str:
    """Which numbers learn, how fast, and on what: `LoRA, rank 16, alpha 32, learning rate 0.0002; ...`."""
    kind = WITH_ADAPTER.get(training.method)
    name = kind or dict(METHODS)[training.method]
    parts = (
        (bool(kind), f"rank {training.rank}, alpha {training.alpha}"),
        (training.dora, "DoRA"),
        (training.rslora, "rsLoRA"),
        (training.freeze_layers > 0, f"first {training.freeze_layers} layers as they are"),
        (training.neftune > 0, f"embedding noise {training.neftune:g}"),
        (True, f"learning rate {training.learning_rate:g}"),
    )
    held = "4 bit" if training.quantization == "nf4" else "full precision"
    return f"{', '.join([name, *(words for said, words in parts if said)])}; base weights in {held}"
