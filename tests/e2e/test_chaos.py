"""Random kills, signals, stops, pauses, full disks and faults: each run comes to what it would have come to.

A seeded few of what `python -m tests.bench.chaos` does by the hundreds.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import ALL, TRAINING, Chaos, Trial
from tests.core.train_parts import make_run, write_rows
from tests.forked import ForkServer
from tests.small_disk import SmallDisk, small_disk
from tests.tiny import build_model

SEED = 20
WHOLE = {"epochs": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def disk(folder: Path) -> Iterator[SmallDisk | None]:
    """A disk that can be filled; without one the other disturbances are left."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(small_disk(folder / "home", "64m"))
        except pytest.skip.Exception as reason:
            print(f"No disk is filled: {reason}")
            (folder / "home").mkdir(exist_ok=True)
            yield None


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.parametrize("kind", ["one row at once", "not finite"])
def test_a_disturbed_run_comes_to_the_same(
    folder: Path, disk: SmallDisk | None, server: ForkServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(folder / "home"))
    model, rows = folder / "model", folder / "rows.jsonl"
    if not rows.exists():
        build_model(model)
        write_rows(rows)
    chaos = Chaos(server, random.Random(SEED), disk)
    trial = Trial(kind, chaos, lambda: make_run(model, rows, training=ALL | TRAINING[kind] | WHOLE))
    assert trial.went_back == (kind == "not finite")
    trial.disturb(6)
