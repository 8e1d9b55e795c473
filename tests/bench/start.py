"""How fast it starts: the wizard beside a bare Textual app, and a cold worker beside a warm one.

    make bench            or   python -m tests.bench.start --runs 7

CPU seconds are of the process itself at the moment its first frame is whole; wall seconds depend on
what else the machine does, so compare the columns of one run, not runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.terminal import Terminal

BARE = """
from textual.app import App
from textual.widgets import Footer, Header, Label, OptionList
class Bare(App):
    def compose(self):
        yield Header(icon="-")
        yield Label("first frame")
        yield OptionList(*[f"option {n}" for n in range(30)])
        yield Footer()
Bare().run()
"""


def first_frame(command: list[str], text: str, home: str) -> tuple[float, float]:
    """Wall and CPU seconds until `text` is painted."""
    environment = {**os.environ, "OLLAMA_TUNE_HOME": home, "COLORTERM": "truecolor"}
    began = time.monotonic()
    with Terminal(command, environment, columns=120, lines=40) as terminal:
        process = psutil.Process(terminal.process.pid)
        terminal.wait(text, 30)
        wall, times = time.monotonic() - began, process.cpu_times()
        return wall, times.user + times.system


def first_step(warm: bool) -> float:
    """Wall seconds from the order to start until the first optimizer step of the bundled model."""
    from ollama_tune.core.plan.prepare import prepare
    from ollama_tune.core.runs import control, launch
    from ollama_tune.core.runs.folder import create_run

    settings = prepare("bundled", "bundled", {"evaluation.rows": 0}).settings
    worker = launch.WarmWorker() if warm else None
    while worker is not None and not worker.ready:
        time.sleep(0.05)
    folder = create_run(settings, "bench")
    began = time.monotonic()
    launch.start(folder, "train", worker)
    while not any(event.kind == "step" for event in folder.events()):
        if not folder.alive():
            raise RuntimeError(folder.status().message)
        time.sleep(0.02)
    seconds = time.monotonic() - began
    control.request_stop(folder)
    control.wait_until_free(folder, 60)
    return seconds


def row(label: str, values: list[float]) -> str:
    """Minimum, median and maximum."""
    return f"{label:<44} {min(values):7.3f} {statistics.median(values):7.3f} {max(values):7.3f}"


def main() -> None:
    """Measure in alternation and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    home = tempfile.mkdtemp(prefix="tune-bench-")
    os.environ["OLLAMA_TUNE_HOME"] = home
    tune, bare = [], []
    for _ in range(runs + 1):
        tune.append(first_frame([sys.executable, "-m", "ollama_tune.tui"], "This machine", home))
        bare.append(first_frame([sys.executable, "-c", BARE], "first frame", home))
    steps = {warm: [first_step(warm) for _ in range(max(runs // 2, 1))] for warm in (False, True)}
    print(f"{'seconds':<44} {'min':>7} {'median':>7} {'max':>7}")
    print(row("ollama-tune, first frame, CPU", [cpu for _, cpu in tune[1:]]))
    print(row("bare Textual app, first frame, CPU", [cpu for _, cpu in bare[1:]]))
    print(row("ollama-tune, first frame, wall", [wall for wall, _ in tune[1:]]))
    print(row("bare Textual app, first frame, wall", [wall for wall, _ in bare[1:]]))
    print(row("start to first step, cold worker, wall", steps[False]))
    print(row("start to first step, warm worker, wall", steps[True]))
    ratio = statistics.median(c for _, c in tune[1:]) / statistics.median(c for _, c in bare[1:])
    print(f"ollama-tune / bare Textual app, CPU to the first frame: {ratio:.2f}")
    print(f"left in {Path(home)}")


if __name__ == "__main__":
    main()
