"""LoRA on all experts at once (PEFT's `target_parameters`), as pairs of the experts in a model's files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import Adapter, Expert, Pair
from ollama_tune.core.export.adapter_config import BROKEN_ADAPTER
from ollama_tune.core.text import one_line


def expert_pairs(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Pair]:
    """Module of an expert -> its pair; `shapes` are those of the base by canonical names.

    transformers 5 computes with `gate_up_proj` (experts, 2 x width, in), gate before up, and `down_proj`
    (experts, in, width); the files hold three matrices an expert. Which of the two a pair belongs to is told
    by its shape, as they are nested under one name in any order.
    """
    found: dict[str, Pair] = {}
    for stack, parts in adapter.stacks.items():
        found |= _of_stack(adapter, stack, parts, shapes)
    return found


def _of_stack(
    adapter: Adapter, stack: str, parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Pair]:
    module = re.sub(r"(?:\.base_layer)+$", "", stack)
    count = 0
    while f"{module}.{count}.gate_proj.weight" in shapes:
        count += 1
    if not count or set(parts) != {"A", "B"}:
        raise TuneError(
            f"The adapter changes experts that the base model does not have: {one_line(stack, 80)}.",
            BROKEN_ADAPTER,
        )
    a, b = adapter.stored_shape(parts["A"]), adapter.stored_shape(parts["B"])
    width, hidden = shapes[f"{module}.0.gate_proj.weight"]
    halves = {(2 * width, hidden): "gate_up_proj", (hidden, width): "down_proj"}
    parameter = halves.get((b[0], a[1]))
    if parameter is None or a[0] % count or a[0] != b[1]:
        raise TuneError(
            f"The adapter's {one_line(stack, 80)} of the shapes {a} and {b} does not fit {count} experts of "
            f"{(width, hidden)}.",
            BROKEN_ADAPTER,
        )
    rank = a[0] // count
    scale = adapter.config.scale(f"{module}.{parameter}", rank)
    return {
        f"{module}.{number}.{name}": Pair(
            parts["A"], parts["B"], rank, scale, expert=Expert(number, count, start, stop)
        )
        for number in range(count)
        for name, start, stop in _matrices(parameter, width, hidden)
    }


def _matrices(parameter: str, width: int, hidden: int) -> Iterator[tuple[str, int, int]]:
    """The matrices of an expert in a parameter, with the rows of each."""
    if parameter == "gate_up_proj":
        yield "gate_proj", 0, width
        yield "up_proj", width, 2 * width
    else:
        yield "down_proj", 0, hidden
