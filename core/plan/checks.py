"""What would go wrong on the last mile, told before the first step: warnings of a plan in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ollama_tune.core.data.values import Lengths, RowKind
from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.generations import generation
from ollama_tune.core.machine.values import Disk, Machine, OllamaStatus
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import method_rules, rules
from ollama_tune.core.plan.duration import train_rows
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.gguf_types import ollama_room, serving_context, type_offers
from ollama_tune.core.plan.gpus import by_free, rows_a_step, taken, world_of
from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.names import check_ollama_name
from ollama_tune.core.plan.paths import fast_obstacle
from ollama_tune.core.plan.settings import ALL_LINEAR, Settings
from ollama_tune.core.plan.stopping import metric_obstacle, require_metric
from ollama_tune.core.plan.values import Plan
from ollama_tune.core.text import human_bytes, one_line

FEW_ROWS = 50
SOFT_STEPS = 1000
"""In fewer steps a soft prompt is far from what an adapter learns (171 on the examples that ollama-tune
brings: a held-out loss of 0.76, where LoRA has 0.03)."""
ALIKE = 0.9
"""GPUs whose free memory differs by less count as equal."""


@dataclass(frozen=True)
class Asked:
    """A plan and what it was made from."""

    plan: Plan
    machine: Machine
    spec: ModelSpec
    lengths: Lengths
    kind: RowKind

    @property
    def longest(self) -> int:
        """The longest row that is learned from, in tokens."""
        return min(self.plan.settings.training.sequence_length, self.lengths.of_rows.longest)


def plan_warnings(plan: Plan, machine: Machine, spec: ModelSpec, lengths: Lengths) -> list[str]:
    """Everything a person should know before the run starts, the gravest first; empty when all is well."""
    learned = lengths.learned(plan.settings.training.objective)
    asked = Asked(plan, machine, spec, learned, lengths.kind)
    checks = (_memory, _metric, _gpus, _method, _held_by_ollama, _disks, _rows, _export, _context, _ollama)
    return [text for check in checks for text in check(asked)]


def _memory(asked: Asked) -> Iterator[str]:
    memory, training = asked.plan.memory, asked.plan.settings.training
    if training.device == "cuda" and asked.machine.device != "cuda":
        yield "There is no GPU here that can train; set training.device to cpu."
    elif not memory.fits:
        needed, free = human_bytes(memory.needed), human_bytes(memory.free)
        way = "see what is offered" if asked.plan.offers else "choose a smaller model or shorter rows"
        yield f"This needs {needed} and only {free} are free; {way}."


def _gpus(asked: Asked) -> Iterator[str]:
    """Several GPUs that differ, that are not there, or that a step has no rows for."""
    training, found = asked.plan.settings.training, asked.machine.gpu.gpus
    gpus, world = taken(training, found), world_of(training, asked.machine)
    if training.device == "cuda" and training.gpus > len(found) > 0:
        yield f"training.gpus is {training.gpus} and there are {len(found)} GPUs here; those are used."
    least, most = (min(gpus, key=by_free), max(found, key=by_free)) if gpus else (None, None)
    if least and most and least.free < ALIKE * max(gpu.free for gpu in gpus):
        yield f"GPU {least.index} has {human_bytes(least.free)} free, which decides what fits on all {world}."
    if least and most and most not in gpus and least.free < ALIKE * most.free:
        order = ",".join(str(gpu.index) for gpu in sorted(found, key=by_free, reverse=True))
        yield (
            f"GPU {most.index} has {human_bytes(most.free)} free and is not used, because the first ones are "
            f"taken; start with CUDA_VISIBLE_DEVICES={order} to have it first."
        )
    if rows_a_step(training) < world:
        rows = rows_a_step(training)
        yield f"A step has {rows} rows for {world} GPUs, so {world - rows} of them wait; set training.gpus."


def _metric(asked: Asked) -> Iterator[str]:
    """A figure to stop by that this data does not have."""
    settings, lengths = asked.plan.settings, asked.lengths
    metric = settings.training.early_stopping_metric
    held = lengths.rows - train_rows(lengths, settings.data.validation_split)
    if found := metric_obstacle(metric, asked.kind):
        yield " ".join(found)
    elif metric != "loss" and not settings.data.validation and not held:
        yield (
            f"No row is held out, so training.early_stopping_metric {metric} decides nothing and the last "
            "state is kept; set data.validation_split above 0."
        )


def _set_otherwise(path: str, asked: Asked) -> bool:
    """Whether the person gave a setting a value of their own; a whole run.yaml names all of them."""
    return path in asked.plan.changed and asked.plan.settings.get(path) != Settings().get(path)


def _method(asked: Asked) -> Iterator[str]:
    """Settings that the training code would refuse, or that change nothing here."""
    training = asked.plan.settings.training
    if training.path == "fast":
        why_not = fast_obstacle(asked.spec, training.dora, training.method)
        if why_not:
            yield f"{why_not} Set training.path to auto."
    experts = rules.mixture_of_experts(asked.spec) and training.targets == ALL_LINEAR
    for name, on in (("dora", training.dora), ("dropout", training.dropout > 0)):
        if experts and on and training.method == "lora":
            yield (
                f"PEFT takes no {name} for the experts of this model; set training.{name} to "
                f"{'no' if name == 'dora' else 0} or name the layers in training.targets."
            )
    if experts and training.freeze_layers and training.method != "full":
        yield "With training.freeze_layers the experts of this model get no adapter; only attention learns."
    idle = [path for path in method_rules.of_no_use(training) if _set_otherwise(path, asked)]
    if idle:
        yield f"Method {training.method} has no adapter on layers, so it does not use {', '.join(idle)}."
    if training.dora:
        yield "DoRA takes more time than is predicted here, which is for plain LoRA."
    try:
        require_metric(training.early_stopping_metric)
    except TuneError as error:
        yield str(error)
    if experts and training.method == "adalora":
        yield "PEFT's AdaLoRA leaves the experts of this model as they are; method lora adapts them too."
    if training.method in SOFT_PROMPTS and asked.plan.work.steps < SOFT_STEPS:
        yield (
            f"A soft prompt settles slowly, and {asked.plan.work.steps:,} steps are few for one; an adapter "
            "(training.method lora) learns more in them."
        )
    if training.gradient_checkpointing == "offload" and training.device == "cpu":
        yield "Without a GPU offload keeps the inputs in the same memory, so it saves no more than layers."


def _held_by_ollama(asked: Asked) -> Iterator[str]:
    """Models that a local Ollama keeps on the GPU: a lack of memory that is easily ended."""
    server = asked.machine.ollama
    if asked.plan.settings.training.device != "cuda" or not server.local:
        return
    for model in server.loaded:
        if model.vram:
            size, name = human_bytes(model.vram), one_line(model.name, 60)
            yield f"Ollama holds {size} of GPU memory; `ollama stop {name}` frees it."


def _disks(asked: Asked) -> Iterator[str]:
    """What download, run and Ollama write, added up for each file system. One of 0 bytes is not known."""
    work, machine = asked.plan.work, asked.machine
    wanted = [
        (machine.disk, "the run", work.checkpoint_bytes + work.export_bytes),
        (machine.models_disk or machine.disk, "the download", work.download_bytes),
    ]
    if machine.ollama_disk is not None:
        wanted.append((machine.ollama_disk, "Ollama's copy", work.ollama_bytes))
    for disk in {_place(disk): disk for disk, _, _ in reversed(wanted)}.values():
        parts = [(what, size) for other, what, size in wanted if _place(other) == _place(disk) and size]
        need = sum(size for _, size in parts)
        if disk.total and need > disk.free:
            listed = " and ".join(f"{human_bytes(size)} for {what}" for what, size in parts)
            path = one_line(disk.path, 80)
            yield f"The disk of {path} needs {listed} and has {human_bytes(disk.free)} free; make room first."
        elif disk is machine.disk and machine.ollama_disk is None and disk.total:
            yield from _unknown_place(need, work.ollama_bytes, disk)


def _unknown_place(need: int, copy: int, disk: Disk) -> Iterator[str]:
    """Ollama's folder cannot be seen; it may lie on the run's disk."""
    if copy and need + copy > disk.free:
        left = human_bytes(max(disk.free - need, 0))
        yield f"Ollama needs {human_bytes(copy)} for the model; on the run's disk {left} would be left."


def _place(disk: Disk) -> object:
    return disk.device or disk.path


def _rows(asked: Asked) -> Iterator[str]:
    length = asked.plan.settings.training.sequence_length
    left_out = rules.rows_left_out(asked.lengths, length)
    if left_out:
        yield f"Rows longer than {length:,} tokens are left out: {left_out}."
    if asked.lengths.rows < FEW_ROWS:
        yield f"{asked.lengths.rows} rows are very few; a model learns a style from some hundred."


def _export(asked: Asked) -> Iterator[str]:
    """A model that cannot be exported, that no memory of this box holds, or that nothing here can write."""
    settings, room = asked.plan.settings, ollama_room(asked.machine)
    if obstacle := export_obstacle(settings):
        yield obstacle
        return
    if asked.spec.export_reason:
        yield f"The result cannot be exported to Ollama: {one_line(asked.spec.export_reason, 200)}"
        return
    if settings.export.name is None:
        return
    offer = type_offers(asked.spec, asked.machine, serving_context(settings, asked.spec))[
        settings.export.type
    ]
    if not offer.available:
        yield f"{settings.export.type} needs llama.cpp's quantizer (xllamacpp), which is not installed here."
    elif room.free is not None:
        whole = room.free + (asked.machine.host.ram_available if room.place == "GPU" else 0)
        if offer.needed > whole:
            size, free = human_bytes(offer.needed), human_bytes(whole)
            yield f"Ollama needs {size} of memory for the exported model and this box has {free} free."


def _context(asked: Asked) -> Iterator[str]:
    """Rows that are longer than what llama.cpp computes as training does."""
    if asked.plan.settings.export.name is None or asked.spec.export_reason:
        return
    try:
        config = read_config(asked.spec.folder)
    except TuneError:
        return
    longest = asked.longest
    if 0 < config.window < longest:
        yield (
            f"Ollama ignores this model's attention window of {config.window:,} tokens: answers to texts "
            f"longer than that differ from training, and your longest row has {longest:,} tokens."
        )
    if config.even_context < longest:
        yield (
            f"From {config.even_context:,} tokens of context on Ollama treats short texts otherwise than "
            f"training does, and your longest row has {longest:,} tokens."
        )


def _ollama(asked: Asked) -> Iterator[str]:
    """A name or a server that would refuse the model."""
    wanted, server = asked.plan.settings.export, asked.machine.ollama
    if wanted.name is None or not wanted.push:
        return
    full = check_ollama_name(wanted.name)
    tag = full.rpartition(":")[2].lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        yield f"Ollama takes {one_line(full, 80)} for a model in its cloud; choose another tag."
    if too_old(server):
        version = one_line(server.version or "", 40)
        yield f"Ollama {version} makes no models of uploaded files; update it to 0.30 or newer."


def too_old(server: OllamaStatus) -> bool:
    """Whether a server that answered cannot take an export; an unreadable version counts as the newest."""
    return not generation(server.version or "").usable
