"""Going through the steps: on, back, killed and reopened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunLock, create_run
from ollama_tune.tui.app import Start, TuneApp, find_start
from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.machine import MachineScreen
from ollama_tune.tui.screens.model import ModelScreen
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.state import STEPS, WizardState, load_answers
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import until

SETUP = [MachineScreen, ModelScreen, DataScreen, SettingsScreen, ReviewScreen]


async def test_enter_goes_on_and_escape_goes_back_in_every_step_of_the_setup(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for screen in SETUP[1:]:
            await pilot.press("enter")
            await settled(pilot)
            assert isinstance(app.screen, screen)
        for screen in reversed(SETUP[:-1]):
            await pilot.press("escape")
            await settled(pilot)
            assert isinstance(app.screen, screen)
        await pilot.press("escape")
        assert isinstance(app.screen, MachineScreen)


async def test_back_and_forward_again_changes_no_answer(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("home", *["delete"] * 8, "5")
        await settled(pilot)
        before, plan = app.answers, app.facts.plan
        await pilot.press("escape", "escape", "escape")
        await settled(pilot)
        assert isinstance(app.screen, MachineScreen)
        for _ in range(4):
            await pilot.press("enter")
            await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert dict(app.answers.changed) == dict(before.changed) == {"training.epochs": 5.0}
        assert app.facts.plan == plan


@pytest.mark.parametrize("machine", [None, gpu_machine])
async def test_enter_through_the_steps_gives_a_plan_that_fits(corner: Corner, machine: object) -> None:
    app = TuneApp(Start(WizardState()), probe=machine or None, warm=False)  # type: ignore[arg-type]
    async with app.run_test(size=(80, 24)) as pilot:
        for _ in range(4):
            await settled(pilot)
            await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert app.facts.plan is not None
        assert app.facts.plan.memory.fits
        assert "Enter Start" in shown(app)


async def test_every_step_says_where_it_is_and_what_enter_and_escape_do(corner: Corner) -> None:
    for number in range(1, 6):
        app = corner.app(step=number)
        async with app.run_test(size=(120, 40)) as pilot:
            await settled(pilot)
            text = shown(app)
            assert f"Step {number} of 9" in text
            assert f"▶ {STEPS[number - 1].title}" in text
            assert text.count("✓ ") >= number - 1
            assert ("Enter Start" if number == 5 else "Enter Next") in text
            assert ("Esc Back" in text) == (number > 1)


async def test_a_wizard_reopens_at_its_step_with_its_answers(corner: Corner) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        await pilot.press("home", *["delete"] * 8, "4")
        await until(pilot, lambda: dict(load_answers().changed) == {"training.epochs": 4.0})
        saved = load_answers()
    assert (saved.step, saved.data, dict(saved.changed)) == (4, str(corner.rows), {"training.epochs": 4.0})
    again = TuneApp(find_start(), warm=False)
    async with again.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert isinstance(again.screen, SettingsScreen)
        assert again.facts.plan is not None
        assert again.facts.plan.settings.training.epochs == 4


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"step": "x"}', '{"step": 99, "changed": [1], "model": 3}', '{"step": true, "run": {}}'],
)
def test_a_damaged_answer_file_is_a_fresh_wizard(corner: Corner, text: str) -> None:
    WizardState().save()
    (path,) = (corner.home / "tune-home").rglob("wizard.json")
    path.write_text(text)
    assert load_answers() == WizardState()


async def test_changed_values_that_no_longer_exist_are_said_and_can_be_left_behind(corner: Corner) -> None:
    app = corner.app(step=4, changed={"training.flux": 3})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "There is no setting 'training.flux'" in " ".join(shown(app).split())


async def test_a_run_that_is_going_is_what_opens(corner: Corner) -> None:
    folder = create_run(Settings(), "live")
    lock = RunLock(folder)
    try:
        assert find_start().run == folder.path
    finally:
        lock.release()
    assert find_start().run is None


async def test_watching_a_run_reads_neither_model_nor_data(corner: Corner) -> None:
    folder = create_run(Settings(), "watched")
    app = TuneApp(Start(corner.answers(3), folder.path), warm=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "Step 6 of 9" in shown(app)
        assert "watched" in shown(app)
        assert (app.facts.machine, app.facts.spec, app.facts.profile) == (None, None, None)
    assert load_answers().step == 3


async def test_starting_over_forgets_the_answers(corner: Corner) -> None:
    app = corner.app(step=4, changed={"training.epochs": 9.0})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await app.start_over()
        await settled(pilot)
        assert isinstance(app.screen, MachineScreen)
        assert app.answers == WizardState()
        assert app.facts.plan is not None
        assert app.facts.plan.settings.data.path == "bundled"


async def test_a_window_that_is_too_small_says_so_in_one_sentence(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(50, 15)) as pilot:
        await settled(pilot)
        assert "at least 60 columns wide and 18 lines high" in " ".join(shown(app).split())
        await pilot.resize_terminal(60, 18)
        await pilot.pause()
        assert "Epochs" in shown(app)


def test_the_first_screen_imports_no_training_library(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.state import WizardState
HEAVY = ["torch", "transformers", "datasets", "peft"]
LATE = ["pydantic", "httpx", "tokenizers", "jinja2", "yaml", "pynvml"]
async def main():
    app = TuneApp(Start(WizardState()), warm=False)
    app.read_everything = lambda: None
    async with app.run_test() as pilot:
        await pilot.pause()
        print([name for name in HEAVY + LATE if name in sys.modules])
    app = TuneApp(Start(WizardState()), warm=False)
    async with app.run_test() as pilot:
        for key in ["enter"] * 4:
            await app.workers.wait_for_complete()
            await pilot.pause(0.3)
            await pilot.press(key)
        print(type(app.screen).__name__, [name for name in HEAVY if name in sys.modules])
asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=dict(os.environ, OLLAMA_TUNE_HOME=str(tmp_path)),
        timeout=300,
    )
    assert result.stdout.splitlines() == ["[]", "ReviewScreen []"], result.stderr


def test_answers_survive_a_round_trip(corner: Corner) -> None:
    answers = WizardState(
        5, "org/name", "main", "/x.jsonl", {"training.targets": ["q_proj"]}, "run-1", "ChatML"
    )
    answers.save()
    assert load_answers() == answers
    (path,) = (corner.home / "tune-home").rglob("wizard.json")
    assert json.loads(path.read_text())["changed"] == {"training.targets": ["q_proj"]}
