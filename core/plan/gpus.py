"""Which GPUs a run takes, how its rows are shared among them, and whether they suit each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ollama_tune.core.machine.values import Gpu, Machine

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import TrainingSettings

AnyTraining = TypeVar("AnyTraining", bound="TrainingSettings")
MUCH_LESS = 0.5
"""A GPU with less than this share of the first one's free memory would hold it back."""


def taken(training: TrainingSettings, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs that a run with these settings takes of those that are found: all, or the first so many.

    Of instances that MIG cut from cards it takes one: NCCL does not connect them.
    """
    if training.device != "cuda":
        return ()
    return tuple(gpus[: 1 if any(gpu.mig for gpu in gpus) else training.gpus or None])


def world_of(training: TrainingSettings, machine: Machine) -> int:
    """Processes of a run on this box: one a GPU; on the CPU one, or as many as are asked for."""
    if training.device == "cuda":
        return max(len(taken(training, machine.gpu.gpus)), 1)
    return max(training.gpus, 1)


def rows_a_step(training: TrainingSettings) -> int:
    """Rows (or packed sequences) of an optimizer step, over all processes."""
    return training.batch_size * training.gradient_accumulation_steps


def of_one(training: AnyTraining, world: int) -> AnyTraining:
    """The part of a step that one of so many processes computes: its rows at once, and how often."""
    if world == 1:
        return training
    rows = math.ceil(rows_a_step(training) / world)
    at_once = min(training.batch_size, rows)
    mine = {"batch_size": at_once, "gradient_accumulation_steps": math.ceil(rows / at_once)}
    return training.model_copy(update=mine)


def suitable(gpus: Sequence[Gpu]) -> int:
    """How many of the first GPUs suit each other: none has much less memory than the first, is older, or is
    an instance that MIG cut from a card."""
    for count, gpu in enumerate(gpus):
        first = gpus[0]
        older = (gpu.compute_capability or (99, 0))[0] < (first.compute_capability or (0, 0))[0]
        if gpu.free < MUCH_LESS * first.free or older or (gpu.mig and count):
            return count
    return len(gpus)


def by_free(gpu: Gpu) -> int:
    """Orders GPUs by their free memory; the one with the least decides what fits on all."""
    return gpu.free


def together_words(machine: Machine) -> str:
    """Which of several GPUs a run takes unless it is told otherwise, in a sentence; empty for one or none."""
    gpus = machine.gpu.gpus
    if len(gpus) < 2 or machine.device != "cuda":
        return ""
    count = suitable(gpus)
    if count == len(gpus):
        return f"All {count} train together, unless the settings say otherwise."
    first = "The first trains" if count == 1 else f"The first {count} train together"
    if gpus[count].mig:
        return f"{first}: instances that MIG cut from cards do not train together."
    return f"{first}; the next has far less memory free, or is older, and would hold back."


def gpu_words(gpus: Sequence[Gpu]) -> str:
    """`2 x RTX 4090`, or the names of different ones."""
    names = [gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for gpu in gpus]
    kinds = list(dict.fromkeys(names))
    counts = [(names.count(kind), kind) for kind in kinds]
    return " + ".join(kind if count == 1 else f"{count} x {kind}" for count, kind in counts)
