"""What the list of runs and the comparison look like (new pictures: `pytest --snapshot-update`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.screens.compare import CompareScreen

from .run_logs import Clock, Log, at_rest, open_app, steady_surroundings, until_text

Compare = Callable[..., bool]
Size = tuple[int, int]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    yield from steady_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def folders(clock: Clock) -> list[RunFolder]:
    """Three runs that differ in rank and rate; the last one was stopped."""
    found = []
    for name, rank, steps in (("kitchen", 16, 200), ("kitchen-small", 4, 160), ("kitchen-wide", 64, 90)):
        path = runs_dir() / f"2026-11-21-1130-{name}"
        path.mkdir()
        folder = RunFolder(path)
        values = {"training.rank": rank, "training.learning_rate": 2e-4 * 16 / rank}
        Settings().with_values(values).save(folder.settings_path)
        log = Log(folder, clock)
        if steps == 90:
            log.training(steps)("stopped", stage="train", step=90, reason="as you asked", resumable=True)
        else:
            log.trained(steps)
        found.append(folder)
    return found


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_compare(size: Size, folders: list[RunFolder], snap_compare: Compare) -> None:
    async def prepare(pilot: Pilot[Any]) -> None:
        await pilot.app.push_screen(CompareScreen(folders))
        await until_text(pilot, "What differs", "Rank  ", "step 200")
        await at_rest(pilot)

    assert snap_compare(open_app(folders[0]), terminal_size=size, run_before=prepare)


def test_runs_in_a_small_window_with_marks(folders: list[RunFolder], snap_compare: Compare) -> None:
    async def prepare(pilot: Pilot[Any]) -> None:
        await pilot.app.push_screen(pilot.app.runs_screen())  # type: ignore[attr-defined]
        await until_text(pilot, "■ stopped", "✓ Falling well")
        await pilot.press("space", "space")
        await until_text(pilot, "2 runs are marked", "c Compare")
        await at_rest(pilot)

    assert snap_compare(open_app(folders[2]), terminal_size=(60, 18), run_before=prepare)
