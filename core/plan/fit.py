"""Chooses what decides memory, together: the first candidate that fits, best first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ollama_tune.core.plan import rules
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.values import Choice, MemoryEstimate
from ollama_tune.core.text import human_bytes

SPARE = 0.1
"""Share of the free memory that a candidate must leave."""
LEAST_RANK = 8

Values = dict[str, Any]


def choose_memory(draft: Draft, rows_a_step: int) -> list[str]:
    """Set number formats, lengths, batches and rank; returns a sentence when something was given up."""
    first, chosen = _search(draft, rows_a_step)
    for path in chosen:
        if draft.free(path):
            draft.choose(path, _reason(draft, path, first, chosen, rows_a_step))
    return _given_up(draft, first, chosen)


def _search(draft: Draft, rows_a_step: int) -> tuple[Values, Values]:
    """The best candidate whether it fits or not, and the best that fits (else the smallest)."""
    first: Values = {}
    chosen: Values = {}
    for chosen in _candidates(draft, rows_a_step):
        first = first or chosen
        memory = _memory(draft, chosen)
        if memory.needed <= memory.free * (1 - SPARE):
            break
    return first, chosen


def _memory(draft: Draft, values: Values) -> MemoryEstimate:
    update = {path.partition(".")[2]: value for path, value in values.items()}
    training = draft.settings.training.model_copy(update=update)
    settings = draft.settings.model_copy(update={"training": training})
    return predict(settings, draft.spec, draft.machine, draft.lengths.longest)


def _candidates(draft: Draft, rows_a_step: int) -> Iterator[Values]:
    """What is given up, in this order, until the plan fits; the effective batch never changes.

    Fewer rows at once, checkpointing, a smaller number format, then shorter rows, then a lower rank.
    """
    rank = draft.settings.training.rank
    ranks = _open(draft, "rank", [rank, min(rank, LEAST_RANK)])
    lengths = _open(draft, "sequence_length", rules.sequence_lengths(draft.spec, draft.lengths))
    smaller = [(ranks[0], length) for length in lengths] + [(rank, lengths[-1]) for rank in ranks[1:]]
    for rank, length in smaller:
        for dtype, quantization in _precisions(draft):
            for checkpointing in _open(draft, "gradient_checkpointing", [False, True]):
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
    pairs = [(_open(draft, "compute_dtype", [d])[0], _open(draft, "quantization", [q])[0]) for d, q in wanted]
    return list(dict.fromkeys(pairs))


def _batches(draft: Draft, rows_a_step: int) -> list[tuple[int, int]]:
    """Rows at once and batches a step, largest first."""
    training = draft.settings.training
    if not draft.free("training.batch_size"):
        accumulation = max(round(rows_a_step / training.batch_size), 1)
        return [(training.batch_size, _open(draft, "gradient_accumulation_steps", [accumulation])[0])]
    if not draft.free("training.gradient_accumulation_steps"):
        accumulation = training.gradient_accumulation_steps
        return [(max(rows_a_step // accumulation, 1), accumulation)]
    micro = rules.micro_batch_target(draft.lengths, rows_a_step, training.device == "cuda")
    return [(size, rows_a_step // size) for size in (micro >> shift for shift in range(micro.bit_length()))]


def _reason(draft: Draft, path: str, first: Values, chosen: Values, rows_a_step: int) -> Choice:
    """Why a field has its value, with figures of the candidates that were tried."""
    value, free = chosen[path], human_bytes(_memory(draft, chosen).free)
    on_gpu = draft.settings.training.device == "cuda"
    if path == "training.sequence_length":
        return rules.sequence_length(draft.spec, draft.lengths, value)
    if path == "training.compute_dtype":
        return rules.gpu_dtype(draft.machine) if on_gpu else _cpu_dtype(value, free)
    if path == "training.quantization":
        return _quantization(draft, first, value, free)
    if path == "training.gradient_checkpointing":
        return _checkpointing(draft, chosen, value, free)
    if path == "training.batch_size":
        return _batch_size(first, value, free, rows_a_step, on_gpu)
    if path == "training.gradient_accumulation_steps":
        return Choice(
            value, f"{chosen['training.batch_size']} x {value} rows a step; few are better", rules.LWR
        )
    if value == first[path]:
        return draft.choices[path]
    return Choice(value, f"rank {first[path]} does not fit in {free}", rules.MEMORY)


def _cpu_dtype(value: str, free: str) -> Choice:
    if value == "float32":
        return Choice(value, f"exact, and it fits in {free} of RAM", rules.MEMORY)
    return Choice(value, f"float32 does not fit in {free} of RAM", rules.MEMORY)


def _quantization(draft: Draft, first: Values, value: str, free: str) -> Choice:
    if value == "none":
        return Choice(value, f"whole weights fit in the {free} that are free", rules.MEMORY)
    whole = human_bytes(_memory(draft, first | {"training.quantization": "none"}).parts[0].bytes)
    return Choice(value, f"whole weights alone need {whole} of the {free} that are free", rules.QLORA)


def _checkpointing(draft: Draft, chosen: Values, value: bool, free: str) -> Choice:
    if not value:
        return Choice(value, f"all fits in {free} without it", rules.MEMORY)
    needed = human_bytes(_memory(draft, chosen | {"training.gradient_checkpointing": False}).needed)
    return Choice(value, f"without it {needed} are needed and {free} are free", rules.MEMORY)


def _batch_size(first: Values, value: int, free: str, rows_a_step: int, on_gpu: bool) -> Choice:
    if value < first["training.batch_size"]:
        return Choice(value, f"more rows at once do not fit in {free}", rules.MEMORY)
    if value >= rows_a_step:
        return Choice(value, "all rows of a step at once", rules.PRACTICE)
    tokens = "8,000" if on_gpu else "2,000"
    return Choice(value, f"about {tokens} tokens at once; more gains little speed", rules.PRACTICE)


def _given_up(draft: Draft, first: Values, chosen: Values) -> list[str]:
    """What the search changed, in a sentence; nothing when the first wish fits."""
    words = {
        "training.compute_dtype": "{} weights",
        "training.quantization": "{} weights",
        "training.sequence_length": "rows of at most {:,} tokens",
        "training.batch_size": "batch size {}",
        "training.gradient_checkpointing": "gradient checkpointing",
        "training.rank": "rank {}",
    }
    changed = [text.format(chosen[path]) for path, text in words.items() if chosen[path] != first[path]]
    if not changed:
        return []
    memory = _memory(draft, first)
    needed, free = human_bytes(memory.needed), human_bytes(memory.free)
    return [f"The fastest settings need {needed} and {free} are free, so chosen: {', '.join(changed)}."]
