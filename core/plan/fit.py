"""Chooses what decides memory, together: the first candidate that fits, best first.

What changes the result is given up last: first the rows computed at once and kept activations, which cost
time only, then the exactness of the optimizer and of the weights, and only where that does not suffice rows
of the data and the rank. Among candidates with the same result the quickest is taken, so no more is computed
again than must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ollama_tune.core.plan import rules
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.duration import training_seconds
from ollama_tune.core.plan.gpus import world_of
from ollama_tune.core.plan.methods import trained_parameters
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.plan.several import SHARDING, a_step, shardings
from ollama_tune.core.plan.speed import expected_rate
from ollama_tune.core.plan.values import Choice, MemoryEstimate
from ollama_tune.core.text import human_bytes

SPARE = 0.1
"""Share of the free memory that a candidate leaves where a cheaper one would not change the result."""
LEAST_RANK = 8
WORTH_8_BIT = 0.03
"""Share of the free memory that an optimizer in 8 bit must save to be worth its rounding."""
RECOMPUTED = {
    "mlp": "half of each layer computed twice",
    "layers": "each layer computed twice",
    "offload": "each layer computed twice from RAM",
}

Values = dict[str, Any]


def choose_memory(draft: Draft, rows_a_step: int) -> list[str]:
    """Set number formats, lengths, batches and rank; returns a sentence when something was given up."""
    first, chosen = _search(draft, rows_a_step)
    for path in chosen:
        if draft.free(path) and path != SHARDING:
            draft.choose(path, _reason(draft, path, first, chosen, rows_a_step))
    if SHARDING in chosen:
        draft.set(SHARDING, chosen[SHARDING])
    return _given_up(draft, first, chosen)


def _search(draft: Draft, rows_a_step: int) -> tuple[Values, Values]:
    """The best candidate whether it fits or not, and the best that fits (else the smallest).

    Of those that learn the same rows with the same rank the best with memory to spare is taken, else the
    smallest if it fits at all.
    """
    first: Values = {}
    smallest: Values = {}
    for rank, length in _learning(draft):
        groups = [group for group in _candidates(draft, rows_a_step, rank, length) if group]
        first, smallest = first or _by_time(draft, groups[0])[0], _smallest(draft, groups)
        if not _memory(draft, smallest).fits:
            continue
        candidates = (values for group in groups for values in _by_time(draft, group))
        spared = (values for values in candidates if _leaves_spare(_memory(draft, values)))
        return first, next(spared, smallest)
    return first, _smaller_yet(draft, smallest)


def _smaller_yet(draft: Draft, smallest: Values) -> Values:
    """The last resort where nothing fits: averages in 8 bit however little they save, if that is enough."""
    on_gpu = draft.settings.training.device == "cuda"
    rounded = smallest | {"training.optimizer": _open(draft, "optimizer", ["adamw_8bit"])[0]}
    return rounded if on_gpu and _memory(draft, rounded).fits else smallest


def _by_time(draft: Draft, alike: list[Values]) -> list[Values]:
    """The quickest first. Times are most of a plan's work, so only groups that are looked at are sorted."""
    return sorted(alike, key=lambda values: _seconds(draft, values))


def _smallest(draft: Draft, groups: list[list[Values]]) -> Values:
    """The candidate that needs least: the last, or where models may be shared out the last of those."""
    last = {group[0].get(SHARDING): group for group in groups}.values()
    ends = [_by_time(draft, group)[-1] for group in last]
    return min(ends, key=lambda values: _memory(draft, values).needed) if len(ends) > 1 else ends[0]


def _leaves_spare(memory: MemoryEstimate) -> bool:
    return memory.needed <= memory.free * (1 - SPARE)


def _memory(draft: Draft, values: Values) -> MemoryEstimate:
    key = tuple(values.items())
    if key not in draft.estimates:
        draft.estimates[key] = draft.memory(_with(draft, values))
    return draft.estimates[key]


def _learning(draft: Draft) -> list[tuple[int, int]]:
    """Rank and sequence length, best first: first rows are left out, then the rank falls."""
    rank = draft.settings.training.rank
    lower = rank if draft.settings.training.method == "full" else min(rank, LEAST_RANK)
    ranks = _open(draft, "rank", [rank, lower])
    lengths = _open(draft, "sequence_length", _lengths(draft))
    return [(ranks[0], length) for length in lengths] + [(lower, lengths[-1]) for lower in ranks[1:]]


def _lengths(draft: Draft) -> list[int]:
    return rules.sequence_lengths(draft.spec, draft.lengths, packing=draft.settings.training.packing)


def _candidates(draft: Draft, rows_a_step: int, rank: int, length: int) -> Iterator[list[Values]]:
    """Number formats, optimizer, recomputation and batches, best first; the effective batch stays the same.

    Those of a group differ in recomputation and batches alone, so the quickest of them is the best.

    Of several GPUs each holds the whole model; where that does not fit in 16 bit, a part of it before all of
    it in 4 bit, which would be quicker and not the same.

    Keeping inputs of layers in the computer's memory comes last: it saves little beside 4-bit weights, which
    cost a few percent of a large batch, where computing the layers twice costs a third.
    """
    optimizers = ["adamw", "adamw_8bit"] if _saves(draft, rank) else ["adamw"]
    kinds = [
        (dtype, weights, optimizer, sharding)
        for dtype, weights in _precisions(draft)
        for sharding in shardings(draft, weights)
        for optimizer in optimizers
    ]
    on_gpu = draft.settings.training.device == "cuda"
    for modes in (["none", "mlp", "layers"], ["offload"] if on_gpu else []):
        for dtype, quantization, optimizer, sharding in kinds:
            yield [
                {
                    "training.compute_dtype": dtype,
                    "training.quantization": quantization,
                    "training.sequence_length": length,
                    "training.batch_size": micro,
                    "training.gradient_accumulation_steps": accumulation,
                    "training.gradient_checkpointing": recompute,
                    "training.optimizer": _open(draft, "optimizer", [optimizer])[0],
                    "training.rank": rank,
                    **sharding,
                }
                for recompute in _open(draft, "gradient_checkpointing", modes)
                for micro, accumulation in _batches(draft, rows_a_step, length)
            ]


def _saves(draft: Draft, rank: int) -> bool:
    """Whether averages in 8 bit instead of 32 save enough, at 2 x 3 bytes a trained weight; on a GPU only."""
    training = draft.settings.training
    saved = 6 * trained_parameters(training.model_copy(update={"rank": rank}), draft.spec)
    return training.device == "cuda" and saved > WORTH_8_BIT * _memory(draft, {}).free


def _with(draft: Draft, values: Values) -> Settings:
    """The draft's settings with these values, which are known to be allowed."""
    update = {path.partition(".")[2]: value for path, value in values.items()}
    training = draft.settings.training.model_copy(update=update)
    return draft.settings.model_copy(update={"training": training})


def _seconds(draft: Draft, values: Values) -> float:
    """How long the training steps take with these values, up to a factor."""
    settings = _with(draft, values)
    path = way_of(draft.spec, settings.training).path
    rate = expected_rate(settings.training, draft.machine, path)
    return training_seconds(settings, draft.spec, draft.lengths, rate)


def _open(draft: Draft, name: str, values: list[Any]) -> list[Any]:
    """The values to try, each once; only the person's where there is one."""
    if not draft.free(f"training.{name}"):
        return [getattr(draft.settings.training, name)]
    return list(dict.fromkeys(values))


def _precisions(draft: Draft) -> list[tuple[str, str]]:
    if draft.settings.training.device == "cuda":
        sixteen = rules.gpu_dtype(draft.machine).value
        wanted = [(sixteen, "none"), (sixteen, "nf4")]
    else:
        wanted = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")]
        wanted = wanted[1:] if draft.machine.host.bfloat16 else wanted
    training = draft.settings.training
    if rules.mixture_of_experts(draft.spec) or training.method == "full" or training.sharding == "fsdp":
        wanted = wanted[:-1]
    pairs = [(_open(draft, "compute_dtype", [d])[0], _open(draft, "quantization", [q])[0]) for d, q in wanted]
    return list(dict.fromkeys(pairs))


def _batches(draft: Draft, rows_a_step: int, length: int) -> list[tuple[int, int]]:
    """Rows (or packed sequences) at once and batches a step, largest first."""
    training = draft.settings.training
    rows_a_step = a_step(draft, rows_a_step, length)
    if not draft.free("training.batch_size"):
        accumulation = max(round(rows_a_step / training.batch_size), 1)
        return [(training.batch_size, _open(draft, "gradient_accumulation_steps", [accumulation])[0])]
    if not draft.free("training.gradient_accumulation_steps"):
        accumulation = training.gradient_accumulation_steps
        return [(max(rows_a_step // accumulation, 1), accumulation)]
    width = length if training.packing else draft.lengths.percentile_95
    a_gpu = math.ceil(rows_a_step / world_of(training, draft.machine))
    micro = rules.micro_batch_target(width, a_gpu, training.device)
    return [(size, rows_a_step // size) for size in (micro >> shift for shift in range(micro.bit_length()))]


def _reason(draft: Draft, path: str, first: Values, chosen: Values, rows_a_step: int) -> Choice:
    """Why a field has its value, with figures of the candidates that were tried."""
    value, free = chosen[path], human_bytes(_memory(draft, chosen).free)
    if path == "training.sequence_length":
        return rules.sequence_length(draft.spec, draft.lengths, value)
    if path == "training.compute_dtype":
        on_gpu = draft.settings.training.device == "cuda"
        return rules.gpu_dtype(draft.machine) if on_gpu else _cpu_dtype(draft, value, free)
    if path == "training.quantization":
        return _quantization(draft, first, chosen, free)
    if path == "training.gradient_checkpointing":
        return _checkpointing(draft, chosen, value, free)
    if path == "training.optimizer":
        return _optimizer(draft, chosen, value, free)
    if path == "training.batch_size":
        return _batch_size(draft, first, chosen, free, rows_a_step)
    if path == "training.gradient_accumulation_steps":
        what = _rows(draft)
        return Choice(
            value, f"{chosen['training.batch_size']} x {value} {what} a step; few are better", rules.LWR
        )
    if value == first[path]:
        return draft.choices[path]
    return Choice(value, f"rank {first[path]} does not fit in {free}", rules.MEMORY)


def _cpu_dtype(draft: Draft, value: str, free: str) -> Choice:
    unit = draft.machine.host.bfloat16
    if value == "bfloat16" and unit:
        times = "half again to twice" if unit == "AMX" else "up to twice"
        return Choice(
            value, f"{times} as fast as float32 on this CPU, which has {unit} for it", rules.MACHINE
        )
    if value == "float32":
        return Choice(value, f"exact, and it fits in {free} of RAM", rules.MEMORY)
    return Choice(value, f"float32 does not fit in {free} of RAM", rules.MEMORY)


def _quantization(draft: Draft, first: Values, chosen: Values, free: str) -> Choice:
    if chosen["training.quantization"] == "nf4":
        weights = _memory(draft, first | {"training.quantization": "none"}).parts[0].bytes
        whole = _memory(draft, chosen | {"training.quantization": "none"})
        if weights > whole.free:
            text = f"whole weights alone need {human_bytes(weights)} of the {free} that are free"
        else:
            text = f"with whole weights {human_bytes(whole.needed)} are needed and {free} are free"
        return Choice("nf4", text, rules.QLORA)
    if draft.settings.training.method == "full":
        return Choice("none", "a weight of 4 bits could not learn", rules.MODEL)
    if not draft.free(SHARDING) and draft.settings.training.sharding == "fsdp":
        return Choice("none", "fsdp shares out whole weights, not 4-bit ones", rules.MODEL)
    if rules.mixture_of_experts(draft.spec):
        return Choice("none", "4 bit would not reach the experts, which are most weights", rules.MODEL)
    return Choice("none", f"whole weights fit in the {free} that are free", rules.MEMORY)


def _checkpointing(draft: Draft, chosen: Values, value: str, free: str) -> Choice:
    """Nothing is computed again, or: what keeping all would need, and the time that is paid."""
    if value == "none":
        return Choice(value, f"all that the way back needs fits in {free}", rules.MEMORY)
    plain = chosen | {"training.gradient_checkpointing": "none"}
    more = _seconds(draft, chosen) / _seconds(draft, plain)
    time = f"; {100 * more - 100:.0f} % more time" if more >= 1.01 else ""
    return Choice(value, f"to keep all needs {_too_much(_memory(draft, plain))}{time}", rules.MEMORY)


def _optimizer(draft: Draft, chosen: Values, value: str, free: str) -> Choice:
    """Whether the two averages of each trained weight are exact, and what the other way would need."""
    exact = _memory(draft, chosen | {"training.optimizer": "adamw"})
    states = human_bytes(next(part.bytes for part in exact.parts if part.name == "optimizer"))
    if value == "adamw":
        return Choice(value, f"exact; its averages take {states}", rules.MEMORY)
    needed = human_bytes(exact.needed)
    return Choice(value, f"exact averages take {states}: {needed} needed, {free} free", rules.MEMORY)


def _rows(draft: Draft) -> str:
    """What a batch is made of."""
    return "packed sequences" if draft.settings.training.packing else "rows"


def _batch_size(draft: Draft, first: Values, chosen: Values, free: str, rows_a_step: int) -> Choice:
    value, length = chosen["training.batch_size"], chosen["training.sequence_length"]
    packing, what = draft.settings.training.packing, _rows(draft)
    rows_a_step = a_step(draft, rows_a_step, length)
    if value < first["training.batch_size"]:
        return Choice(value, f"more {what} at once do not fit in {free}", rules.MEMORY)
    world = world_of(draft.settings.training, draft.machine)
    if value * world >= rows_a_step:
        shared = f", {world} GPUs together" if world > 1 else ""
        return Choice(value, f"all {rows_a_step} {what} of a step at once{shared}", rules.PRACTICE)
    if not draft.free("training.gradient_accumulation_steps"):
        return Choice(value, f"with your batches a step that makes {rows_a_step} {what}", rules.PRACTICE)
    tokens = value * (length if packing else draft.lengths.percentile_95)
    return Choice(value, f"up to {tokens:,} tokens at once; more gains little speed", rules.PRACTICE)


def _given_up(draft: Draft, first: Values, chosen: Values) -> list[str]:
    """What the search changed, in a sentence; nothing when the first wish fits, or nothing does."""
    words = {
        "training.compute_dtype": "{} weights",
        "training.quantization": "{} weights",
        "training.sequence_length": "rows of at most {:,} tokens",
        "training.batch_size": "batch size {}",
        "training.gradient_checkpointing": "{}",
        "training.optimizer": "optimizer {}",
        SHARDING: "a part of the model on each GPU ({})",
        "training.rank": "rank {}",
    }
    changed = [
        text.format(RECOMPUTED.get(str(chosen[path]), chosen[path]))
        for path, text in words.items()
        if chosen.get(path) != first.get(path)
    ]
    memory = _memory(draft, first)
    if not changed or not _memory(draft, chosen).fits:
        return []
    return [f"The fastest settings need {_too_much(memory)}, so chosen: {', '.join(changed)}."]


def _too_much(memory: MemoryEstimate) -> str:
    """What is needed and what is free, for candidates that do not fit, or leave too little to spare."""
    spare = f" less {SPARE:.0%} spare" if memory.fits else ""
    return f"{human_bytes(memory.needed)}, {human_bytes(memory.free)}{spare} are free"
