"""Work that is not done twice, or not at all: counted and not timed."""

from __future__ import annotations

import platform
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from ollama_tune.core.evaluate.chat import APART, Pieces
from ollama_tune.core.machine import heap
from ollama_tune.core.plan import fit
from ollama_tune.core.plan.recommend import make_plan
from tests.cases import CHAT, LLAMA_70B, machine


def test_a_quick_model_tells_its_answer_in_at_most_fifteen_pieces_a_second() -> None:
    now, told = [100.0], list[tuple[float, str]]()
    pieces = Pieces(lambda text: told.append((now[0], text)), clock=lambda: now[0])
    words = [f"word {number} " for number in range(2000)]
    for word in words:
        pieces.add(word)
        now[0] += 0.001
    pieces.flush()
    pieces.flush()
    assert told[0] == (100.0, words[0]) and "".join(text for _, text in told) == "".join(words)
    assert len(told) <= 2 / APART + 2
    gaps = [after - before for (before, _), (after, _) in pairwise(told[:-1])]
    assert min(gaps) >= APART


def test_a_slow_model_tells_each_piece_at_once() -> None:
    now, told = [0.0], list[str]()
    pieces = Pieces(told.append, clock=lambda: now[0])
    for number in range(20):
        pieces.add(str(number))
        assert told[-1] == str(number)
        now[0] += 1.5 * APART


def test_of_what_does_not_fit_only_the_groups_that_decide_are_sorted_by_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [0]
    seconds = fit._seconds

    def counted(*values: Any) -> float:
        asked[0] += 1
        return seconds(*values)

    monkeypatch.setattr(fit, "_seconds", counted)
    box, changed = machine(gpu=8), {"training.rank": 512}
    assert not make_plan(box, LLAMA_70B, CHAT, changed).memory.fits
    assert 0 < asked[0] < 1000  # all groups: 2,500


FREED = """
import psutil
from MODULE import give_back, one_heap
assert one_heap()
pieces = [bytes([1]) * 60_000 for _ in range(400)]
last, _ = bytes([1]) * 60_000, pieces.clear()  # above what is free, so that nothing goes back by itself
before = psutil.Process().memory_info().rss
assert give_back() and last
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has several heaps")
def test_threads_share_one_heap_and_what_was_freed_in_it_is_given_back() -> None:
    """In a process of its own: what the tests before it left in this one's heap would count too."""
    code = FREED.replace("MODULE", heap.__name__)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(said) > 10 << 20
