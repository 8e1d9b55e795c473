"""What a run on several GPUs looks like (new pictures: `pytest --snapshot-update`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder

from .run_logs import Clock, Log, alive, open_app, steady_surroundings, until_text

GIB = 1 << 30


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    yield from steady_surroundings(monkeypatch, tmp_path)


@pytest.mark.parametrize(("keys", "text"), [((), "GPU 3"), (("m",), "at the peak")], ids=["panel", "window"])
def test_four_gpus(keys: tuple[str, ...], text: str, clock: Clock, snap_compare: Callable[..., bool]) -> None:
    path = runs_dir() / "2026-11-21-1130-kitchen"
    path.mkdir()
    folder = RunFolder(path)
    Settings().save(folder.settings_path)
    log = Log(folder, clock)
    log.training(120)
    log("data", predicted={"weights": 6 * GIB, "optimizer": GIB, "activations": 8 * GIB})
    gauges = [
        {
            "device": "cuda",
            "used": (12 + rank) * GIB,
            "peak": (14 + rank) * GIB,
            "free": (11 - rank) * GIB,
            "total": 24 * GIB,
        }
        for rank in range(4)
    ]
    ranks = [{"rank": rank, "host": "box", **gauge} for rank, gauge in enumerate(gauges) if rank]
    parts = {"weights": 6 * GIB, "adapter": GIB, "activations": 7 * GIB}
    log("memory", **gauges[0], parts=parts, host="box", ranks=ranks)

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, "step 120 of 200")
        await pilot.press(*keys)
        await until_text(pilot, text)
        await pilot.pause()

    with alive(folder):
        assert snap_compare(open_app(folder), terminal_size=(80, 24), run_before=prepare)
