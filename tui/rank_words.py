"""The memory of each process of a run that several work on: how they are called, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.run_values import Memory

HOST = 6
"""Letters of another machine's name that are shown."""
A_LINE = 4
"""So many processes stand in one line where there are more than that."""


def by_rank(first: Memory, about: Mapping[str, Any]) -> dict[str, Memory]:
    """Rank 0's memory and that of the others, of which a `memory` event tells, by the names they go by.

    Processes are counted on their machine, from 0; one of another machine than rank 0's has its name, too.
    """
    found: dict[str, Memory] = {}
    home = about.get("host")
    counts: Counter[str] = Counter()
    for rank in [{"host": home}, *about["ranks"]]:
        host = str(rank.get("host") or home)
        memory = _measured(first.device, rank) if "rank" in rank else first
        away = host if home and host != home else ""
        name = _named(first.device, one_line(away.partition(".")[0], 80), counts[host])
        counts[host] += 1
        found[name] = replace(memory, device=name)
    return found


def _measured(device: str, about: Mapping[str, Any]) -> Memory:
    used, peak, free, total = (int(about.get(name) or 0) for name in ("used", "peak", "free", "total"))
    return Memory(device, used, peak, free, total)


def _named(device: str, host: str, number: int) -> str:
    if host:
        return f"{host[-HOST:]} {number}"
    return f"{'GPU' if device.startswith('cuda') else 'rank'} {number}"


def memory_lines(memories: Iterable[Memory]) -> list[str]:
    """The peak of each of several, a line each; of many, a few in a line."""
    devices = list(memories)
    if len(devices) <= A_LINE:
        return [
            f"  {memory.device}: memory {human_bytes(memory.peak)} of {human_bytes(memory.total)} at the peak"
            for memory in devices
        ]
    cells = [f"{memory.device} {human_bytes(memory.peak)}" for memory in devices]
    total = human_bytes(max(memory.total for memory in devices))
    lines = ["   ".join(part) for part in parts(cells, A_LINE)]
    return [f"  memory at the peak, of {total} each:", *(f"    {line}" for line in lines)]


def parts(cells: Sequence[str], count: int) -> list[Sequence[str]]:
    """So many at a time."""
    return [cells[start : start + count] for start in range(0, len(cells), count)]
