"""The frame of all screens: where it is, on and back in all nine steps, keys answered at once, options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.state import STEPS, WizardState, load_answers
from tests.terminal import Terminal
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import Log, make_run, open_app, until_text

SIZE = (120, 40)


@pytest.mark.parametrize("number", [6, 7, 8, 9])
async def test_every_step_of_a_run_says_where_it_is_and_what_enter_and_escape_do(
    number: int, corner: Corner
) -> None:
    folder = make_run("kitchen")
    Log(folder).trained().exported()
    app = open_app(folder, number, gpu_machine)
    async with app.run_test(size=SIZE) as pilot:
        await until_text(pilot, f"Step {number} of 9", "Esc Back")
        text = shown(app)
    assert f"▶ {STEPS[number - 1].title}" in text
    assert "✓ Review" in text
    assert ("Enter " in text) == (number < 9)


async def test_enter_and_escape_go_through_the_steps_after_the_training(corner: Corner) -> None:
    folder = make_run("kitchen")
    Log(folder).trained().exported()
    app = open_app(folder, 6, gpu_machine)
    app.answers = WizardState(step=6, run=folder.name)
    async with app.run_test(size=SIZE) as pilot:
        await until_text(pilot, "Step 6 of 9")
        for key, number in zip(["enter"] * 3 + ["escape"] * 3, [7, 8, 9, 8, 7, 6], strict=True):
            await pilot.press(key)
            await until_text(pilot, f"Step {number} of 9")


async def test_to_the_last_step_and_back_twice_changes_no_answer(corner: Corner) -> None:
    folder = make_run("kitchen")
    Log(folder).trained().exported()
    app = corner.app(1, gpu_machine, run=folder.name)
    app.folder = folder
    async with app.run_test(size=SIZE) as pilot:
        await app.go_to(4)
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen)
        await pilot.press("home", *["delete"] * 8, "5")
        await settled(pilot)
        answers, plan = app.answers, app.facts.plan
        for step in (1, 2, 3, 5, 6, 7, 1, 6, 7):
            await app.go_to(step)
            await settled(pilot)
            assert f"Step {step} of 9" in shown(app)
        assert (app.answers.plan_values(), app.answers.model) == (answers.plan_values(), answers.model)
        assert app.facts.plan == plan
    assert dict(load_answers().changed) == {"training.epochs": 5.0}


BUSY = """
from pathlib import Path
from ollama_tune.tui.app import TuneApp
from tests.tui.conftest import cpu_machine
def probe():
    while not Path("enough").exists():
        sum(range(1000))
    return cpu_machine()
TuneApp(probe=probe, warm=False).run()
"""


def test_keys_are_answered_while_a_thread_works_hard(corner: Corner) -> None:
    """How fast is for the bench to say; here a look at the machine computes without end, and help opens and
    closes all the while."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with Terminal([sys.executable, "-c", BUSY], env, cwd=str(corner.home)) as window:
        window.wait("Looking at this machine")
        for _ in range(4):
            window.press("?")
            window.wait("Help: This machine")
            window.press("escape")
            window.wait(lambda screen: "Help: This machine" not in screen)
        assert "Looking at this machine" in window.text
        (corner.home / "enough").touch()
        window.wait("This computer")


@pytest.mark.parametrize(
    "given", [["--theme", "lite"], ["attach", "--theme", "lite"], ["--theme", "lite", "attach"]]
)
def test_a_theme_that_is_not_there_is_a_usage_error_with_the_names(given: list[str], corner: Corner) -> None:
    make_run("kitchen")
    command = [sys.executable, "-m", "ollama_tune.tui", *given]
    with Terminal(command, os.environ, cwd=str(corner.home)) as window:
        assert window.finish() == 2
        assert "There is no theme 'lite'" in window.text
        assert "high-contrast" in window.text


def test_no_mouse_leaves_the_mouse_to_the_terminal(corner: Corner) -> None:
    for option, taken in (("--no-mouse", False), ("--mouse", True)):
        command = [sys.executable, "-m", "ollama_tune.tui", option, "--theme", "light"]
        with Terminal(command, os.environ, cwd=str(corner.home)) as window:
            window.wait("Step 1 of 9")
            assert (b"\x1b[?1003h" in window.raw) == taken
            window.press("ctrl+q")
            window.finish()


def test_without_a_terminal_nothing_is_asked_and_the_flags_are_named(corner: Corner) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ollama_tune.tui"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--plain" in done.stderr and "ollama-tune run run.yaml" in done.stderr


@pytest.mark.parametrize(
    "said", [{"TERM": "dumb"}, {"ACCESSIBLE": "1"}, {}], ids=["dumb", "accessible", "--plain"]
)
def test_lines_in_place_of_the_window_where_that_is_needed_or_wished(
    said: dict[str, str], corner: Corner, tmp_path: Path
) -> None:
    """Plain questions take over; the place of their code is known here, what they ask is tested elsewhere."""
    code = (
        "import ollama_tune.tui.plain.wizard as w; w.run_plain = lambda: print('PLAIN') or 7\n"
        "from ollama_tune.tui.cli import main; raise SystemExit(main())"
    )
    more = [] if said else ["--plain"]
    with Terminal(
        [sys.executable, "-c", code, *more], {**os.environ, **said}, cwd=str(corner.home)
    ) as window:
        assert window.finish() == 7
        assert "PLAIN" in window.text
        assert b"\x1b[?1049h" not in window.raw


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40), (200, 60)], ids=str)
async def test_the_frame_fits_every_size(size: tuple[int, int], corner: Corner) -> None:
    app = corner.app(4, gpu_machine)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        lines = shown(app).splitlines()
    assert len(lines) == size[1]
    assert "Step 4 of 9" in lines[0]
    assert "Help" in lines[-1]
