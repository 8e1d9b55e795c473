"""What only this program does, measured on a pty: going back to a run, watching one, a very long preview, and
typing beside an answer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ollama_tune.core.evaluate.asking import Asking, Sampling, save_asking
from ollama_tune.core.plan.prepare import prepare
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock, create_run
from ollama_tune.core.runs.launch import start
from ollama_tune.tui.state import STEPS, WizardState
from tests.bench.pty_probe import Probe, percentile, started

EVENTS = 20_000
RATE = 4.0
WATCH = 30.0
ROWS = 1_000_000
PRESSES = 60
LETTERS = 100
OPENINGS = 40
PLACES = (
    ("list of models", "Model", "", "down", "up"),
    ("rows of the data", "Data", "tab", "down", "up"),
    ("fields of Settings", "Settings", "", "down", "up"),
    ("a figure typed in Settings", "Settings", "", "7", "\x7f"),
    ("the command palette opened", "This machine", "", "ctrl+p", "escape"),
    ("the list of all keys opened", "This machine", "", "f1", "escape"),
    ("the list of runs opened", "This machine", "", "l", "escape"),
)
"""What is measured, the step where it is, a key that leads there, its key, and one between: an escape is
not counted, since a terminal waits whether it begins a sequence."""


@contextlib.contextmanager
def home() -> Iterator[str]:
    """A folder of its own for runs and answers, ours and the program's."""
    before = os.environ.get("OLLAMA_TUNE_HOME")
    with tempfile.TemporaryDirectory(prefix="tune-scene-", ignore_cleanup_errors=True) as place:
        os.environ["OLLAMA_TUNE_HOME"] = place
        try:
            yield place
        finally:
            os.environ.pop("OLLAMA_TUNE_HOME")
            if before is not None:
                os.environ["OLLAMA_TUNE_HOME"] = before


class Steps:
    """Writes the events of a run as the worker does, with a noisy falling loss."""

    def __init__(self, folder: RunFolder, total: int) -> None:
        self._events, self._total, self._step = EventWriter(folder.events_path), total, 0
        self._events.write(
            "start", stage="train", pid=os.getpid(), device="cpu", model="bundled", path="fast"
        )
        self._events.write("data", total_steps=total, train_rows=432, validation_rows=48, left_out=0)

    def step(self) -> None:
        """One more; every fiftieth with a measurement, a checkpoint and the memory."""
        self._step += 1
        loss = 0.4 + 2.5 / (1 + self._step / 200) + random.gauss(0, 0.1)
        share = self._step / self._total
        rates = {"learning_rate": 2e-4 * (1 - share), "gradient_norm": 1 + random.random()}
        counts = {"useful_tokens": 1200, "supervised_tokens": 500, "seconds": 0.25, "cpu_seconds": 0.25}
        where = {"step": self._step, "total_steps": self._total, "epoch": 3 * share}
        self._events.write("step", **where, loss=loss, **rates, **counts)
        if self._step % 50 == 0:
            self._events.write("evaluation", model="tuned", step=self._step, loss=loss + 0.1)
            self._events.write("checkpoint", step=self._step, bytes=3 << 20, best=True, reason="evaluation")
            self._events.write(
                "memory", device="cpu", used=1 << 30, peak=2 << 30, free=1 << 33, total=1 << 34
            )


def _attach(command: Sequence[str], folder: str) -> float:
    """CPU seconds of `attach` until the newest run's figures stand on the screen."""
    with started([*command, "attach"], folder) as probe:
        probe.until("Training")
        probe.settle()
        return probe.cpu()


def reattach(command: Sequence[str]) -> list[str]:
    """A run of many events against one of ten, a live one both times."""
    spent: dict[int, list[float]] = {10: [], EVENTS: []}
    for count in (10, EVENTS):
        with home() as place:
            run = create_run(Settings(), "bench")
            steps, lock = Steps(run, count), RunLock(run)
            for _ in range(count):
                steps.step()
            spent[count] = [_attach(command, place) for _ in range(5)]
            lock.release()
    few, many = (statistics.median(values) for values in spent.values())
    more = 1e3 * (many - few)
    return [
        f"going back to a run of {EVENTS:,} steps: {many:.2f} CPU s, {more:.0f} ms more than to one of 10"
    ]


def watch(command: Sequence[str]) -> list[str]:
    """A run that writes four steps a second."""
    with home() as place:
        run = create_run(Settings(), "bench")
        steps, lock, ended = Steps(run, 4000), RunLock(run), threading.Event()
        for _ in range(1000):
            steps.step()

        def train() -> None:
            while not ended.wait(1 / RATE):
                steps.step()

        thread = threading.Thread(target=train)
        thread.start()
        with started([*command, "attach"], place) as probe:
            probe.until("step")
            probe.watch(5.0)
            share, painted = probe.watch(WATCH)
        ended.set()
        thread.join()
        lock.release()
    return [f"watching {RATE:g} steps a second: {share:.2f} % of a core, {painted / 1e3:.1f} kB/s"]


def _million(place: str) -> Path:
    path = Path(place) / "million.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            said = {"prompt": f"Question {number} of many", "response": f"Answer {number}"}
            file.write(json.dumps(said) + "\n")
    return path


def preview(command: Sequence[str]) -> list[str]:
    """The rows of a file of a million: going down by pages once all are known."""
    with home() as place:
        WizardState(step=[step.title for step in STEPS].index("Data") + 1, data=str(_million(place))).save()
        with started(command, place) as probe:
            probe.until("Question 0")
            began = time.perf_counter()
            while time.perf_counter() - began < 120:
                if 0 <= probe.watch(2.0)[0] < 2.0:  # below 0 a child has ended
                    break
            read = probe.own()
            probe.press("tab")
            before = probe.own()
            took = [probe.press("pagedown") for _ in range(PRESSES)]
            spent = 1e3 * (probe.own() - before) / PRESSES
    return [
        f"a file of {ROWS:,} rows: {read:.1f} CPU s of the window's own process; "
        f"a page further {spent:.1f} CPU ms, {statistics.median(took):.1f} ms "
        f"(95 %: {percentile(took, 0.95):.1f})"
    ]


def keys(command: Sequence[str]) -> list[str]:
    """Keys of many places at rest, with four runs in the list of runs."""
    told = []
    for name, step, first, key, between in PLACES:
        with home() as place:
            for _ in range(4):
                create_run(Settings(), "bench")
            WizardState(step=[step.title for step in STEPS].index(step) + 1).save()
            with started(command, place) as probe:
                probe.until(step)
                probe.rest()
                if first:
                    probe.press(first)
                took = []
                for _ in range(OPENINGS):
                    took.append(probe.press(key))
                    other = probe.press(between)
                    took += [] if between == "escape" else [other]
        told.append(f"{name}: {statistics.median(took):.0f} ms (95 %: {percentile(took, 0.95):.0f})")
    return [f"a key to its repaint: {'; '.join(told)}"]


def _echoes(probe: Probe) -> list[float]:
    """Milliseconds from a letter to its own repaint, whatever else is painted meanwhile: each is another."""
    found = []
    for letter in map(chr, range(0x100, 0x100 + LETTERS)):
        probe.watch(0.05)
        found.append(probe.echo(letter))
    return found


def typing(command: Sequence[str]) -> list[str]:
    """Letters typed in Try it, at rest and while an answer of many tokens a second streams in."""
    with home() as place:
        run = create_run(prepare("bundled", "bundled", {"training.epochs": 1.0}).settings, "bench")
        start(run, "train")
        while run.alive() or run.tuned is None:
            time.sleep(0.2)
        save_asking(run, Asking(Sampling(temperature=5.0, seed=3), max_new_tokens=20_000))
        WizardState(step=[step.title for step in STEPS].index("Try it") + 1, run=run.name).save()
        with started(command, place) as probe:
            probe.until("Ask both models")
            probe.settle()
            rest = _echoes(probe)
            probe.press("\x15")
            probe.press("Tell me all that you know.")
            probe.press("enter")
            probe.until("Both models answer")
            before = probe.painted
            streamed = _echoes(probe)
            painted = probe.painted - before
    return [
        f"a letter in Try it: {statistics.median(rest):.0f} ms at rest (95 %: {percentile(rest, 0.95):.0f}), "
        f"{statistics.median(streamed):.0f} ms beside an answer that streams in "
        f"(95 %: {percentile(streamed, 0.95):.0f}), {painted / LETTERS / 1e3:.1f} kB painted a letter"
    ]


SCENES: tuple[Callable[[Sequence[str]], list[str]], ...] = (reattach, watch, preview, typing, keys)
