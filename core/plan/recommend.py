"""Recommended settings, each with its reason; what the person set is kept and the rest solved around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.duration import estimate, steps_of, train_rows
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.plan.values import Choice, MemoryEstimate, Plan, WorkEstimate
from ollama_tune.core.text import human_bytes, one_line

REASON_WIDTH = 80
SPARE = 0.1
LEAST_RANK = 8
FEW_ROWS = 50

Values = dict[str, Any]


def make_plan(machine: Machine, spec: ModelSpec, lengths: Lengths, changed: Mapping[str, Any]) -> Plan:
    """Settings for this box, model and data, with what they cost; instant, since nothing is computed.

    `changed` maps dotted paths to the values the person set; they are never overridden. Raises
    `UsageError` where one of them is not allowed.
    """
    draft = _Draft(machine, spec, lengths, changed)
    _choose_rows(draft)
    _choose_adapter(draft)
    warnings = _choose_memory(draft)
    _choose_schedule(draft)
    _choose_results(draft)
    memory = predict(draft.settings, spec, machine, lengths.longest)
    work = estimate(draft.settings, spec, lengths, machine)
    warnings += _warnings(draft, memory, work)
    return Plan(draft.settings, draft.choices, memory, work, frozenset(changed), tuple(warnings))


class _Draft:
    """Settings under construction: the person's values stand, each other field is chosen once."""

    def __init__(
        self, machine: Machine, spec: ModelSpec, lengths: Lengths, changed: Mapping[str, Any]
    ) -> None:
        self.machine, self.spec, self.lengths, self.changed = machine, spec, lengths, changed
        self.choices: dict[str, Choice] = {}
        self.settings = Settings().with_values(
            {"training.device": machine.device, "model.source": spec.source} | dict(changed)
        )

    def free(self, path: str) -> bool:
        return path not in self.changed

    def choose(self, path: str, choice: Choice) -> None:
        if self.free(path):
            reason = one_line(choice.reason, REASON_WIDTH)
            self.choices[path] = Choice(choice.value, reason, choice.source)
            self.settings = self.settings.with_value(path, choice.value)

    @property
    def rows(self) -> int:
        return train_rows(self.lengths, self.settings.data.validation_split)

    @property
    def steps(self) -> int:
        return steps_of(self.settings.training, self.rows)


def _choose_rows(draft: _Draft) -> None:
    draft.choose("model.source", Choice(draft.spec.source, "the model that was chosen", "you"))
    draft.choose("model.revision", Choice(None, "the newest version of the model", rules.PRACTICE))
    draft.choose("data.path", Choice("bundled", "the examples that ollama-tune brings", rules.PRACTICE))
    draft.choose("data.validation_split", rules.validation_split(draft.lengths.rows))
    draft.choose("data.seed", Choice(7, "any number; the same one keeps the same rows out", rules.PRACTICE))
    draft.choose("training.device", rules.device(draft.machine))


def _choose_adapter(draft: _Draft) -> None:
    draft.choose("training.targets", Choice("all-linear", "better than attention layers alone", rules.LWR))
    draft.choose("training.rank", rules.rank(draft.spec, draft.lengths))
    _choose_rank_followers(draft)
    draft.choose("training.dropout", Choice(0.0, "only against overfitting: 0.05 or 0.1", rules.PRACTICE))
    draft.choose("training.weight_decay", Choice(0.0, "adapters hardly need it", rules.PRACTICE))
    draft.choose(
        "training.max_gradient_norm",
        Choice(1.0, "cuts only the rare gradient that is far too long", rules.PRACTICE),
    )


def _choose_rank_followers(draft: _Draft) -> None:
    rank = draft.settings.training.rank
    draft.choose("training.alpha", Choice(32, "with alpha 32 the rate fits every rank", rules.LWR))
    draft.choose("training.learning_rate", rules.learning_rate(draft.spec, rank))


def _rows_a_step(draft: _Draft) -> int:
    """The effective batch that the person's own batch settings imply, else the recommended one."""
    training = draft.settings.training
    if not draft.free("training.batch_size") and not draft.free("training.gradient_accumulation_steps"):
        return training.batch_size * training.gradient_accumulation_steps
    return rules.effective_batch(draft.rows)


def _choose_memory(draft: _Draft) -> list[str]:
    """Everything that decides memory, chosen together: the first candidate that fits, best first."""
    rows_a_step = _rows_a_step(draft)
    draft.choose("training.epochs", rules.epochs(draft.rows, rows_a_step))
    first: Values | None = None
    chosen: Values = {}
    for chosen in _candidates(draft, rows_a_step):
        first = first or chosen
        if _fits(draft, chosen):
            break
    first = first or chosen
    for path, value in chosen.items():
        if value != draft.settings.get(path) or draft.free(path):
            draft.choose(path, _reason(draft, path, value, first, rows_a_step))
    if chosen["training.rank"] != first["training.rank"]:
        _choose_rank_followers(draft)
    return _changes(draft, first, chosen)


def _fits(draft: _Draft, values: Values) -> bool:
    """A tenth of the memory is kept free where the base weights are held whole."""
    memory = _memory(draft, values)
    return memory.needed <= memory.free * (1 - SPARE)


def _memory(draft: _Draft, values: Values) -> MemoryEstimate:
    training = {path.partition(".")[2]: value for path, value in values.items()}
    settings = draft.settings.model_copy(
        update={"training": draft.settings.training.model_copy(update=training)}
    )
    return predict(settings, draft.spec, draft.machine, draft.lengths.longest)


def _candidates(draft: _Draft, rows_a_step: int) -> Iterator[Values]:
    """The search order of the planning reference, section 8; the effective batch never changes."""
    training = draft.settings.training
    lengths = _wishes(draft, "sequence_length", rules.sequence_lengths(draft.spec, draft.lengths))
    ranks = _wishes(draft, "rank", list(dict.fromkeys([training.rank, min(training.rank, LEAST_RANK)])))
    for rank in ranks:
        for length in lengths if rank == ranks[0] else lengths[-1:]:
            for dtype, quantization in _precisions(draft):
                for checkpointing in _wishes(draft, "gradient_checkpointing", [False, True]):
                    for micro, accumulation in _batches(draft, rows_a_step):
                        yield {
                            "training.compute_dtype": dtype,
                            "training.quantization": quantization,
                            "training.sequence_length": length,
                            "training.batch_size": micro,
                            "training.gradient_accumulation_steps": accumulation,
                            "training.gradient_checkpointing": checkpointing,
                            "training.rank": rank,
                        }


def _wishes(draft: _Draft, name: str, values: list[Any]) -> list[Any]:
    return values if draft.free(f"training.{name}") else [getattr(draft.settings.training, name)]


def _precisions(draft: _Draft) -> list[tuple[str, str]]:
    if draft.settings.training.device == "cuda":
        sixteen = rules.gpu_dtype(draft.machine).value
        wanted = [(sixteen, "none"), (sixteen, "nf4")]
    else:
        wanted = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")]
    dtypes = _wishes(draft, "compute_dtype", [])
    kinds = _wishes(draft, "quantization", [])
    found = [(dtypes[0] if dtypes else d, kinds[0] if kinds else q) for d, q in wanted]
    return list(dict.fromkeys(found))


def _batches(draft: _Draft, rows_a_step: int) -> list[tuple[int, int]]:
    """Rows at once and batches a step, largest first."""
    training = draft.settings.training
    if not draft.free("training.batch_size"):
        micro = training.batch_size
        accumulation = max(round(rows_a_step / micro), 1)
        return [(micro, _wishes(draft, "gradient_accumulation_steps", [accumulation])[0])]
    if not draft.free("training.gradient_accumulation_steps"):
        accumulation = training.gradient_accumulation_steps
        return [(max(rows_a_step // accumulation, 1), accumulation)]
    micro = rules.micro_batch_target(draft.lengths, rows_a_step, training.device == "cuda")
    return [(size, rows_a_step // size) for size in (micro >> shift for shift in range(micro.bit_length()))]


def _reason(draft: _Draft, path: str, value: Any, first: Values, rows_a_step: int) -> Choice:
    """Why a field that decides memory has its value; figures from the candidates that were tried."""
    training, name = draft.settings.training, path.partition(".")[2]
    free = human_bytes(_memory(draft, first).free)
    if name == "sequence_length":
        return rules.sequence_length(draft.spec, draft.lengths, value)
    if name == "compute_dtype":
        return _dtype_reason(draft, value, free)
    if name == "quantization":
        if value == "none":
            return Choice(value, f"the weights in 16 or 32 bit fit in {free} with room", rules.MEMORY)
        whole = human_bytes(_memory(draft, first | {"training.batch_size": 1}).parts[0].bytes)
        return Choice(value, f"the weights alone need {whole} unquantized; {free} are free", rules.QLORA)
    if name == "gradient_checkpointing":
        needed = human_bytes(_memory(draft, first).needed)
        text = (
            "not needed: all fits without"
            if not value
            else f"without it {needed} are needed; {free} are free"
        )
        return Choice(value, text, rules.MEMORY)
    if name == "batch_size":
        limit = "8,000 tokens" if training.device == "cuda" else "2,000 tokens"
        if value < first[path]:
            return Choice(value, f"more rows at once do not fit in {free}", rules.MEMORY)
        return Choice(value, f"about {limit} at once, at most the {rows_a_step} rows a step", rules.PRACTICE)
    if name == "gradient_accumulation_steps":
        return Choice(
            value, f"adds up to about {rows_a_step} rows a step; small is better for LoRA", rules.LWR
        )
    if value == first[path]:
        return draft.choices[path]
    return Choice(value, f"a larger rank does not fit in {free}", rules.MEMORY)


def _dtype_reason(draft: _Draft, value: str, free: str) -> Choice:
    if draft.settings.training.device == "cuda":
        return rules.gpu_dtype(draft.machine)
    if value == "float32":
        return Choice(value, f"exact, and it fits in {free} of RAM", rules.MEMORY)
    return Choice(value, f"float32 does not fit in {free} of RAM", rules.MEMORY)


def _changes(draft: _Draft, first: Values, chosen: Values) -> list[str]:
    """What the search gave up, in a sentence; nothing when the first wish fits."""
    if first == chosen:
        return []
    words = {
        "training.compute_dtype": "weights in {}",
        "training.quantization": "base weights in {}",
        "training.sequence_length": "rows of at most {:,} tokens",
        "training.batch_size": "batch size {}",
        "training.gradient_checkpointing": "gradient checkpointing",
        "training.rank": "rank {}",
    }
    given = [text.format(chosen[path]) for path, text in words.items() if chosen[path] != first[path]]
    memory = _memory(draft, first)
    needed, free = human_bytes(memory.needed), human_bytes(memory.free)
    return [f"The fastest settings need {needed} and {free} are free, so chosen: {', '.join(given)}."]


def _choose_schedule(draft: _Draft) -> None:
    draft.choose("training.schedule", Choice("cosine", "ends with small steps", rules.PRACTICE))
    draft.choose("training.warmup", rules.warmup(draft.steps))
    draft.choose("training.seed", Choice(7, "any number; the same one repeats the run", rules.PRACTICE))
    draft.choose("training.evaluation_interval", rules.evaluation_interval(draft.steps))
    draft.choose(
        "training.checkpoint_minutes", Choice(5.0, "a crash then costs at most five minutes", rules.PRACTICE)
    )


def _choose_results(draft: _Draft) -> None:
    settings = draft.settings
    draft.choose("evaluation.rows", rules.evaluation_rows(draft.lengths.rows - draft.rows))
    draft.choose(
        "evaluation.max_new_tokens", rules.max_new_tokens(draft.lengths, settings.training.sequence_length)
    )
    draft.choose("export.name", rules.export_name(draft.spec, settings.data.path))
    draft.choose("export.type", rules.export_type(draft.spec))
    server = draft.machine.ollama
    text = f"Ollama {server.version} answers" if server.reachable else "as soon as an Ollama answers"
    draft.choose("export.push", Choice(True, text, rules.MACHINE))


def _warnings(draft: _Draft, memory: MemoryEstimate, work: WorkEstimate) -> list[str]:
    settings, found = draft.settings, []
    if settings.training.device == "cuda" and not draft.machine.gpu.gpus:
        found.append("There is no GPU here that can train; set the device to cpu.")
    elif not memory.fits:
        needed, free = human_bytes(memory.needed), human_bytes(memory.free)
        found.append(f"This needs {needed} and only {free} are free; choose a smaller model or shorter rows.")
    needed_disk = work.checkpoint_bytes + work.export_bytes
    if needed_disk > draft.machine.disk.free:
        free = human_bytes(draft.machine.disk.free)
        found.append(
            f"The run writes {human_bytes(needed_disk)} and the disk has {free} free; make room first."
        )
    left_out = rules.rows_left_out(draft.lengths, settings.training.sequence_length)
    if left_out:
        found.append(
            f"Rows longer than {settings.training.sequence_length:,} tokens are left out: {left_out}."
        )
    if draft.spec.export_reason:
        found.append(f"The result cannot be exported to Ollama: {draft.spec.export_reason}")
    if draft.lengths.rows < FEW_ROWS:
        found.append(f"{draft.lengths.rows} rows are very few; a model learns a style from some hundred.")
    return found
