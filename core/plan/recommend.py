"""Recommended settings, each with its reason; what the person set is kept and the rest solved around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import method_rules, pins, preference_rules, rules
from ollama_tune.core.plan.checks import plan_warnings
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.duration import estimate
from ollama_tune.core.plan.fit import choose_memory
from ollama_tune.core.plan.gguf_types import serving_context
from ollama_tune.core.plan.offers import Offers
from ollama_tune.core.plan.padding import packed_rows
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.several import a_step, choose_gpus, choose_sharding
from ollama_tune.core.plan.values import Choice, Plan

_READING: tuple[tuple[str, Any, str], ...] = (
    ("split", "", "the split that is named for training, or the only one"),
    ("validation", "", "a split that is named for it, else a share of the rows"),
    ("subset", "", "the data set's usual one"),
    ("form", "", "told by the content of the rows"),
    ("columns", {}, "told by the names and contents of the columns"),
    ("labels", {}, "as they stand in the data"),
    ("include", [], "what is set aside cannot be learned from"),
    ("exclude", [], "warnings are told, and the rows are kept"),
)
"""How data is read unless a person says otherwise."""
FACTORS = ("training.batch_size", "training.gradient_accumulation_steps")
"""What the rows of a step are the product of."""


def make_plan(
    machine: Machine,
    spec: ModelSpec,
    lengths: Lengths,
    changed: Mapping[str, Any],
    correction: float = 1.0,
) -> Plan:
    """Settings for this box, model and data, with what they cost; instant, since nothing is computed.

    `changed` maps dotted paths to the values the person set; they are never overridden. Where the plan does
    not fit, it offers the nearest that do. `correction` is what the formula of the memory is known to be off
    by for this model. Raises `UsageError` where one of the values is not allowed.
    """
    plan = solve(Draft(machine, spec, lengths, changed, correction))
    if not plan.memory.fits:

        def again(values: Mapping[str, Any], model: ModelSpec) -> Plan:
            return solve(Draft(machine, model, lengths, values, correction if model is spec else 1.0))

        rows = preference_rules.learned(lengths, plan.settings.training)
        disk = machine.models_disk or machine.disk
        plan = replace(plan, offers=Offers(plan, changed, spec, rows, again, disk).find())
    found = plan_warnings(plan, machine, spec, lengths)
    return replace(plan, warnings=(*plan.warnings, *found))


def solve(draft: Draft) -> Plan:
    """As `make_plan`, without the checks of the last mile and without offers."""
    draft.choose("training.objective", preference_rules.objective(draft.lengths))
    draft.lengths = preference_rules.learned(draft.lengths, draft.settings.training)
    spec, lengths = draft.spec, draft.lengths
    _choose_rows(draft)
    _choose_adapter(draft)
    training = draft.settings.training
    padded = way_of(spec, training).padded
    packing = rules.packing(spec, lengths, draft.rows, padded=padded, device=training.device)
    packing = preference_rules.packing(training, method_rules.packing(training, packing))
    draft.choose("training.packing", packing)
    rows_a_step = _rows_a_step(draft)
    choose_gpus(draft, rows_a_step)
    epochs = rules.epochs(draft.rows, _rows_in_fact(draft, rows_a_step))
    draft.choose("training.epochs", preference_rules.epochs(training, epochs))
    warnings = choose_memory(draft, rows_a_step)
    choose_sharding(draft)
    _choose_optimizer(draft)
    _choose_results(draft)
    memory = draft.memory(draft.settings)
    work = estimate(draft.settings, spec, lengths, draft.machine)
    return Plan(draft.settings, draft.choices, memory, work, frozenset(draft.changed), tuple(warnings))


def _choose_rows(draft: Draft) -> None:
    draft.choose("model.source", Choice(draft.spec.source, "the model that was chosen", "you"))
    draft.choose("model.revision", pins.model_revision(draft.spec.folder))
    draft.choose("model.chat_template", Choice(None, "the form that the model brings", rules.PRACTICE))
    draft.choose("data.path", Choice("bundled", "the examples that ollama-tune brings", rules.PRACTICE))
    for name, value, reason in _READING:
        draft.choose(f"data.{name}", Choice(value, reason, rules.DATA))
    draft.choose("data.revision", pins.data_revision(draft.settings.data.path))
    draft.choose("data.validation_split", rules.validation_split(draft.lengths.rows))
    draft.choose("data.seed", Choice(7, "any number; the same one holds the same rows out", rules.PRACTICE))
    draft.choose("training.device", rules.device(draft.machine))


def _choose_adapter(draft: Draft) -> None:
    draft.choose("training.method", Choice("lora", "learns as well as all weights from such data", rules.LWR))
    draft.choose("training.targets", Choice("all-linear", "better than attention layers alone", rules.LWR))
    draft.choose("training.rank", rules.rank(draft.spec, draft.settings.training, draft.lengths))
    draft.choose("training.alpha", Choice(32, "with alpha 32 one learning rate suits every rank", rules.LWR))
    draft.choose("training.dropout", Choice(0.0, "only against overfitting: 0.05 or 0.1", rules.PRACTICE))
    draft.choose("training.freeze_layers", Choice(0, "0: every layer learns", rules.PRACTICE))
    draft.choose("training.neftune", Choice(0.0, "only against overfitting: 5 to 15", rules.PRACTICE))
    draft.choose("training.rslora", Choice(False, "pays from rank 64 on, and by one study only", rules.LWR))
    draft.choose("training.dora", Choice(False, "slower, and seldom better than plain LoRA", rules.PRACTICE))
    draft.choose("training.virtual_tokens", method_rules.virtual_tokens(draft.settings.training))
    for path, choice in method_rules.of_no_use(draft.settings.training).items():
        draft.choose(path, choice)
    draft.choose("training.path", rules.path(draft.spec, draft.settings.training))


def _rows_a_step(draft: Draft) -> int:
    """The effective batch: the recommended one, unless the person set both of its factors."""
    training = draft.settings.training
    if any(map(draft.free, FACTORS)):
        usual = preference_rules.usual_epochs(training, draft.rows)
        return rules.effective_batch(draft.rows, usual if draft.free("training.epochs") else training.epochs)
    return round(training.batch_size * training.gradient_accumulation_steps * _packed(draft)[0])


def _rows_in_fact(draft: Draft, rows_a_step: int) -> int:
    """The rows of a step that is to have so many, where a factor that the person set allows only others."""
    training, (a_sequence, wanted) = draft.settings.training, _packed(draft, rows_a_step)
    size, count = training.batch_size, training.gradient_accumulation_steps
    by_size, by_count = (not draft.free(path) for path in FACTORS)
    if by_size == by_count:
        return rows_a_step
    batches = size * max(round(wanted / size), 1) if by_size else count * max(wanted // count, 1)
    return round(batches * a_sequence)


def _packed(draft: Draft, rows_a_step: int = 1) -> tuple[float, int]:
    """How many rows one of a batch's sequences holds, and how many sequences hold so many rows."""
    if not draft.settings.training.packing:
        return 1.0, rows_a_step
    length = rules.sequence_lengths(draft.spec, draft.lengths, packing=True)[0]
    held = length if draft.free("training.sequence_length") else draft.settings.training.sequence_length
    return packed_rows(draft.lengths, held)[0], a_step(draft, rows_a_step, held)


def _choose_optimizer(draft: Draft) -> None:
    steps = draft.steps
    training = draft.settings.training
    rate = method_rules.learning_rate(draft.spec, training, steps)
    draft.choose("training.learning_rate", preference_rules.learning_rate(training, rate))
    draft.choose("training.beta", preference_rules.beta(training))
    draft.choose("training.schedule", Choice("cosine", "large steps first, tiny ones last", rules.PRACTICE))
    draft.choose("training.warmup", rules.warmup(steps))
    draft.choose("training.weight_decay", Choice(0.0, "so short a training hardly needs it", rules.PRACTICE))
    clip = Choice(1.0, "cuts only the rare gradient that is far too long", rules.PRACTICE)
    draft.choose("training.max_gradient_norm", clip)
    draft.choose("training.seed", Choice(7, "any number; the same one repeats the run", rules.PRACTICE))
    draft.choose("training.evaluation_interval", rules.evaluation_interval(steps))
    patience = Choice(
        3, "3 measurements without gain: it only learns by heart; the best is kept", rules.PRACTICE
    )
    draft.choose("training.early_stopping", patience)
    by_loss = Choice("loss", "sees every token of the held-out rows, and costs nothing", rules.PRACTICE)
    draft.choose("training.early_stopping_metric", by_loss)
    minutes = Choice(5.0, "a crash then costs at most 5 minutes", rules.PRACTICE)
    draft.choose("training.checkpoint_minutes", minutes)


def _choose_results(draft: Draft) -> None:
    settings = draft.settings
    draft.choose("evaluation.rows", rules.evaluation_rows(draft.lengths.rows - draft.rows))
    longest = rules.max_new_tokens(draft.lengths.of_rows, settings.training.sequence_length)
    draft.choose("evaluation.max_new_tokens", longest)
    draft.choose("export.name", method_rules.export_name(settings, draft.spec))
    context = serving_context(settings, draft.spec)
    draft.choose("export.type", rules.export_type(draft.spec, draft.machine, context))
    draft.choose("export.importance", rules.importance(draft.settings.export.type))
    draft.choose(
        "export.system", Choice(None, "the model answers as in training, without one", rules.PRACTICE)
    )
    draft.choose("export.also", Choice([], "Ollama needs the one file only", rules.PRACTICE))
    server = draft.machine.ollama
    text = f"Ollama {server.version} answers" if server.reachable else "as soon as an Ollama answers"
    draft.choose("export.push", Choice(True, text, rules.MACHINE))
    draft.choose("tracking.to", Choice([], "the charts here show the same", rules.PRACTICE))
    draft.choose("tracking.project", Choice("ollama-tune", "one project for all runs", rules.PRACTICE))
    draft.choose("tracking.folder", Choice("", "the run's own folder", rules.PRACTICE))
