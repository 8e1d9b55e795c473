"""How often the coach is wrong on random curves of each kind, how often it wavers, and what it costs.

    python -m tests.bench.coach [--runs 400]
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from ollama_tune.tui.coach import advise
from tests.tui.coach_curves import KINDS, draw_run, turns, verdicts


def rate_kinds(runs: int) -> None:
    """A line a kind: wrong verdicts on the end, what they were, and changes back to an earlier verdict."""
    each, wrong_all = runs // len(KINDS), 0
    for name, kind in KINDS.items():
        said = [verdicts(kind, seed) for seed in range(each)]
        wrong = Counter(kinds[-1] for kinds in said if kinds[-1] not in kind.right)
        wrong_all += wrong.total()
        wavering = sum(turns(kinds) for kinds in said) / each
        print(f"{name:<12} wrong {wrong.total():>3} of {each}  turned back {wavering:.2f} a run  {dict(wrong)}")
    print(f"all          wrong {wrong_all} of {each * len(KINDS)}: {wrong_all / (each * len(KINDS)):.1%}")


def cost() -> None:
    """CPU of one verdict on a long run, the least of several tries."""
    *_, view = draw_run(KINDS["falling"], random.Random(3))
    for step in range(view.step + 1, 5001):
        for curve in (view.losses, view.norms, view.rates):
            curve.add(step, 1.0 + 0.1 * random.random())
    best = min(_seconds(lambda: advise(view)) for _ in range(20))
    print(f"a verdict on {len(view.losses.buckets)} buckets: {best * 1e3:.2f} ms CPU")


def _seconds(work: object, times: int = 20) -> float:
    began = time.process_time()
    for _ in range(times):
        work()  # type: ignore[operator]
    return (time.process_time() - began) / times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    rate_kinds(parser.parse_args().runs)
    cost()
