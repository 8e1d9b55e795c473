"""What is shown of the memory of a run that several processes work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.runs.events import Event
from ollama_tune.tui.follow import Follower
from ollama_tune.tui.rank_words import by_rank, memory_lines
from ollama_tune.tui.run_values import Memory
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.run_memory import _lines
from ollama_tune.tui.widgets.memory import compact

GIB = 1 << 30


def gauge(number: int, device: str = "cuda") -> dict[str, Any]:
    used, peak = (5 + number) * GIB // 2, (9 + number) * GIB // 2
    return {"device": device, "used": used, "peak": peak, "free": 20 * GIB - used, "total": 24 * GIB}


def told(count: int, hosts: int = 1, device: str = "cuda", after: int = 0) -> Event:
    """The `memory` event of rank 0 of so many, on so many machines."""
    host = [f"node{rank * hosts // count}.cluster.example" for rank in range(count)]
    ranks = [{"rank": rank, "host": host[rank], **gauge(rank, device)} for rank in range(1, count)]
    parts = {"parts": {"weights": 3 * GIB, "activations": GIB}}
    return Event(after, 0.0, "memory", {**gauge(0, device), **parts, "host": host[0], "ranks": ranks})


def names(event: Event) -> list[str]:
    view = RunView()
    view.fold([event])
    return list(view.memories)


def test_gpus_are_counted_and_other_machines_named_only_where_there_are_any() -> None:
    assert names(told(4)) == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    assert names(told(4, hosts=2)) == ["GPU 0", "GPU 1", "node1 0", "node1 1"]
    assert names(told(2, device="cpu")) == ["rank 0", "rank 1"]
    odd = {"host": "a", "ranks": [{"rank": 1, "host": "b[/red]\x1b", "used": None}]}
    found = by_rank(Memory("cuda", 1, 2, 3, 4), odd)
    assert len(found) == 2 and found["GPU 0"].peak == 2 and "\x1b" not in "".join(found)


def test_rank_0_goes_on_alone_and_a_resumed_run_begins_anew() -> None:
    view = RunView()
    view.fold([told(2), Event(1, 0.0, "memory", {**gauge(6)})])
    assert [memory.peak for memory in view.memories.values()] == [15 * GIB // 2, 5 * GIB]
    view.fold([Event(2, 0.0, "start", {"stage": "train", "device": "cuda"})])
    view.fold([Event(3, 0.0, "memory", gauge(0))])
    assert list(view.memories) == ["cuda"]


def test_the_window_has_a_line_for_each_gpu_and_the_parts_of_the_first() -> None:
    view = RunView()
    view.fold([told(16)])
    text = "\n".join(str(line) for line in _lines(view, None, 100))
    assert all(f"GPU {number} " in text for number in range(16)) and text.count("peak, now") == 16
    assert "weights" in text or "model" in text


@pytest.mark.parametrize(("count", "width", "lines"), [(4, 76, 2), (8, 76, 2), (16, 76, 4), (3, 40, 2)])
def test_many_gpus_share_the_lines_that_there_are(count: int, width: int, lines: int) -> None:
    view = RunView()
    view.fold([told(count)])
    found = [str(line) for line in compact(list(view.memories.values()), width, lines)]
    assert len(found) == lines and max(map(len, found)) <= width
    assert all(f"GPU {number} " in " ".join(found) for number in range(count))


def test_more_than_fit_are_told_together_with_the_fullest() -> None:
    view = RunView()
    view.fold([told(16)])
    (line,) = map(str, compact(list(view.memories.values()), 76, 2))
    assert line == "16 processes: at the peak 4.5 GiB to 12.0 GiB; the fullest is GPU 15, 50%"


def test_plain_lines_tell_each_gpu_once_while_it_trains_and_at_the_end(tmp_path: Path) -> None:
    lines: list[str] = []
    follower = Follower(lines.append)
    measured = {"step": 5, "loss": 1.0, "exact_match": None, "rows": 4, "model": "tuned"}
    follower.show(told(2))
    for number in (1, 2):
        follower.show(Event(number, 0.0, "evaluation", measured))
    assert [line for line in lines if "GPU" in line] == memory_lines(follower._view.memories.values())
    assert lines[1:3] == [
        "  GPU 0: memory 4.5 GiB of 24.0 GiB at the peak",
        "  GPU 1: memory 5.0 GiB of 24.0 GiB at the peak",
    ]
    follower.show(Event(3, 0.0, "done", {"stage": "train", "steps": 5, "best_step": 5, "best_loss": 1.0}))
    assert sum("GPU 1" in line for line in lines) == 2
    view = RunView()
    view.fold([told(16)])
    assert len(memory_lines(view.memories.values())) == 5
