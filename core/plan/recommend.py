"""Recommended settings, each with its reason; what the person set is kept and the rest solved around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.duration import estimate
from ollama_tune.core.plan.fit import choose_memory
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.values import Choice, MemoryEstimate, Plan, WorkEstimate
from ollama_tune.core.text import human_bytes, one_line

FEW_ROWS = 50


def make_plan(machine: Machine, spec: ModelSpec, lengths: Lengths, changed: Mapping[str, Any]) -> Plan:
    """Settings for this box, model and data, with what they cost; instant, since nothing is computed.

    `changed` maps dotted paths to the values the person set; they are never overridden. Raises
    `UsageError` where one of them is not allowed.
    """
    draft = Draft(machine, spec, lengths, changed)
    _choose_rows(draft)
    _choose_adapter(draft)
    rows_a_step = _rows_a_step(draft)
    draft.choose("training.epochs", rules.epochs(draft.rows, rows_a_step, draft.spec.parameters))
    warnings = choose_memory(draft, rows_a_step)
    _choose_optimizer(draft)
    _choose_results(draft)
    memory = predict(draft.settings, spec, machine, lengths.longest)
    work = estimate(draft.settings, spec, lengths, machine)
    warnings += _warnings(draft, memory, work)
    return Plan(draft.settings, draft.choices, memory, work, frozenset(changed), tuple(warnings))


def _choose_rows(draft: Draft) -> None:
    draft.choose("model.source", Choice(draft.spec.source, "the model that was chosen", "you"))
    draft.choose("model.revision", Choice(None, "the newest version of the model", rules.PRACTICE))
    draft.choose("data.path", Choice("bundled", "the examples that ollama-tune brings", rules.PRACTICE))
    draft.choose("data.validation_split", rules.validation_split(draft.lengths.rows))
    draft.choose("data.seed", Choice(7, "any number; the same one keeps the same rows out", rules.PRACTICE))
    draft.choose("training.device", rules.device(draft.machine))


def _choose_adapter(draft: Draft) -> None:
    draft.choose("training.targets", Choice("all-linear", "better than attention layers alone", rules.LWR))
    draft.choose("training.rank", rules.rank(draft.spec, draft.lengths))
    draft.choose("training.alpha", Choice(32, "with alpha 32 one learning rate suits every rank", rules.LWR))
    draft.choose("training.dropout", Choice(0.0, "only against overfitting: 0.05 or 0.1", rules.PRACTICE))


def _rows_a_step(draft: Draft) -> int:
    """The effective batch: the recommended one, unless the person set both of its factors."""
    training = draft.settings.training
    if draft.free("training.batch_size") or draft.free("training.gradient_accumulation_steps"):
        return rules.effective_batch(draft.rows)
    return training.batch_size * training.gradient_accumulation_steps


def _choose_optimizer(draft: Draft) -> None:
    steps = draft.steps
    draft.choose("training.learning_rate", rules.learning_rate(draft.spec, draft.settings.training.rank))
    draft.choose("training.schedule", Choice("cosine", "large steps first, tiny ones last", rules.PRACTICE))
    draft.choose("training.warmup", rules.warmup(steps))
    draft.choose("training.weight_decay", Choice(0.0, "adapters hardly need it", rules.PRACTICE))
    clip = Choice(1.0, "cuts only the rare gradient that is far too long", rules.PRACTICE)
    draft.choose("training.max_gradient_norm", clip)
    draft.choose("training.seed", Choice(7, "any number; the same one repeats the run", rules.PRACTICE))
    draft.choose("training.evaluation_interval", rules.evaluation_interval(steps))
    minutes = Choice(5.0, "a crash then costs at most five minutes", rules.PRACTICE)
    draft.choose("training.checkpoint_minutes", minutes)


def _choose_results(draft: Draft) -> None:
    settings = draft.settings
    draft.choose("evaluation.rows", rules.evaluation_rows(draft.lengths.rows - draft.rows))
    longest = rules.max_new_tokens(draft.lengths, settings.training.sequence_length)
    draft.choose("evaluation.max_new_tokens", longest)
    draft.choose("export.name", rules.export_name(draft.spec, settings.data.path))
    draft.choose("export.type", rules.export_type(draft.spec))
    server = draft.machine.ollama
    text = f"Ollama {server.version} answers" if server.reachable else "as soon as an Ollama answers"
    draft.choose("export.push", Choice(True, text, rules.MACHINE))


def _warnings(draft: Draft, memory: MemoryEstimate, work: WorkEstimate) -> list[str]:
    settings, found = draft.settings, []
    if settings.training.device == "cuda" and draft.machine.device != "cuda":
        found.append("There is no GPU here that can train; set training.device to cpu.")
    elif not memory.fits:
        needed, free = human_bytes(memory.needed), human_bytes(memory.free)
        found.append(f"This needs {needed} and only {free} are free; choose a smaller model or shorter rows.")
    found += _held_by_ollama(draft)
    disk, written = draft.machine.disk, work.checkpoint_bytes + work.export_bytes
    if written > disk.free:
        needed, free = human_bytes(written), human_bytes(disk.free)
        found.append(f"The run writes {needed} and the disk has only {free} free; make room first.")
    length = settings.training.sequence_length
    left_out = rules.rows_left_out(draft.lengths, length)
    if left_out:
        found.append(f"Rows longer than {length:,} tokens are left out: {left_out}.")
    if draft.spec.export_reason:
        reason = one_line(draft.spec.export_reason, 200)
        found.append(f"The result cannot be exported to Ollama: {reason}")
    if draft.lengths.rows < FEW_ROWS:
        found.append(f"{draft.lengths.rows} rows are very few; a model learns a style from some hundred.")
    return found


def _held_by_ollama(draft: Draft) -> list[str]:
    """Models that a local Ollama keeps on the GPU: a lack of memory that is easily ended."""
    server = draft.machine.ollama
    if draft.settings.training.device != "cuda" or not server.local:
        return []
    held = [(human_bytes(model.vram), one_line(model.name, 60)) for model in server.loaded if model.vram]
    return [f"Ollama holds {size} of GPU memory; `ollama stop {name}` frees it." for size, name in held]
