"""The wizard in a real terminal: signals, kills, and a run started from Review."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from ollama_tune.core.runs.control import terminate, wait_until_free
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.state import load_answers
from tests.terminal import Terminal
from tests.tui.conftest import Corner, settled, shown

SCRIPT = """
import sys
from ollama_tune.tui.app import TuneApp
app = TuneApp(warm=False)
app.run()
sys.exit(app.return_code)
"""
COMMAND = [sys.executable, "-c", SCRIPT]
NORMAL_SCREEN, NO_MOUSE = b"\x1b[?1049l", b"\x1b[?1000l"


def wizard(corner: Corner) -> Terminal:
    return Terminal(COMMAND, {**os.environ, "TERM": "xterm-256color"}, cwd=str(corner.home))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(corner: Corner, number: signal.Signals) -> None:
    with wizard(corner) as terminal:
        terminal.wait("This computer")
        terminal.process.send_signal(number)
        assert terminal.finish() == 128 + number
        tail = terminal.raw[terminal.raw.rindex(b"Ctrl+Q") :]
    assert NORMAL_SCREEN in tail
    assert NO_MOUSE in tail


def test_a_killed_wizard_reopens_at_its_step(corner: Corner) -> None:
    corner.answers(2).save()
    with wizard(corner) as terminal:
        terminal.wait("can be tuned")
        terminal.press("enter")
        terminal.wait("40 rows")
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait(timeout=300)
    with wizard(corner) as terminal:
        terminal.wait("Step 3 of 9")
        terminal.wait("40 rows")
        terminal.press("ctrl+q")
        assert terminal.finish() == 0
        assert b"Your answers are kept" in terminal.raw


async def test_enter_on_review_starts_one_run_and_enter_again_shows_it(corner: Corner) -> None:
    app = corner.app(step=5)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("enter", "enter")
        await settled(pilot)
        assert isinstance(app.screen, TrainingScreen)
        (folder,) = list_runs()
        assert app.facts.plan is not None
        assert folder.settings() == app.facts.plan.settings
        assert (load_answers().step, load_answers().run) == (6, folder.name)
        await pilot.press("escape")
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert f"Started already as {folder.name}" in shown(app)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, TrainingScreen)
        assert [other.path for other in list_runs()] == [folder.path]
    terminate(folder)
    assert wait_until_free(folder, 300)
