"""What the screens of a run look like, at 80x24 and 120x40 (new pictures: `pytest --snapshot-update`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input

from ollama_tune.core.export.values import Check
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder
from tests.cases import LLAMA_8B

from .conftest import cpu_machine, gpu_machine
from .run_logs import Clock, Log, alive, open_app, steady_surroundings, until_text

SIZES = pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
Compare = Callable[..., bool]
Size = tuple[int, int]
OLLAMA_CHECKS = [
    Check("ollama version", "pass", "0.34.0", "This Ollama uses the file's template and rewrites the file."),
    Check("ollama name", "pass", "x:latest", "The name is one that Ollama takes."),
    Check(
        "ollama disk",
        "pass",
        "17.1 GiB",
        "The model needs 17.1 GiB (twice the file: this version rewrites it) of 180.0 GiB free on Ollama's "
        "disk.",
    ),
]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    yield from steady_surroundings(monkeypatch, tmp_path)


def run_called(name: str, model: str = "bundled") -> RunFolder:
    path = runs_dir() / name
    path.mkdir()
    folder = RunFolder(path)
    Settings().with_value("model.source", model).save(folder.settings_path)
    return folder


@pytest.fixture
def folder() -> RunFolder:
    return run_called("2026-11-21-1130-kitchen")


def picture(compare: Compare, app: App[Any], size: Size, *texts: str) -> bool:
    """Compare the screen once the texts are on it."""

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, *texts)
        await pilot.pause()

    return compare(app, terminal_size=size, run_before=prepare)


@SIZES
def test_training(size: Size, folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).training(120).samples(step=100)
    with alive(folder):
        assert picture(snap_compare, open_app(folder), size, "step 120 of 200", "Checkpoint at step 100")


def test_training_in_a_small_window(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).training(120).samples(step=100)
    with alive(folder):
        assert picture(snap_compare, open_app(folder), (60, 18), "step 120 of 200", "checkpoint step 100")


def test_training_without_colour(
    folder: RunFolder, clock: Clock, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    Log(folder, clock).training(120).samples(step=100)
    with alive(folder):
        assert picture(snap_compare, open_app(folder), (80, 24), "step 120 of 200", "Checkpoint at step 100")


def test_paused_with_a_logarithmic_scale(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    log = Log(folder, clock).training(120).checkpoint(120, best=False, reason="pause")
    fix = f"It keeps its memory; `ollama-tune resume {folder.name}` lets it go on."
    log("paused", step=120, reason="request", what="The run waits, as it was asked to.", fix=fix)

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, "Paused at step 120", "p Go on")
        await pilot.press("y")
        await until_text(pilot, "log scale")
        await pilot.pause()

    with alive(folder):
        assert snap_compare(open_app(folder), terminal_size=(80, 24), run_before=prepare)


@SIZES
def test_crashed(size: Size, folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).training(120)
    folder.log_path.write_text(
        "Traceback (most recent call last):\nRuntimeError: [/foo] \x1b[31mno\nKilled\n"
    )
    assert picture(snap_compare, open_app(folder), size, "Killed", "r Resume")


@SIZES
def test_export_form(size: Size, clock: Clock, tiny_model: Path, snap_compare: Compare) -> None:
    folder = run_called("2026-11-21-1130-kitchen", str(tiny_model))
    Log(folder, clock).trained()
    app = open_app(folder, 8, cpu_machine)
    assert picture(snap_compare, app, size, "tiny-tickets", "No Ollama answers", "KiB", "✓ fits")


def test_export_with_a_wrong_name(clock: Clock, tiny_model: Path, snap_compare: Compare) -> None:
    folder = run_called("2026-11-21-1130-kitchen", str(tiny_model))
    Log(folder, clock).trained()

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, "tiny-tickets", "No Ollama answers", "KiB", "✓ fits")
        pilot.app.screen.query_one("#name", Input).value = "my kitchen"
        await pilot.press("enter")
        await until_text(pilot, "✗ The model")

    app = open_app(folder, 8, cpu_machine)
    assert snap_compare(app, terminal_size=(80, 24), run_before=prepare)


def test_export_of_a_large_model_with_ollama(
    clock: Clock, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An 8 B model on a 24 GiB GPU; only its shape is needed for what the form says."""
    monkeypatch.setattr("ollama_tune.core.models.describe.describe", lambda *_: LLAMA_8B)
    monkeypatch.setattr("ollama_tune.tui.screens.export.ask_ollama", lambda *_: OLLAMA_CHECKS)
    folder = run_called("2026-11-21-1130-kitchen")
    Log(folder, clock).trained()
    app = open_app(folder, 8, gpu_machine)
    assert picture(snap_compare, app, (80, 24), "llama-3.1-8b-instruct-tickets", "twice the file")


@pytest.mark.parametrize("size", [(60, 18), (80, 24)], ids=["60x18", "80x24"])
def test_export_form_with_more(size: Size, clock: Clock, tiny_model: Path, snap_compare: Compare) -> None:
    folder = run_called("2026-11-21-1130-kitchen", str(tiny_model))
    Log(folder, clock).trained()

    async def prepare(pilot: Pilot[Any]) -> None:
        await until_text(pilot, "tiny-tickets", "No Ollama answers", "KiB", "✓ fits")
        await pilot.press("f2")
        await until_text(pilot, "Importance")
        await pilot.pause()

    app = open_app(folder, 8, cpu_machine)
    assert snap_compare(app, terminal_size=size, run_before=prepare)


def test_export_form_without_colour(
    clock: Clock, tiny_model: Path, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    folder = run_called("2026-11-21-1130-kitchen", str(tiny_model))
    Log(folder, clock).trained()
    app = open_app(folder, 8, cpu_machine)
    assert picture(snap_compare, app, (80, 24), "tiny-tickets", "No Ollama answers", "KiB", "✓ fits")


def test_export_at_work(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    log = Log(folder, clock).trained()
    log.start(stage="export").phase("Merging the adapter and writing kitchen-q8_0.gguf.")
    log("progress", 1.0, name="writing", done=3 << 20, total=4 << 20, unit="B")
    with alive(folder):
        assert picture(snap_compare, open_app(folder, 8), (80, 24), "3.0 MiB of 4.0 MiB", "Export started.")


@SIZES
def test_verification_card(size: Size, folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).trained().exported("kitchen")
    assert picture(snap_compare, open_app(folder, 8), size, "Proved with remarks", "Enter Next")


def test_card_of_a_failed_proof(folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).trained().refuted()
    assert picture(snap_compare, open_app(folder, 8), (80, 24), "Do not use this file", "a Export again")


@SIZES
def test_done(size: Size, folder: RunFolder, clock: Clock, snap_compare: Compare) -> None:
    Log(folder, clock).trained().exported("kitchen")
    assert picture(snap_compare, open_app(folder, 9), size, "ollama run kitchen", "✓ T2 B1")


@SIZES
def test_runs(size: Size, clock: Clock, snap_compare: Compare) -> None:
    names = (
        "2026-11-21-1131-kitchen",
        "2026-11-21-1130-demo",
        "2026-11-20-0915-llama-3.2-1b-with-a-long-name",
    )
    first, second, third = (run_called(name) for name in reversed(names))
    Log(first, clock).training(60)
    Log(second, clock).trained().exported("kitchen")
    Log(third, clock).training(90)
    app = open_app(third)

    async def prepare(pilot: Pilot[Any]) -> None:
        await pilot.app.push_screen(app.runs_screen())
        await until_text(pilot, "✗ crashed", "✓ finished", "▶ running", "90/200", "s Stop")

    with alive(third):
        assert snap_compare(app, terminal_size=size, run_before=prepare)
