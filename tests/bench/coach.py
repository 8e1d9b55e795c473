"""How often the coach is wrong on random curves of each kind, how often it wavers, and what it costs.

python -m tests.bench.coach [--runs 400]
python -m tests.bench.coach --record      (trains the bundled model five times: two minutes)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ollama_tune.core.paths import asset
from ollama_tune.core.runs.events import effective, read_events
from ollama_tune.tui.coach import advise
from tests.tui.coach_curves import KINDS, RECORDED, draw_run, turns, verdicts

FEW = 24
"""Rows of the run that learns few rows by heart."""
RUNS: dict[str, tuple[str, ...]] = {
    "sensible": ("training.epochs=6",),
    "rate 30 times too high": ("training.learning_rate=0.075", "training.early_stopping=0"),
    "rate 10 times too high": ("training.learning_rate=0.025", "training.early_stopping=0"),
    "rate 100 times too low": ("training.learning_rate=0.000025", "training.early_stopping=0"),
    "few rows, many epochs": (
        "training.epochs=60",
        "training.early_stopping=0",
        "data.validation_split=0.25",
        "training.evaluation_interval=10",
    ),
}


def rate_kinds(runs: int) -> None:
    """A line a kind: wrong verdicts on the end, what they were, and changes back to an earlier verdict."""
    each, wrong_all = runs // len(KINDS), 0
    for name, kind in KINDS.items():
        said = [verdicts(kind, seed) for seed in range(each)]
        wrong = Counter(kinds[-1] for kinds in said if kinds[-1] not in kind.right)
        wrong_all += wrong.total()
        wavering = sum(turns(kinds) for kinds in said) / each
        print(
            f"{name:<12} wrong {wrong.total():>3} of {each}, turned back {wavering:.2f} a run {dict(wrong)}"
        )
    print(f"all          wrong {wrong_all} of {each * len(KINDS)}: {wrong_all / (each * len(KINDS)):.1%}")


def cost() -> None:
    """CPU of one verdict on a long run, the least of several tries."""
    *_, view = draw_run(KINDS["falling"], random.Random(3))
    for step in range(view.step + 1, 10_001):
        for curve in (view.losses, view.norms, view.rates):
            curve.add(step, 1.0 + 0.1 * random.random())
    best = min(_seconds(lambda: advise(view)) for _ in range(20))
    print(f"a verdict on {len(view.losses.buckets)} buckets: {best * 1e3:.2f} ms CPU")


def _seconds(work: object, times: int = 20) -> float:
    began = time.process_time()
    for _ in range(times):
        work()  # type: ignore[operator]
    return (time.process_time() - began) / times


def record() -> None:
    """Train the bundled model in each of the ways and write their curves for the tests."""
    with tempfile.TemporaryDirectory() as home:
        found = {name: _trained(Path(home), name, values) for name, values in RUNS.items()}
    RECORDED.write_text(json.dumps(found, separators=(",", ":")) + "\n")


def _trained(home: Path, name: str, values: tuple[str, ...]) -> dict[str, object]:
    settings = ["export.name=null", "evaluation.rows=8", *values]
    if "few" in name:
        rows = home / "few.jsonl"
        rows.write_text("".join(asset("data/tickets.jsonl").read_text().splitlines(True)[:FEW]))
        settings.append(f"data.path={rows}")
    sets = [part for value in settings for part in ("--set", value)]
    environment = {**os.environ, "OLLAMA_TUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    tool = [sys.executable, "-m", "ollama_tune.tui"]
    file = str(home / "run.yaml")
    subprocess.run([*tool, "plan", "--output", file, "--no-simulation"], env=environment, check=True)
    subprocess.run([*tool, "run", file, *sets], env=environment, check=True)
    logs = (home / "data" / "runs").glob("*/events.jsonl")
    return recorded(max(logs, key=lambda path: path.stat().st_mtime))


def recorded(log: Path) -> dict[str, object]:
    """What the coach looks at in a log: each step's loss, gradient norm and rate, and the measurements."""
    events = effective(read_events(log))
    steps = [event for event in events if event.kind == "step"]
    return {
        "total": steps[0]["total_steps"],
        "steps": [
            [float(f"{event[name]:.4g}") for name in ("loss", "gradient_norm", "learning_rate")]
            for event in steps
        ],
        "held": [
            [event["step"] if event["model"] == "tuned" else 0, round(event["loss"], 4)]
            for event in events
            if event.kind == "evaluation" and event.get("loss") is not None
        ],
    }


if __name__ == "__main__":
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.record:
        record()
    else:
        rate_kinds(given.runs)
        cost()
