"""How fast it starts: the wizard beside a bare Textual app, a run beside transformers + peft doing the same.

    make bench            or   python -m tests.bench.start --runs 7 [--only run]

Everything alternates in one run, on one thread. CPU seconds are of all processes of a contender; wall seconds
depend on what else the machine does, so compare the lines of one run, not runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from ollama_tune.core.paths import asset
from ollama_tune.core.plan.prepare import prepare
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control, launch
from ollama_tune.core.runs.folder import RunFolder, create_run, list_runs
from tests.terminal import Terminal

Seconds = tuple[float, float]
"""Wall and CPU."""
TUNE = [sys.executable, "-m", "ollama_tune.tui"]
POLL = 0.005

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

PEER = """
import json, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, data = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
def encode(messages):
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    known = len(tokenizer(asked, add_special_tokens=False).input_ids)
    return ids, [-100] * known + ids[known:]
rows = [encode(json.loads(line)["messages"]) for line in open(data)]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config)
optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=2.5e-3, fused=True)
batch = rows[:8]
width = max(len(ids) for ids, _ in batch)
def padded(rows, fill):
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
ids, labels = padded([ids for ids, _ in batch], 0), padded([labels for _, labels in batch], -100)
mask = padded([[1] * len(ids) for ids, _ in batch], 0)
loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print(float(loss), time.process_time())
"""
IMPORT = "import time, torch; print(0, time.process_time())"


def first_frame(command: list[str], text: str, home: str) -> Seconds:
    """Until `text` is painted."""
    environment = {**os.environ, "OLLAMA_TUNE_HOME": home, "COLORTERM": "truecolor"}
    began = time.monotonic()
    with Terminal(command, environment, columns=120, lines=40) as terminal:
        process = psutil.Process(terminal.process.pid)
        terminal.wait(text, 30)
        return time.monotonic() - began, cpu(process)


def script(code: str, *arguments: str) -> Seconds:
    """A script that ends by printing a figure and its CPU seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return time.monotonic() - began, float(done.stdout.split()[1])


def cpu(process: psutil.Process) -> float:
    """User and system seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def worker_of(folder: RunFolder) -> psutil.Process:
    """The run's worker at the moment its first step is told."""
    while not any(event.kind == "step" for event in folder.events()):
        if folder.events() and not folder.alive():
            raise RuntimeError(folder.status().message)
        time.sleep(POLL)
    worker = folder.process()
    assert worker is not None
    return worker


@contextlib.contextmanager
def stopping(folder: RunFolder) -> Iterator[None]:
    """Ends the run afterwards."""
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            control.request_stop(folder)
        control.wait_until_free(folder, 60)


def whole_command(settings: Settings) -> Seconds:
    """From the start of `ollama-tune run` to the end of the first step; the CPU of both processes."""
    file = Path(tempfile.mkdtemp()) / "run.yaml"
    settings.save(file)
    known = {folder.name for folder in list_runs()}
    began = time.time()
    with subprocess.Popen([*TUNE, "run", str(file), "--plain"], stdout=subprocess.DEVNULL) as command:
        while not (new := [folder for folder in list_runs() if folder.name not in known]):
            time.sleep(POLL)
        with stopping(new[0]):
            spent = cpu(worker_of(new[0])) + cpu(psutil.Process(command.pid))
            ended = next(event.t for event in new[0].events() if event.kind == "step")
    return ended - began, spent


def from_start(settings: Settings, warm: bool, draft: Settings | None = None) -> Seconds:
    """From the press of Start; the CPU is what the worker spends from then on."""
    worker = launch.WarmWorker() if warm else None
    if worker is not None:
        while not worker.ready:
            time.sleep(POLL)
        worker.prepare(draft)
        settle(psutil.Process(worker.pid))
    before = cpu(psutil.Process(worker.pid)) if worker is not None else 0.0
    folder = create_run(settings, "bench")
    began = time.time()
    launch.start(folder, "train", worker)
    with stopping(folder):
        spent = cpu(worker_of(folder)) - before
        ended = next(event.t for event in folder.events() if event.kind == "step")
    return ended - began, spent


def settle(process: psutil.Process) -> None:
    """Until the process has been idle for half a second."""
    before = -1.0
    while cpu(process) - before > 0.05:
        before = cpu(process)
        time.sleep(0.5)


def contenders(settings: Settings) -> dict[str, Callable[[], Seconds]]:
    """What is measured beside each other: a name and how to measure it once."""
    general = settings.with_value("training.path", "general")
    peer = str(asset("model")), str(asset("data/tickets.jsonl"))
    return {
        "python -c 'import torch'": lambda: script(IMPORT),
        "transformers + peft, plain script": lambda: script(PEER, *peer),
        "ollama-tune run --plain": lambda: whole_command(settings),
        "ollama-tune run --plain, general path": lambda: whole_command(general),
        "from Start, cold worker": lambda: from_start(settings, False),
        "from Start, worker with imports": lambda: from_start(settings, True),
        "from Start, worker with the model": lambda: from_start(settings, True, settings),
    }


def row(label: str, values: list[Any]) -> str:
    """Least and median of wall and CPU."""
    wall, spent = zip(*values, strict=True)
    figures = min(wall), statistics.median(wall), min(spent), statistics.median(spent)
    return f"{label:<44}" + "".join(f"{figure:9.3f}" for figure in figures)


def main() -> None:
    """Measure in alternation and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=("frame", "run"))
    given = parser.parse_args()
    home = tempfile.mkdtemp(prefix="tune-bench-")
    os.environ |= {"OLLAMA_TUNE_HOME": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    measured: dict[str, Callable[[], Seconds]] = {}
    if given.only != "run":
        measured |= {
            "ollama-tune, first frame": lambda: first_frame(TUNE, "This machine", home),
            "bare Textual app, first frame": lambda: first_frame(
                [sys.executable, "-c", BARE], "first frame", home
            ),
        }
    if given.only != "frame":
        measured |= contenders(prepare("bundled", "bundled", {"export.push": False}).settings)
    found: dict[str, list[Seconds]] = {name: [] for name in measured}
    for number in range(given.runs + 1):
        for name, measure in measured.items():
            figures = measure()
            if number:  # the first round fills the caches of files and tokens
                found[name].append(figures)
    print(f"{'seconds':<44}{'wall min':>9}{'median':>9}{'CPU min':>9}{'median':>9}")
    for name, values in found.items():
        print(row(name, values))
    print(f"left in {home}")


if __name__ == "__main__":
    main()
