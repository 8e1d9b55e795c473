"""Training beside its peers: useful tokens a CPU second, memory, and the time to the first step.

    make bench-train PEERS=PYTHON
    python -m tests.bench.train --peers PYTHON [PYTHON ...] --rounds 3 --steps 12
    python -m tests.bench.train --only fast,general --rounds 1

One model of 40 million parameters and 2,000 long-tailed rows, made on the spot; batch 8, sequence 512, LoRA
r 16 on all linear layers, bfloat16, assistant tokens only; then the same with one system prompt in every
row. The contenders take turns, each in a process of its own with one thread and empty caches. Ours is
`ollama-tune run run.yaml --plain`, measured by its events; the peers by their CPU time around optimizer
steps. Rates are of the steps after the first three. `--peers` names interpreters that have trl, transformers
and peft (and unsloth); what none of them has is said and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from ollama_tune.core.files import write_atomic
from tests.bench.train_equal import equality
from tests.bench.train_material import FOLDER, ROOT, SEQUENCE, Material, material

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).with_name("train_peers.py")
BATCH, RANK, ALPHA, RATE, SEED = 8, 16, 32, 2e-4, 7
UNCOUNTED = 3
"""First steps that no rate counts."""
EVERY = 0.02


@dataclass(frozen=True)
class Contender:
    """One way to train; `needs` names the packages, none for ours. `batch` are rows, or packed sequences."""

    name: str
    label: str
    needs: tuple[str, ...] = ()
    batch: int = BATCH
    system: bool = True


CONTENDERS = (
    Contender("trl", "TRL, defaults", ("trl",)),
    Contender("trl-padding-free", "TRL, padding-free", ("trl",)),
    Contender("trl-packing", "TRL, packing, as many tokens a step", ("trl",), 3),
    Contender("unsloth", "Unsloth, defaults", ("unsloth",)),
    Contender("unsloth-keep-all", "Unsloth, no checkpointing", ("unsloth",), system=False),
    Contender("llamafactory", "LLaMA-Factory, defaults", ("llamafactory",)),
    Contender("llamafactory-keep-all", "LLaMA-Factory, no checkpointing", ("llamafactory",), system=False),
    Contender("llamafactory-packing", "LLaMA-Factory, packing", ("llamafactory",), 3, system=False),
    Contender("plain", "transformers + peft, padded", ("transformers", "peft"), system=False),
    Contender("general", "ours, general path"),
    Contender("fast", "ours, fast path"),
)
BASE = "trl"


@dataclass(frozen=True)
class Result:
    """What one process showed: useful tokens a CPU second and a second, bytes, seconds from its start."""

    rate: float
    speed: float
    memory: int
    first_wall: float
    first_cpu: float


@dataclass
class Watched:
    """A command that runs, with the most memory and the CPU time of its processes."""

    process: subprocess.Popen[str]
    peaks: dict[int, int] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        """Note the figures of the process and of what it started."""
        try:
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for member in family:
            try:
                status = Path(f"/proc/{member.pid}/status").read_text()
                self.peaks[member.pid] = 1024 * int(status.partition("VmHWM:")[2].split()[0])
                spent = member.cpu_times()
                self.times[member.pid] = spent.user + spent.system
            except (OSError, IndexError, psutil.Error):
                continue


def environment(folder: Path) -> dict[str, str]:
    """One thread, nothing from the network, and caches of its own."""
    found = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"), "1")
    homes = {"OLLAMA_TUNE_HOME": folder / "home", "HF_HOME": folder / "hf", "TMPDIR": folder}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "UNSLOTH_ALLOW_CPU": "1"}
    return {**os.environ, **found, **quiet, **{name: str(path) for name, path in homes.items()}}


def launch(command: Sequence[str], folder: Path) -> tuple[Watched, float]:
    """Start it with its output in `folder`; with the moment of the start."""
    with (folder / "said.txt").open("w") as said, (folder / "errors.txt").open("w") as errors:
        began = time.time()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(folder), stdout=said, stderr=errors, text=True
        )
    return Watched(process), began


def finish(watched: Watched, folder: Path) -> str:
    """What a command printed that must have succeeded."""
    said = (folder / "said.txt").read_text()
    if watched.process.returncode:
        raise RuntimeError(f"{said[-1500:]}\n{(folder / 'errors.txt').read_text()[-2500:]}")
    return said


def rate_of(steps: Sequence[dict[str, Any]], seconds: str) -> float:
    """Useful tokens for each of such seconds, without the first steps."""
    counted = steps[UNCOUNTED:]
    return sum(s["useful_tokens"] for s in counted) / sum(s[seconds] for s in counted)


# One contender in a process of its own


def train_peer(python: str, job: dict[str, Any], folder: Path) -> Result:
    """A peer's figures by its own record; on a GPU the memory is that of the GPU."""
    asked = json.dumps({**job, "folder": str(folder / "output")})
    watched, began = launch([python, str(PEER), asked], folder)
    while watched.process.poll() is None:
        watched.look()
        time.sleep(EVERY)
    found = json.loads(finish(watched, folder).strip().splitlines()[-1])
    first, done = found["first"], found["steps"]
    return Result(
        rate_of(done, "cpu_seconds"),
        rate_of(done, "seconds"),
        found["memory"] or max(watched.peaks.values()),
        first["time"] - began,
        first["cpu_seconds"],
    )


def job_of(contender: Contender, rows: Path, model: Path, steps: int) -> dict[str, Any]:
    """What a peer is told."""
    return {
        "name": contender.name,
        "device": "cpu",
        "quantization": "none",
        "model": str(model),
        "rows": str(rows),
        "steps": steps,
        "batch": contender.batch,
        "accumulation": 1,
        "checkpointing": False,
        "sequence": SEQUENCE,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": RATE,
        "seed": SEED,
    }


def run_settings(path: str, rows: Path, model: Path, steps: int) -> dict[str, Any]:
    """The `run.yaml` of a run of so many steps on 2,000 rows; nothing is held out, answered or exported."""
    from tests.bench.train_material import ROWS

    return {
        "model": {"source": str(model)},
        "data": {"path": str(rows), "validation_split": 0.0},
        "training": {
            "path": path,
            "compute_dtype": "bfloat16",
            "rank": RANK,
            "alpha": ALPHA,
            "learning_rate": RATE,
            "batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            "sequence_length": SEQUENCE,
            "epochs": steps / (ROWS / BATCH),
            "seed": SEED,
        },
        "evaluation": {"rows": 0},
    }


def train_ours(settings: dict[str, Any], folder: Path) -> Result:
    """Our figures by the events of the run folder; on a GPU the memory is that of the GPU."""
    import yaml

    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "ollama_tune.tui", "run", str(file), "--plain"]
    watched, began = launch(command, folder)
    first_cpu = 0.0
    while watched.process.poll() is None:
        watched.look()
        if not first_cpu and any(event["kind"] == "step" for event in events(folder)):
            watched.look()
            first_cpu = sum(watched.times.values())
        time.sleep(EVERY)
    finish(watched, folder)
    told = events(folder)
    done = [event for event in told if event["kind"] == "step"]
    named = next(event["path"] for event in told if event.get("path"))
    if named != settings["training"]["path"]:
        raise RuntimeError(f"The run took the path {named!r}.")
    memory = [event for event in told if event["kind"] == "memory"]
    peak = max(event["peak"] for event in memory)
    if memory[-1]["device"] == "cpu":
        peak = max(peak, *watched.peaks.values())
    return Result(
        rate_of(done, "cpu_seconds"), rate_of(done, "seconds"), peak, done[0]["t"] - began, first_cpu
    )


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of the one run below a home."""
    files = list((folder / "home").rglob("events.jsonl"))
    if not files:
        return []
    lines = files[0].read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


# All of them


def interpreters(pythons: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each interpreter has, of the packages of the peers."""
    found = {}
    for python in pythons:
        told = subprocess.run([python, str(PEER)], capture_output=True, text=True, check=True, timeout=120)
        found[python] = json.loads(told.stdout)
    return found


def placed(
    contenders: Sequence[Contender], wanted: Sequence[str], have: dict[str, dict[str, str]]
) -> list[tuple[Contender, str]]:
    """Each wanted contender with the first interpreter that has what it needs; the others are named."""
    chosen = []
    for contender in contenders:
        if contender.name not in wanted:
            continue
        python = next((p for p, packages in have.items() if {*contender.needs} <= {*packages}), None)
        if python is None:
            print(f"LEFT OUT: {contender.label}: no interpreter of --peers has {', '.join(contender.needs)}.")
        else:
            chosen.append((contender, python))
    return chosen


def one(contender: Contender, python: str, rows: Path, model: Path, steps: int) -> Result:
    """Train in an empty folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{contender.name}-", dir=FOLDER))
    count = steps + UNCOUNTED
    try:
        if contender.needs:
            return train_peer(python, job_of(contender, rows, model, count), folder)
        return train_ours(run_settings(contender.name, rows, model, count), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(
    contenders: Sequence[tuple[Contender, str]], rows: Path, model: Path, steps: int, rounds: int
) -> Iterator[tuple[str, Result]]:
    """Every contender once a round, in turn; the order turns round with each. Who fails is named."""
    for number in range(rounds):
        turn = contenders if number % 2 == 0 else list(reversed(contenders))
        for contender, python in turn:
            label = f"  {number + 1}. {contender.label:<36}"
            try:
                found = one(contender, python, rows, model, steps)
            except RuntimeError as error:
                print(f"{label} FAILED: {str(error).strip().splitlines()[-1][:200]}", flush=True)
                continue
            print(
                f"{label} {found.rate:6.0f} tokens/CPU s, {found.memory / 1e9:5.2f} GB, first step "
                f"{found.first_wall:.1f} s, CPU {found.first_cpu:.1f} s",
                flush=True,
            )
            yield contender.name, found


def table(title: str, found: dict[str, list[Result]]) -> str:
    """Markdown: medians, the least and most of the rates, ratios to TRL's defaults by medians."""
    lines = [
        f"## {title}\n",
        "| | useful tokens a CPU s: median (least to most) | ratio | peak memory, GB | ratio "
        "| first step: s, least | CPU s, least |",
        "|-|-|-|-|-|-|-|",
    ]
    for contender in CONTENDERS:
        results = found.get(contender.name, [])
        if not results:
            continue
        rates = [result.rate for result in results]
        memory = statistics.median(result.memory for result in results)
        cells = [
            contender.label,
            f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
            ratio(statistics.median(rates), [r.rate for r in found.get(BASE, [])]),
            f"{memory / 1e9:.2f}",
            ratio(memory, [float(r.memory) for r in found.get(BASE, [])]),
            f"{min(result.first_wall for result in results):.1f}",
            f"{min(result.first_cpu for result in results):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(value: float, base: Sequence[float]) -> str:
    """To the median of the base, where it took part."""
    return f"{value / statistics.median(base):.2f}" if base else "–"


def about(rounds: int, steps: int, have: dict[str, dict[str, str]]) -> str:
    """What the figures hold for."""
    ours = {name: version(name) for name in ("torch", "transformers", "peft")}
    peers = {name: number for packages in have.values() for name, number in packages.items()}
    told = ", ".join(f"{name} {number}" for name, number in {**ours, **peers}.items())
    return (
        f"# Training beside its peers, on the CPU\n\n{cpu()}, one thread; Python "
        f"{platform.python_version()}, {told}.\nA Llama of 40 million parameters, 2,000 rows (median 150 "
        f"tokens, at most 512, 54 % learned), batch {BATCH}, LoRA r {RANK} on all linear layers,\nbfloat16, "
        f"assistant tokens only. {rounds} rounds of {steps} steps after {UNCOUNTED} that do not count. "
        f"Load of the box at the end: {os.getloadavg()[2]:.1f} on {os.cpu_count()} cores (15 minutes)."
    )


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    """Measure the rows without and with a system prompt, and how far the losses are apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", default=[], metavar="PYTHON", help="who has the peers")
    parser.add_argument("--only", default=",".join(c.name for c in CONTENDERS), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="that count, of 8 rows")
    parser.add_argument("--equal-steps", type=int, default=20, help="of the comparison of losses; 0: none")
    parser.add_argument("--rows", choices=("plain", "system", "both"), default="both")
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    given = parser.parse_args()
    have = interpreters([*given.peers, sys.executable])
    contenders = placed(CONTENDERS, given.only.split(","), have)
    made = material()
    parts = [about(given.rounds, given.steps, have)]
    for title, rows in chosen_rows(given.rows, made):
        print(title, flush=True)
        found: dict[str, list[Result]] = {}
        taking = [(c, p) for c, p in contenders if c.system or rows == made.rows]
        for name, result in measure(taking, rows, made.model, given.steps, given.rounds):
            found.setdefault(name, []).append(result)
        parts.append(table(title, found))
        print(parts[-1], flush=True)
    if given.equal_steps:
        parts.append(equality(made, given.equal_steps))
        print(parts[-1])
    if given.output:
        write_atomic(given.output, "\n\n".join(parts) + "\n")


def chosen_rows(which: str, made: Material) -> list[tuple[str, Path]]:
    """The sets of rows with their titles."""
    system = "One system prompt of 130 tokens in every row", made.system_rows
    both = {"plain": ("Rows of their own", made.rows), "system": system}
    return [both[name] for name in both if which in (name, "both")]


if __name__ == "__main__":
    main()
