"""What the windows of a run look like (new pictures: `pytest --snapshot-update`)."""

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

Compare = Callable[..., bool]
Size = tuple[int, int]
SIZES = pytest.mark.parametrize(
    "size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}"
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    yield from steady_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def folder(clock: Clock) -> RunFolder:
    """A run that goes, with answers, memory and a warning."""
    path = runs_dir() / "2026-11-21-1130-kitchen"
    path.mkdir()
    folder = RunFolder(path)
    Settings().save(folder.settings_path)
    log = Log(folder, clock)
    log.training(120).samples(tuned=False)
    for step in range(1, 4):
        log.samples(step=step)
    log("data", predicted={"weights": 400 << 20, "optimizer": 90 << 20, "activations": 300 << 20})
    log("warning", what="The loss of step 118 is not a number.", fix="The step is left out.")
    return folder


def picture(compare: Compare, folder: RunFolder, size: Size, keys: tuple[str, ...], *texts: str) -> bool:
    """Compare what stands there after the keys, once the texts are on the screen."""

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, "step 120 of 200")
        await pilot.press(*keys)
        await until_text(pilot, *texts)
        await pilot.pause()

    with alive(folder):
        return compare(open_app(folder), terminal_size=size, run_before=prepare)


@SIZES
def test_answers(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    assert picture(snap_compare, folder, size, ("a",), "Question 1 of 3", "base model")


@SIZES
def test_log(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    assert picture(snap_compare, folder, size, ("l",), "What happened.", "not a number")


@SIZES
def test_memory(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    assert picture(snap_compare, folder, size, ("m",), "Memory of this run", "at the peak")


def test_a_zoomed_curve(folder: RunFolder, snap_compare: Compare) -> None:
    assert picture(snap_compare, folder, (120, 40), ("+",), "0 all", "others 484.0 MiB")


def test_sixteen_colours(folder: RunFolder, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "screen")
    monkeypatch.delenv("COLORTERM")
    assert picture(snap_compare, folder, (80, 24), (), "held-out loss", "peak")
