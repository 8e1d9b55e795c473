"""Setup, export and the end at 60x18, in 16 colours and without (anew: `pytest --snapshot-update`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_tune.core.runs.folder import RunFolder
from tests.tui import test_snapshots_run as runs
from tests.tui.conftest import Corner, cpu_machine, gpu_machine
from tests.tui.run_logs import Clock, Log, open_app, steady_surroundings
from tests.tui.test_snapshots_setup import STEPS, Compare, picture

SMALL, USUAL = (60, 18), (80, 24)


@pytest.mark.parametrize("step", STEPS, ids=STEPS.get)
def test_step_in_a_small_window(step: int, corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(step, machine=gpu_machine), SMALL)


def test_what_to_do_about_a_problem(corner: Corner, snap_compare: Compare) -> None:
    row = json.dumps({"question": "Which bird?", "answer": "A jay."})
    corner.rows.write_text(f'{row}\n{row}\n{{"question": "Which\n')
    assert picture(snap_compare, corner.app(3), USUAL, "tab", "down")


@pytest.mark.parametrize("step", [2, 4], ids=["model", "settings"])
def test_sixteen_colours(
    step: int, corner: Corner, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "screen")
    monkeypatch.delenv("COLORTERM")
    app = corner.app(step, machine=gpu_machine, changed={"training.epochs": 9.0})
    assert app.theme == "ansi-dark"
    assert picture(snap_compare, app, USUAL)


def test_review_without_colour(
    corner: Corner, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert picture(snap_compare, corner.app(5, machine=lambda: cpu_machine(64 << 20)), USUAL)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    yield from steady_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def folder(clock: Clock) -> RunFolder:
    return runs.run_called("2026-11-21-1130-kitchen")


def test_export_in_a_small_window(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).trained()
    assert runs.picture(snap_compare, open_app(folder, 8, cpu_machine), SMALL, "(•) f16", "No Ollama answers")


def test_done_in_a_small_window(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).trained().exported("kitchen")
    assert runs.picture(
        snap_compare, open_app(folder, 9), SMALL, "✓ kitchen is in Ollama", "ollama run kitchen"
    )
