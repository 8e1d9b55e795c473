"""Parts for tests that train: a tiny model, a data file, a run folder, and workers to run on it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import RunFolder, create_run

WORDS = ["sky", "blue", "harbour", "birds", "old", "today", "answer", "yes", "no", "tomorrow"]
COLOURS = ("blue", "old", "short")


def write_rows(path: Path, count: int = 40) -> Path:
    """Questions of many lengths whose answer depends on a number in them."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, 12)))
            question = {"role": "user", "content": f"What is {number} {words}?"}
            answer = {"role": "assistant", "content": f"It is {COLOURS[number % 3]}."}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return path


def make_run(model: Path, data: Path, **sections: dict[str, Any]) -> RunFolder:
    """A run folder with quick settings, changed as asked: `training={"epochs": 1}`."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"source": str(model)},
        "data": {"path": str(data), "validation_split": 0.2},
        "training": {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "epochs": 2.0,
            "learning_rate": 5e-3,
            "rank": 4,
            "evaluation_interval": 5,
        },
        "evaluation": {"rows": 4, "max_new_tokens": 8},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return create_run(parse(tree), "tiny")


def work(folder: RunFolder, stage: str = "train") -> subprocess.CompletedProcess[bytes]:
    """Run a worker to its end."""
    command = [sys.executable, "-m", "ollama_tune.core.train.worker", str(folder.path), "--stage", stage]
    return subprocess.run(command, capture_output=True, timeout=500, env=quiet_environment(), check=False)


def quiet_environment() -> dict[str, str]:
    """One thread, so that several workers share two cores and sums have one order."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    """Until the condition holds; fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.01)


def kinds(events: list[Event]) -> list[str]:
    """The kinds of events in order, repeats in a row once, without the heartbeat."""
    found: list[str] = []
    for event in events:
        if event.kind != "memory" and (not found or found[-1] != event.kind):
            found.append(event.kind)
    return found


def curve(events: list[Event]) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step; the last event of a step counts."""
    return {e["step"]: (e["loss"], e["gradient_norm"]) for e in events if e.kind == "step"}


def no_workspaces(_name: str, _args: tuple[Any, ...]) -> list[int]:
    """What a tracker of memory counts for tensors of the CPU: operators there have other temporaries."""
    return []
