"""Predicted against measured memory of whole runs on the CPU: training, resumed or not, then the export.

    python -m tests.bench.cpu_memory                    # all cases, half an hour on one core
    python -m tests.bench.cpu_memory --only nf4         # those with that in their name
    python -m tests.bench.cpu_memory --phases           # with the most that each phase held

Predicted is what the worker itself tells at its start for the rows it has. Measured is the most resident
memory that the worker's process held. Models are random and made on the spot; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
LOOK = 0.02
"""Seconds between two looks at a worker."""
SIXTEEN: dict[str, Any] = {"compute_dtype": "bfloat16"}
FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-4}
NF4: dict[str, Any] = {**SIXTEEN, "quantization": "nf4"}
GENERAL: dict[str, Any] = {"path": "general"}
LAYERS: dict[str, Any] = {"gradient_checkpointing": "layers"}
LONG: dict[str, Any] = {"batch_size": 16, "gradient_checkpointing": "none"}


@dataclass(frozen=True)
class Case:
    """A run: its model, what is unlike the usual settings, the step at which it is stopped and resumed."""

    name: str
    model: str
    training: Mapping[str, Any] = field(default_factory=dict)
    stop: int = 0
    export: bool = False


CASES = (
    Case("fast", "small"),
    Case("fast, 16 bit", "small", SIXTEEN),
    Case("fast, export", "small", SIXTEEN, export=True),
    Case("fast, resumed, export", "small", SIXTEEN, stop=4, export=True),
    Case("general", "small", GENERAL),
    Case("general, 16 bit", "small", {**GENERAL, **SIXTEEN}),
    Case("general, resumed, export", "small", {**GENERAL, **SIXTEEN}, stop=4, export=True),
    Case("fast, each layer twice", "small", {**SIXTEEN, **LAYERS}),
    Case("general, each layer twice", "small", {**GENERAL, **SIXTEEN, **LAYERS}),
    Case("full", "small", FULL),
    Case("full, 16 bit", "small", {**FULL, **SIXTEEN}),
    Case("full, 16 bit, export", "small", {**FULL, **SIXTEEN}, stop=4, export=True),
    Case("nf4", "small", NF4),
    Case("nf4, export", "small", NF4, export=True),
    Case("nf4, general", "small", {**NF4, **GENERAL}),
    Case("nf4, 8-bit optimizer", "small", {**NF4, "optimizer": "adamw_8bit"}),
    Case("frozen layers", "small", {"freeze_layers": 4}),
    Case("frozen layers, 16 bit", "small", {**SIXTEEN, "freeze_layers": 4, **LONG}),
    Case("frozen layers, general", "small", {**SIXTEEN, **GENERAL, "freeze_layers": 4, **LONG}),
    Case("frozen layers, full", "small", {**FULL, **SIXTEEN, "freeze_layers": 6}),
    Case("frozen layers, nf4", "small", {**NF4, "freeze_layers": 6}),
    Case("dpo", "small", {**SIXTEEN, "objective": "dpo"}),
    Case("bundled, fast", "bundled", export=True),
    Case("bundled, resumed, export", "bundled", {}, stop=10, export=True),
    Case("bundled, 16 bit, export", "bundled", SIXTEEN, export=True),
    Case("bundled, full", "bundled", {**FULL, "compute_dtype": "bfloat16"}),
    Case("bundled, nf4", "bundled", NF4, export=True),
    Case("bundled, frozen layers", "bundled", {"freeze_layers": 2}),
)


@dataclass
class Seen:
    """What a worker held at most, in bytes: in all, and by phase."""

    peak: int = 0
    looks: list[tuple[float, int, int]] = field(default_factory=list)
    """Moment, anonymous memory, pages of files."""

    def look(self, pid: int) -> None:
        """Note the figures of a process, unless it is at its end."""
        try:
            text = Path(f"/proc/{pid}/status").read_text()
            peak, own, files = (_kib(text, name) for name in ("VmHWM", "RssAnon", "RssFile"))
        except (OSError, IndexError):
            return
        self.peak = max(self.peak, peak)
        self.looks.append((time.time(), own, files))

    def phases(self, events: list[Any]) -> Iterator[tuple[str, int, int]]:
        """Each phase with the most that it held: anonymous memory, and all."""
        starts = [(e.t, f"{e.get('stage') or e.get('name')}") for e in events if e.kind in ("start", "phase")]
        ends = [moment for moment, _ in starts[1:]] + [float("inf")]
        for (begin, name), end in zip(starts, ends, strict=True):
            part = [(own, own + files) for moment, own, files in self.looks if begin <= moment < end]
            if part:
                yield name, max(own for own, _ in part), max(both for _, both in part)


def _kib(status: str, name: str) -> int:
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def settings_of(case: Case, folder: Path) -> Any:
    """The run's settings: 8 steps of rows of the training bench, or of the bundled rows."""
    from ollama_tune.core.plan.settings import Settings

    training = {
        "device": "cpu",
        "compute_dtype": "float32",
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "sequence_length": 512,
        "rank": 16,
        "gradient_checkpointing": "none",
        **case.training,
    }
    values: dict[str, Any] = {"evaluation.rows": 8, "export.push": False, "training.evaluation_interval": 4}
    values["export.name"] = "memory" if case.export else None
    if case.model == "small":
        from tests.bench.train_material import material

        made = material()
        rows = folder / "rows.jsonl"
        text = made.rows.read_text().splitlines(keepends=True)[:72]
        rows.write_text("".join(map(_paired, text) if training.get("objective") == "dpo" else text))
        values |= {"model.source": str(made.model), "data.path": str(rows)}
        training |= {"epochs": 1.0}
    return Settings().with_values(values | {f"training.{name}": value for name, value in training.items()})


def _paired(line: str) -> str:
    """A row as a pair: its answer, and half of it."""
    import json

    question, answer = (turn["content"] for turn in json.loads(line)["messages"][-2:])
    return json.dumps({"prompt": question, "chosen": answer, "rejected": answer[: len(answer) // 2]}) + "\n"


def measure(case: Case) -> tuple[int, Seen, list[Any]]:
    """Run a case: predicted bytes, what was seen, and the events of the last worker."""
    from ollama_tune.core.runs.folder import create_run

    with tempfile.TemporaryDirectory(prefix="cpu-memory-") as home:
        os.environ["OLLAMA_TUNE_HOME"] = home
        folder = create_run(settings_of(case, Path(home)), "memory")
        seen = Seen()
        if case.stop:
            watch(folder, "train", Seen(), case.stop)
        before = len(folder.events())
        watch(folder, "all" if case.export else "train", seen)
        events = folder.events()[before:]
    if events[-1].kind != "done":
        raise SystemExit(f"{case.name}: {events[-1]}")
    parts = next(event["predicted"] for event in events if event.kind == "data")
    return sum(parts.values()), seen, events


def watch(folder: Any, stage: str, seen: Seen, stop: int = 0) -> None:
    """Start a worker and look at it until it ends; `stop` is the step after which it is asked to."""
    from ollama_tune.core.runs.launch import start

    start(folder, stage)
    process = folder.process()
    while process is not None and folder.alive():
        seen.look(process.pid)
        if stop and any(event.kind == "step" and event["step"] >= stop for event in folder.events()):
            folder.stop_path.touch()
        time.sleep(LOOK)


def line(case: Case, predicted: int, seen: Seen) -> str:
    """A row of the table."""
    own = max(own for _, own, _ in seen.looks)
    return (
        f"| {case.name} | {case.model} | {predicted / MIB:,.0f} | {seen.peak / MIB:,.0f} "
        f"| {own / MIB:,.0f} | {predicted / seen.peak:.2f} |"
    )


def main() -> None:
    """Run what is asked for, a row each as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--phases", action="store_true", help="with the most that each phase held")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    print("| case | model | predicted MiB | measured MiB | of it anonymous | predicted / measured |")
    print("|-|-|-|-|-|-|", flush=True)
    for case in CASES:
        if asked.only not in case.name:
            continue
        predicted, seen, events = measure(case)
        print(line(case, predicted, seen), flush=True)
        for name, own, both in seen.phases(events) if asked.phases else ():
            print(f"    {name:20} {own / MIB:8,.0f} {both / MIB:8,.0f}", flush=True)


if __name__ == "__main__":
    main()
