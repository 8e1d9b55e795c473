"""What a plan chooses where there are several GPUs: how many train together, and what each holds."""

from __future__ import annotations

from typing import Any

from ollama_tune.core.plan import rules
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.gpus import gpu_words, suitable, world_of
from ollama_tune.core.plan.padding import packed_rows
from ollama_tune.core.plan.sharding import can_share_out
from ollama_tune.core.plan.values import Choice
from ollama_tune.core.text import human_bytes, one_line

GPUS, SHARDING, PACKING = "training.gpus", "training.sharding", "training.packing"


def a_step(draft: Draft, rows_a_step: int, length: int) -> int:
    """The rows of a step; where they are packed, the sequences of so many tokens that hold about as many."""
    if not draft.settings.training.packing:
        return rows_a_step
    return rules.power_of_two_near(rows_a_step / packed_rows(draft.lengths, length)[0])


def choose_gpus(draft: Draft, rows_a_step: int) -> None:
    """All GPUs that suit each other and get rows of a step; packing goes where it would leave some idle."""
    count = _suitable(draft)
    training = draft.settings.training
    length = rules.sequence_lengths(draft.spec, draft.lengths, packing=training.packing)[0]
    sequences = a_step(draft, rows_a_step, length)
    if training.packing and sequences < count and draft.free(PACKING):
        text = f"packed, a step would have {sequences} sequences for {count} GPUs"
        draft.choose(PACKING, Choice(False, text, rules.MACHINE))
        sequences = rows_a_step
    draft.choose(GPUS, _gpus(draft, count, sequences))


def _suitable(draft: Draft) -> int:
    found = draft.machine.gpu.gpus
    return suitable(found) if draft.settings.training.device == "cuda" else 1


def _gpus(draft: Draft, count: int, rows: int) -> Choice:
    found = draft.machine.gpu.gpus
    if draft.settings.training.device != "cuda":
        return Choice(0, "0: of GPUs only, and none trains here", rules.MACHINE)
    if len(found) <= 1:
        return Choice(0, f"0: every GPU that is found, here {len(found)}", rules.MACHINE)
    if rows < count:
        return Choice(rows, f"of {len(found)} GPUs: a step has {rows} rows, so more would wait", rules.LWR)
    if count < len(found):
        other, free = found[count], human_bytes(found[count].free)
        text = f"the next, {one_line(other.name, 24)} with {free} free, would hold back"
        return Choice(count, text, rules.MACHINE)
    return Choice(0, f"all {count} share the rows of a step: {one_line(gpu_words(found), 40)}", rules.MACHINE)


def shardings(draft: Draft, quantization: str) -> list[dict[str, Any]]:
    """What each GPU may hold of the model, as values to try, best first; nothing to choose on one GPU."""
    training = draft.settings.training.model_copy(update={"quantization": quantization})
    if not draft.free(SHARDING) or world_of(training, draft.machine) == 1:
        return [{}]
    return [{SHARDING: "ddp"}, *([{SHARDING: "fsdp"}] if can_share_out(training) else [])]


def choose_sharding(draft: Draft) -> None:
    """The reason for what the search found; where the whole model fits, the run looks once more itself."""
    if not draft.free(SHARDING):
        return
    memory = draft.memory(draft.settings)
    needed, free, world = human_bytes(memory.needed), human_bytes(memory.free), memory.processes
    if world == 1:
        choice = Choice("auto", "of no effect with 1 GPU", rules.MACHINE)
    elif memory.sharded:
        whole = draft.memory(draft.settings.with_value(SHARDING, "ddp"))
        text = f"the whole model: {human_bytes(whole.needed)} of {free} free; a part of it: {needed}"
        choice = Choice("fsdp", text, rules.MEMORY)
    else:
        choice = Choice("auto", f"ddp: {needed} of {free} free on each of {world} GPUs", rules.MEMORY)
    draft.choose(SHARDING, choice)
    draft.choose("training.path", rules.path(draft.spec, draft.settings.training))
