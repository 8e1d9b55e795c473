"""Everything by name: only what is possible now, found by a part of its name, done on the screen below."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.tui.palette import Command, commands, found
from ollama_tune.tui.screens.machine import MachineScreen
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.widgets.help import HelpScreen
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import Log, make_run, open_app, until


def names(app: object) -> list[str]:
    return [command.name for command in commands(app)]  # type: ignore[arg-type]


async def test_it_lists_what_is_possible_now_and_nothing_else(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        machine = names(app)
        assert "this machine: look again" in machine
        assert not [name for name in machine if "unload" in name.lower()]
        assert "this machine: back" not in machine
        assert "go: step 5, Review" in machine
        assert not [name for name in machine if name.startswith(("go: step 1", "go: step 6", "run: open"))]
        assert "theme: light" in machine and "theme: dark" not in machine
        await app.go_to(4)
        await settled(pilot)
        assert "settings: back" in names(app)
        assert "go: step 1, This machine" in names(app)


async def test_every_key_of_a_screen_stands_in_it_with_its_key(corner: Corner) -> None:
    app = corner.app(1, gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        keys = {command.verb: command.keys for command in commands(app)}
    assert keys["look again"] == "r"
    assert keys["next"] == "Enter"
    assert keys["unload Ollama's models"] == "u"


@pytest.mark.parametrize("key", ["ctrl+p", "f9", "colon"])
async def test_three_keys_open_it_and_escape_changes_nothing(key: str, corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(key)
        await pilot.pause()
        assert "Type a part of what you want" in shown(app)
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, MachineScreen)


async def test_a_few_letters_and_enter_go_to_a_step_and_back(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"review", "enter")
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert app.answers.step == 5
        await pilot.press("escape")
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen)
        await pilot.press("ctrl+p", *"step 1", "enter")
        await settled(pilot)
        assert isinstance(app.screen, MachineScreen)
        assert len(app.screen_stack) == 2


async def test_the_arrows_choose_and_a_word_that_nothing_has_does_nothing(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"theme", "down", "up", "down", "enter")
        await pilot.pause()
        assert app.theme == "high-contrast"
        await pilot.press("ctrl+p", *"qzzx", "enter")
        await pilot.pause()
        assert "Nothing is called that" in shown(app)


async def test_forward_is_refused_where_enter_refuses(corner: Corner) -> None:
    app = corner.app(2, model="nowhere")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert not app.can_go_to(4)
        await app.go_to(4)
        await settled(pilot)
        assert "Step 2 of 9" in shown(app)
        assert app.can_go_to(1)


async def test_from_a_finished_run_the_steps_after_it_open_one_by_one(corner: Corner) -> None:
    folder = make_run("kitchen")
    Log(folder).trained()
    app = open_app(folder, 6, gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.can_go_to(7))
        assert [app.can_go_to(number) for number in (5, 6, 7, 8)] == [True, False, True, False]
        await pilot.press("ctrl+p", *"its log", "enter")
        await pilot.pause()
        assert type(app.screen).__name__ == "LogScreen"


async def test_run_yaml_is_written_beside_one_that_is_there(corner: Corner) -> None:
    Path("run.yaml").write_text("mine")
    app = corner.app(4)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"run.yaml", "enter")
        await pilot.pause()
        assert "run-2.yaml" in shown(app)
    assert Path("run.yaml").read_text() == "mine"
    assert "source" in Path("run-2.yaml").read_text()


async def test_the_help_can_be_asked_for_by_name(corner: Corner) -> None:
    app = corner.app(4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"help", "enter")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        assert "Help: Epochs" in shown(app)


def test_words_in_any_order_are_found_before_letters() -> None:
    every = [Command("theme", "dark", int), Command("go", "step 3, Data", int), Command("app", "quit", int)]
    assert [command.name for command, _ in found(every, "data go")] == ["go: step 3, Data"]
    assert [command.name for command, _ in found(every, "aqt")] == ["app: quit"]
    assert [command.name for command, _ in found(every, "")] == [
        "theme: dark",
        "go: step 3, Data",
        "app: quit",
    ]
    assert found(every, "[/foo]") == []


def test_it_is_not_imported_before_it_is_opened() -> None:
    code = (
        "import ollama_tune.tui.app, ollama_tune.tui.screens.machine, sys;"
        "late = ['palette', 'keys_cli', 'widgets.help', 'crash', 'doctor_cli', 'runs_cli', 'plain'];"
        "print([name for name in late if f'ollama_tune.tui.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
