"""What a second process gains on one box, and what the processes of a run spend on talking.

    python -m tests.bench.ranks --rounds 3 --steps 10

The model and the rows of the training bench (40 million parameters), LoRA r 16, bfloat16, 16 rows a step. One
process with one thread, with two, and two processes with one thread each (gloo) take turns; rates are useful
tokens a second of the clock, of the steps after the first three. Apart from that two processes send the
weights and the gradients of that adapter to and fro and take the time of it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.events import Event, read_events
from ollama_tune.core.runs.folder import RunFolder, create_run
from tests.bench.train import UNCOUNTED, run_settings
from tests.bench.train_material import FOLDER, Material, material

TALKS = 50
"""How often all weights, and all gradients, are sent."""


class Way(NamedTuple):
    """So many processes of so many threads."""

    processes: int
    threads: int

    @property
    def label(self) -> str:
        """For a table."""
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{processes}, {self.threads} thread{'s' * (self.threads > 1)}"


WAYS = (Way(1, 1), Way(1, 2), Way(2, 1))


def run(way: Way, made: Material, steps: int) -> list[Event]:
    """Train so; the events of the run."""
    home = Path(tempfile.mkdtemp(prefix="ranks-", dir=FOLDER))
    try:
        tree = run_settings("fast", made.rows, made.model, 2 * (steps + UNCOUNTED))
        tree["training"] |= {"gradient_accumulation_steps": 2, "gpus": way.processes}
        folder = create_run(parse(tree), "ranks", home)
        return worked(folder, way, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def worked(folder: RunFolder, way: Way, home: Path) -> list[Event]:
    """Let the run's processes work to its end."""
    own = {"OMP_NUM_THREADS": str(way.threads), "OLLAMA_TUNE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    module = ["ollama_tune.core.train.ranks", str(way.processes)]
    command = module if way.processes > 1 else ["ollama_tune.core.train.worker"]
    with folder.log_path.open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", *command, str(folder.path), "--stage", "train"],
            env=os.environ | own,
            stdout=log,
            stderr=log,
            check=True,
        )
    return read_events(folder.events_path)


def rate_of(events: list[Event]) -> tuple[float, float]:
    """Useful tokens a second of the clock, and the median seconds of a step."""
    steps = [event for event in events if event.kind == "step"][UNCOUNTED:]
    seconds = [event["seconds"] for event in steps]
    return sum(event["useful_tokens"] for event in steps) / sum(seconds), statistics.median(seconds)


def talk(rank: int, port: int, shapes: list[list[int]], answer: Any) -> None:
    """One of two processes that send weights of such shapes and their gradients; rank 0 tells the times."""
    import torch
    import torch.distributed as dist

    from ollama_tune.core.train.flat import broadcast, reduce

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    weights = [torch.randn(shape).requires_grad_() for shape in shapes]
    found: dict[str, list[float]] = {"broadcast": [], "reduce": []}
    for _ in range(TALKS):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        dist.barrier()
        began = time.perf_counter()
        broadcast(weights)
        dist.barrier()
        between = time.perf_counter()
        reduce(weights, 1.0, leads=rank == 0)
        dist.barrier()
        found["broadcast"].append(between - began)
        found["reduce"].append(time.perf_counter() - between)
    dist.destroy_process_group()
    if rank == 0:
        answer.put({name: statistics.median(times) for name, times in found.items()})


def talked(shapes: list[list[int]]) -> dict[str, float]:
    """The median seconds of both, between two processes of this box."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    processes = [context.Process(target=talk, args=(rank, port, shapes, answer)) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[str, float] = answer.get(timeout=300)
    for process in processes:
        process.join()
    return found


def shapes_of(made: Material) -> list[list[int]]:
    """The shapes of the adapter that the runs train."""
    from ollama_tune.core.train.path import make_path

    training = parse(run_settings("fast", made.rows, made.model, 1)).training
    path = make_path(("fast", ""), made.model, training, "", lambda *_: None)
    return [list(weight.shape) for weight in path.weights.values()]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="also the figures of every round")
    given = parser.parse_args()
    made = material()
    shapes = shapes_of(made)
    count = sum(map(math.prod, shapes))
    found: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            found[way].append(rate_of(run(way, made, given.steps)))
            print(
                f"{number + 1}. {way.label:<22} {found[way][-1][0]:6.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    times = talked(shapes)
    if given.json:
        print(json.dumps({way.label: results for way, results in found.items()}))
    print(f"\nPython {platform.python_version()}, torch {version('torch')}, {os.cpu_count()} cores\n")
    print("\n".join(table(found)))
    print(f"\nThe adapter: {len(shapes)} tensors, {count:,} weights.\n")
    print("| each step | bytes | ms |\n|-|-|-|")
    print(f"| broadcast of the weights | {4 * count:,} | {1000 * times['broadcast']:.1f} |")
    print(f"| reduce of the gradients | {4 * (count + len(shapes)):,} | {1000 * times['reduce']:.1f} |")


def table(found: dict[Way, list[tuple[float, float]]]) -> list[str]:
    """A line for each way: the median rate of all rounds, the least and most, and the step's seconds."""
    base = statistics.median(rate for rate, _ in found[WAYS[0]])
    lines = ["| | useful tokens a second: median (least to most) | ratio | seconds a step |", "|-|-|-|-|"]
    for way, results in found.items():
        rates = [rate for rate, _ in results]
        middle, step = statistics.median(rates), statistics.median(seconds for _, seconds in results)
        span = f"{middle:.0f} ({min(rates):.0f} to {max(rates):.0f})"
        lines.append(f"| {way.label} | {span} | {middle / base:.2f} | {step:.2f} |")
    return lines


if __name__ == "__main__":
    main()
