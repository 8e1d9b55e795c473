"""`python -m tests.bench.chaos --count 200`: disturbs real runs so often and prints what became of them.

Runs of a tiny model on the CPU, on both training paths, with random kills, signals, stops, pauses, full
disks, GPU errors and shortages of memory, and with losses that become infinite. Every run must come to the
very losses, measurements and adapter of one that nothing happened to. Fails at the first that does not.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos import ALL, KINDS, TRAINING, Chaos, Trial
from tests.core.train_parts import make_run, write_rows
from tests.forked import ForkServer
from tests.small_disk import SmallDisk, small_disk
from tests.tiny import build_model

ROWS, EPOCHS = 60, 6.0
PER_RUN = 12
"""Disturbances of a run of 72 steps; it goes back a few steps at most of them."""


def main() -> None:
    """Run as many disturbances as asked for, spread over the paths and the kinds of runs."""
    parser = argparse.ArgumentParser(prog="tests.bench.chaos")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--paths", nargs="+", default=["general", "fast"])
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(10)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        try:
            with small_disk(home, "64m") as disk:
                _bench(given, Path(folder), disk)
        except BaseException as error:
            if type(error).__name__ != "Skipped":
                raise
            print(f"No disk is filled: {error}")
            home.mkdir(exist_ok=True)
            _bench(given, Path(folder), None)


def _bench(given: argparse.Namespace, folder: Path, disk: SmallDisk | None) -> None:
    os.environ["OLLAMA_TUNE_HOME"] = str(folder / "home")
    model, rows = build_model(folder / "model"), write_rows(folder / "rows.jsonl", ROWS)
    print(f"seed {given.seed}")
    done: Counter[str] = Counter()
    resumed: Counter[str] = Counter()
    trials = [(path, kind) for path in given.paths for kind in KINDS]
    for number, (path, kind) in enumerate(trials):
        wanted = given.count * (number + 1) // len(trials) - given.count * number // len(trials)
        training: dict[str, Any] = {"epochs": EPOCHS, "path": path, **ALL, **TRAINING[kind]}
        chaos = _try(kind, model, rows, training, wanted, given.seed + number, disk)
        done.update(chaos.tally.done)
        resumed.update(chaos.tally.resumed)
        print(
            f"{path:<8} {kind:<16} {chaos.tally.done.total():>4} disturbances, {chaos.tally.runs:>3} runs, "
            f"{chaos.tally.seconds:6.1f} s: every run as if nothing had happened",
            flush=True,
        )
    print(f"{'':<16}{'times':>6}{'workers ended and resumed':>28}")
    for name, count in sorted(done.items()):
        print(f"{name:<16}{count:>6}{resumed[name]:>28}")
    print(f"{'all':<16}{done.total():>6}{resumed.total():>28}")


def _try(
    kind: str,
    model: Path,
    rows: Path,
    training: dict[str, Any],
    count: int,
    seed: int,
    disk: SmallDisk | None,
) -> Chaos:
    """All disturbances of one kind of runs, from a process that has imported the path."""
    with ForkServer() as server:
        chaos = Chaos(server, random.Random(seed), disk)
        trial = Trial(kind, chaos, lambda: make_run(model, rows, training=training))
        while (left := count - chaos.tally.done.total()) > 0:
            trial.disturb(min(left, PER_RUN))
    return chaos


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s in all")
