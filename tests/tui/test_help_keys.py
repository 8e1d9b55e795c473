"""Help for whatever has the focus, keys in words, and keys that every terminal passes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot
from textual.screen import Screen

from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.cli import cli
from ollama_tune.tui.explaining import ExplainedScreen
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.keys import declared, key_name, keys_now, own_bindings
from ollama_tune.tui.keys_cli import all_keys, classes
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.widgets.help import HelpScreen
from ollama_tune.tui.widgets.keybar import KeyBar
from ollama_tune.tui.widgets.modal import BoxScreen
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import Log, make_run, open_app, until_text

CLASSES = classes()
EATEN = {f"ctrl+{letter}" for letter in ("b", "a", "h", "i", "j", "m", "[", "left_square_bracket")}
"""tmux, screen, and the keys that old terminals send as Backspace, Tab, Enter and Esc."""
GIVEN_UP = ("alt+", "shift+", "super+", "hyper+", "ctrl+shift+")
ARROWS = ("up", "down", "left", "right", "home", "end", "pageup", "pagedown")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_no_key_of_ours_is_eaten_on_the_way(kind: type[Any]) -> None:
    for binding in declared(kind):
        assert binding.key not in EATEN, binding
        assert not binding.key.startswith(GIVEN_UP), binding
        assert binding.key not in {f"ctrl+{arrow}" for arrow in ARROWS}, binding
        assert binding.key not in ("f10", "f11", "f12"), f"{binding.key} is the desktop's"


def test_help_and_commands_have_a_key_that_no_desktop_takes() -> None:
    keys = {binding.action: set() for kind in (TuneApp, ExplainedScreen) for binding in declared(kind)}
    for kind in (TuneApp, ExplainedScreen):
        for binding in declared(kind):
            keys[binding.action].add(binding.key)
    assert keys["explain"] >= {"f1", "question_mark"}
    assert keys["palette"] >= {"ctrl+p", "f9", "colon"}


def test_every_action_of_ours_has_words() -> None:
    without = [
        f"{kind.__name__}: {binding.key} {binding.action}"
        for kind in CLASSES
        for binding in declared(kind)
        if not any(other.description for other in own_bindings(kind) if other.action == binding.action)
    ]
    assert without == []


def test_no_screen_takes_a_key_that_means_the_same_everywhere() -> None:
    everywhere = {binding.key for kind in (TuneApp, ExplainedScreen) for binding in declared(kind)}
    taken = {
        f"{kind.__name__}: {binding.key}"
        for kind in CLASSES
        if issubclass(kind, Screen) and kind is not ExplainedScreen
        for binding in declared(kind)
        if binding.key in everywhere and binding.action != "explain"
    }
    assert taken == {f"HelpScreen: {key}" for key in ("f1", "question_mark", "q")}


WINDOWS = [kind for kind in CLASSES if issubclass(kind, BoxScreen) and kind not in (BoxScreen, HelpScreen)]


@pytest.mark.parametrize("kind", WINDOWS, ids=lambda kind: kind.__name__)
def test_every_window_has_help(kind: type[BoxScreen[Any]]) -> None:
    assert help_text(*kind.HELP_TOPIC)


async def explained(pilot: Pilot[int], screen: FramedScreen) -> list[str]:
    """Focusable parts of the screen without help; the screen itself is one of them."""
    missing = (
        [] if help_text(*screen.screen_topic()) else [f"{type(screen).__name__} {screen.screen_topic()}"]
    )
    for widget in screen.focus_chain:
        screen.set_focus(widget)
        await pilot.pause()
        topic = screen.help_topic()
        missing += [] if help_text(*topic) else [f"{type(widget).__name__} #{widget.id}: {topic}"]
    return missing


async def test_everything_that_takes_the_focus_in_the_setup_has_help(corner: Corner) -> None:
    app = corner.app(1, gpu_machine, changed={"training.rank": 4})
    async with app.run_test(size=(100, 34)) as pilot:
        for step in (1, 2, 3, 4, 5):
            await app.go_to(step)
            await settled(pilot)
            assert isinstance(app.screen, FramedScreen)
            assert await explained(pilot, app.screen) == []


@pytest.mark.parametrize("step", [6, 7, 8, 9])
async def test_everything_that_takes_the_focus_in_a_run_has_help(step: int, corner: Corner) -> None:
    folder = make_run("kitchen")
    Log(folder).trained()
    app = open_app(folder, step, gpu_machine)
    async with app.run_test(size=(100, 34)) as pilot:
        await until_text(pilot, f"Step {step} of 9")
        assert isinstance(app.screen, FramedScreen)
        assert await explained(pilot, app.screen) == []


async def test_the_list_of_runs_has_help(corner: Corner) -> None:
    make_run("kitchen")
    app = corner.app()
    async with app.run_test(size=(100, 34)) as pilot:
        await settled(pilot)
        screen = app.runs_screen()
        await app.push_screen(screen)
        await settled(pilot)
        assert await explained(pilot, screen) == []  # type: ignore[arg-type]


async def test_help_shows_the_field_then_its_keys_then_the_step(corner: Corner) -> None:
    app = corner.app(4)
    async with app.run_test(size=(100, 60)) as pilot:
        await settled(pilot)
        await pilot.press("f1")
        await pilot.pause()
        text = shown(app)
        places = [
            text.index(words)
            for words in ("Help: Epochs", "How often the model", "Keys here", "On this screen", "Everywhere")
        ]
        assert places == sorted(places)
        assert text.index("Every value is recommended") > places[-1]
        assert "Field below" in text
        assert "Ctrl+P, F9, :" in text
        await pilot.press("f1")
        await pilot.pause()
        assert "Step 4 of 9" in shown(app)


async def test_hidden_keys_are_named_and_those_that_do_nothing_now_are_not(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        words = [line for keys in keys_now(app.screen) for line in keys.lines]
    assert ("Ctrl+Z", "To the shell (fg comes back)") in words
    assert ("r", "Look again") in words
    assert not [line for line in words if line[1] in ("Back", "Unload Ollama's models")]


async def test_a_narrow_key_bar_leaves_out_other_keys_before_help(corner: Corner) -> None:
    app = corner.app(3)
    async with app.run_test(size=(60, 18)) as pilot:
        await settled(pilot)
        line = shown(app).splitlines()[-1].rstrip()
        assert line.endswith(("? Help", "F1 Help"))
        assert line.lstrip().startswith("Enter Next")
        assert len(line) <= 60
        assert app.screen.query_one(KeyBar).size.height == 1


def test_keys_prints_every_screen_plain_and_as_json() -> None:
    plain = CliRunner().invoke(cli, ["keys"])
    assert plain.exit_code == 0
    assert "Step 4, Settings\n" in plain.output
    assert "  F2, m " in plain.output
    table = json.loads(CliRunner().invoke(cli, ["keys", "--json"]).output)
    assert {"keys": ["r"], "words": "Look again"} in table["Step 1, This machine"]
    assert list(table)[:2] == ["Everywhere", "Every step"]
    assert len(table) == len(all_keys()) > 15


@pytest.mark.parametrize(
    ("key", "name"),
    [("plus", "+"), ("full_stop", "."), ("pageup", "PgUp"), ("ctrl+o", "Ctrl+O"), ("f9", "F9")],
)
def test_signs_are_named_by_themselves(key: str, name: str) -> None:
    assert key_name(key) == name
