"""The windows over a step: errors, questions; and the key bar."""

from __future__ import annotations

import pytest
from textual.content import Content

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.paths import state_dir
from ollama_tune.tui.screens.model import ModelScreen
from ollama_tune.tui.widgets.confirm import ConfirmScreen
from ollama_tune.tui.widgets.errors import ErrorScreen
from ollama_tune.tui.widgets.keybar import KeyBar, key_name
from ollama_tune.tui.widgets.page import Line, wrapped
from tests.tui.conftest import Corner, settled, shown

SECRET = "a row of somebody's data"


def broken_probe() -> Machine:
    raise RuntimeError(SECRET)


async def test_an_error_nobody_foresaw_is_told_without_data_and_the_wizard_goes_on(corner: Corner) -> None:
    app = corner.app(machine=broken_probe)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, ErrorScreen)
        assert "RuntimeError" in shown(app)
        await pilot.press("escape", "enter")
        await settled(pilot)
        assert isinstance(app.screen, ModelScreen)
    (report,) = state_dir().glob("crash-*.txt")
    assert "broken_probe" in report.read_text()
    assert SECRET not in report.read_text()


async def test_e_writes_the_details_of_an_error_to_a_file(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.push_screen(ErrorScreen(TuneError("It [/broke].", "Mend it.", details="line 1\nline 2")))
        await pilot.press("e")
        await pilot.pause()
        text = shown(app)
        assert "It [/broke]." in text
        assert "line 1" not in text
    (path,) = state_dir().glob("error-*.txt")
    assert path.name in "".join(text.split())
    assert path.read_text() == "It [/broke].\nMend it.\n\nline 1\nline 2\n"


@pytest.mark.parametrize(("key", "answer"), [("y", True), ("n", False), ("enter", False), ("escape", False)])
async def test_only_y_says_yes(corner: Corner, key: str, answer: bool) -> None:
    answers: list[bool | None] = []
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.push_screen(ConfirmScreen("Delete [run] 2026, 3.1 GB?", "Nothing is kept."), answers.append)
        await pilot.pause()
        assert "Delete [run] 2026, 3.1 GB?" in shown(app)
        await pilot.press(key)
        await pilot.pause()
    assert answers == [answer]


async def test_a_click_on_a_key_presses_it(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.click(KeyBar, offset=(3, 0))
        await settled(pilot)
        assert isinstance(app.screen, ModelScreen)


@pytest.mark.parametrize(
    ("key", "name"), [("enter", "Enter"), ("ctrl+r", "Ctrl+R"), ("f1", "F1"), ("m", "m"), ("f", "f")]
)
def test_keys_are_named_as_people_say_them(key: str, name: str) -> None:
    assert key_name(key) == name


def test_a_long_line_goes_on_below_its_own_text() -> None:
    line = Line(Content("  ! one two three four five"), 4)
    assert [part.plain for part in wrapped(line, 14)] == ["  ! one two", "    three four", "    five"]
    wide = wrapped(Line(Content("  Data  a 中文数据 😀/and one"), 8), 15)
    after = ["中文数据", "😀/and", "one"]
    assert [part.plain for part in wide] == ["  Data  a", *(" " * 8 + words for words in after)]
    long = wrapped(Line(Content("x" * 30), 2), 14)
    assert [part.plain for part in long] == ["x" * 14, "  " + "x" * 12, "  xxxx"]
