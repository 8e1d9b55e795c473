"""Rules 12, 14 and 20 on every screen and window there is, found by looking through the package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import click
import psutil
import pytest
from textual.binding import Binding
from textual.widget import Widget

from ollama_tune import tui
from ollama_tune.core.runs import launch
from ollama_tune.core.runs.folder import RunFolder, list_runs
from ollama_tune.tui.cli import cli
from ollama_tune.tui.screens.compare import CompareScreen
from tests.tui.conftest import Corner, cpu_machine, gpu_machine, settled
from tests.tui.plain_talk import converse
from tests.tui.run_logs import Log, at_rest, make_run, open_app, until_text
from tests.tui.test_wizard_proofs import files_below

TAKEN = {f"ctrl+{letter}" for letter in "abhijm["}
"""tmux and screen begin with the first two; the others are Backspace, Tab, Enter and Esc."""
DESKTOP = {"f1", "f10", "f11"}
"""Keys that some desktops keep for themselves."""
COMMANDS = {
    "again": "export",
    "anew": "run",
    "ask": "data",
    "begin": "chat",
    "browse": "data",
    "columns": "data",
    "compare": "compare",
    "delete": "delete",
    "detach": "run",
    "duplicate": "run",
    "explain": "keys",
    "export": "export",
    "go_on": "resume",
    "held_out": "evaluate",
    "log": "attach",
    "map": "data",
    "memory": "attach",
    "new_run": "run",
    "next": "run",
    "options": "chat",
    "pause": "pause",
    "probe": "probe",
    "rates": "sweep",
    "restore": "plan",
    "restore_all": "plan",
    "resume": "resume",
    "runs": "runs",
    "several": "evaluate",
    "start": "sweep",
    "stop": "stop",
    "unload": "probe",
    "write": "plan",
}
"""What a key does beyond this window, and the command that does the same."""
HERE = {
    *("accept", "back", "cancel", "close", "leave", "open", "refuse", "select", "show", "suspend_process"),
    *("app.focus_next", "app.focus_previous", "edge", "go_to", "look", "move", "other_field", "page"),
    *("page_down", "page_up", "scroll", "turn", "up", "all_rows", "answers", "axis", "details", "filter"),
    *("ids", "mark", "more", "order", "output", "palette", "scale", "switch", "table", "warnings"),
    *("bring_back", "copy", "stop_reading", "take", "take_folder"),
}
"""What moves, shows, answers a question of the window, or is about the window's own answers."""
WINDOWS = {
    1: ("l", "f1", "ctrl+p"),
    2: ("f1",),
    3: ("f2", "f3", "ctrl+o"),
    4: ("f2", "f6", "f4"),
    5: ("l", "c", "f1"),
}
"""Keys of each step of the setup that open a window or do something other than to go on."""


def kinds() -> Iterator[type[Widget]]:
    """Every class of ours that has keys or takes clicks."""
    for info in pkgutil.walk_packages(tui.__path__, f"{tui.__name__}."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == info.name:
                    yield kind


def bindings() -> list[tuple[str, list[str], str]]:
    """Class, keys and action of every binding of ours."""
    found = []
    for kind in kinds():
        for binding in vars(kind).get("BINDINGS", ()):
            one = binding if isinstance(binding, Binding) else Binding(*binding)
            found.append((kind.__name__, one.key.split(","), one.action.partition("(")[0]))
    return found


def test_no_key_of_any_screen_or_window_is_one_that_terminals_take_away() -> None:
    found = bindings()
    assert {"DataScreen", "TryItScreen", "RunsScreen", "FilePicker", "TuneApp"} <= {
        name for name, *_ in found
    }
    for name, keys, action in found:
        assert not set(keys) & TAKEN, (name, keys)
        assert not any(key.startswith(("alt+", "super+")) for key in keys), (name, keys)
        assert set(keys) - DESKTOP, f"{name}: {action} has no other key"


def test_whatever_takes_clicks_takes_keys_too() -> None:
    clicked = [kind for kind in kinds() if "on_click" in vars(kind) and kind.__name__ != "KeyBar"]
    assert len(clicked) >= 5
    for kind in clicked:
        assert any("BINDINGS" in vars(each) for each in kind.__mro__ if each.__module__.startswith("ollama"))


def test_what_a_key_does_beyond_its_window_a_command_does_too() -> None:
    """Rule 14; a key that is new has to be put into one of the two tables."""
    actions = {action for _, _, action in bindings()}
    assert actions == set(COMMANDS) | HERE
    known = cli.list_commands(click.Context(cli))
    assert set(COMMANDS.values()) <= set(known)


MODULES = (launch.WORKER, launch.RATES, launch.RANKS)


async def test_no_window_of_the_setup_starts_or_writes_anything(corner: Corner) -> None:
    before = files_below(corner.home)
    app = corner.app(1, gpu_machine)
    async with app.run_test(size=(100, 34)) as pilot:
        await settled(pilot)
        for step, keys in WINDOWS.items():
            await app.go_to(step)
            await settled(pilot)
            for key in keys:
                depth = len(app.screen_stack)
                await pilot.press(key)
                await settled(pilot)
                if len(app.screen_stack) > depth:
                    await pilot.press("escape")
                    await settled(pilot)
            assert len(app.screen_stack) == step + 1, (step, app.screen_stack)
        started = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in started if any(f"-m {module}" in line for module in MODULES)], started
    assert list_runs() == []
    new = {path.split("/", 2)[1] for path in files_below(corner.home) - before}
    assert new <= {"state", "cache"}, files_below(corner.home) - before


def test_no_plain_question_of_the_setup_starts_or_writes_anything(corner: Corner) -> None:
    corner.answers(1).save()
    before = files_below(corner.home)
    status, text = converse(*[""] * 5, "?", "q", probe=cpu_machine)
    assert status == 0 and "Step 5 of 9" in text and list_runs() == []
    new = {path.split("/", 2)[1] for path in files_below(corner.home) - before}
    assert new <= {"state", "cache"}, files_below(corner.home) - before


@pytest.mark.parametrize("step", [7, 8, 9])
async def test_opening_a_screen_of_a_run_starts_and_writes_nothing(step: int, corner: Corner) -> None:
    folder = make_run("kitchen")
    log = Log(folder).trained()
    if step == 9:
        log.exported("kitchen")
    other = make_run("other")
    Log(other).trained()
    before = state_of(folder, other)
    app = open_app(folder, step, gpu_machine)
    async with app.run_test(size=(100, 34)) as pilot:
        await until_text(pilot, f"Step {step} of 9")
        await at_rest(pilot)
        await app.push_screen(app.runs_screen())
        await until_text(pilot, "✓ finished")
        await app.push_screen(CompareScreen([folder, other]))
        await until_text(pilot, "x Axis")
        await at_rest(pilot)
        started = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in started if "train.worker" in line and "--warm" not in line], started
    assert state_of(folder, other) == before


def state_of(*folders: RunFolder) -> dict[str, tuple[int, int]]:
    """Every file of the runs with its size and time of change, but for what the answers' process prints."""
    files = [path for folder in folders for path in folder.path.rglob("*") if path.is_file()]
    kept = [path for path in files if path.name != "chat.log"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in kept}
