"""What Try it looks like; the process that answers is tested elsewhere, here its words are put in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from ollama_tune.core.evaluate.asking import Asking, Sampling, save_asking
from ollama_tune.core.evaluate.conversation import Conversation, HeldOut, Result
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.screens.try_it import TryItScreen
from ollama_tune.tui.widgets.talk import TalkView

from .run_logs import Clock, Log, open_app, until, until_text

SIZES = pytest.mark.parametrize(
    "size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}"
)
Compare = Callable[..., bool]
Size = tuple[int, int]
ORDERS = (
    ("Two teas and a bun, please.", "2 TEA | 1 BUN", "With pleasure! Two teas and a bun.", "2 TEA | 1 BUN"),
    ("A large espresso, no sugar.", "1 ESPRESSO/L -SUGAR", "One espresso: is that all?", "1 ESPRESSO -SUGAR"),
    ("Soup of the day to take away.", "1 SOUP | GO", "[/b] 汤, natürlich!", "1 SOUP | GO"),
)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunFolder]:
    """A trained run; the same time, home and colours on every machine, and no process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(TryItScreen, "_open", lambda self: setattr(self, "_ready", True))
    time.tzset()
    path = runs_dir() / "2026-11-21-1130-kitchen"
    path.mkdir()
    run = RunFolder(path)
    Settings().with_value("export.system", "Write the kitchen's ticket.").save(run.settings_path)
    Log(run, Clock(monkeypatch)).trained()
    yield run
    monkeypatch.undo()
    time.tzset()


def asked(question: str, reference: str) -> HeldOut:
    return HeldOut(({"role": "user", "content": question},), question, reference)


def ends(number: int, base: str, tuned: str) -> list[dict[str, Any]]:
    head = {"id": number, "end": "stop", "tokens": 12, "seconds": 0.4}
    return [head | {"model": "base", "text": base}, head | {"model": "tuned", "text": tuned}]


async def talked(pilot: Pilot[Any]) -> None:
    """Two turns, the first one a held-out question."""
    await until_text(pilot, "F5 Held-out")
    screen = pilot.app.screen
    assert isinstance(screen, TryItScreen)
    question, reference, base, tuned = ORDERS[0]
    screen._begin(Conversation.of(asked(question, reference)))
    for number, words in enumerate(((base, tuned), ("Anything else?", "2 TEA | 2 BUN")), start=1):
        if number > 1:
            screen._talk.ask("Make that two buns.")
        screen.query_one(TalkView).ask(screen._talk.turns[-1])
        screen._asked = number
        screen._take_answers(ends(number, *words))
    await until_text(pilot, "2 TEA | 2 BUN", "The conversation goes on")
    await pilot.pause()


async def tabled(pilot: Pilot[Any]) -> None:
    """The table with three rows, the last of them stopped."""
    await until_text(pilot, "F5 Held-out")
    screen = pilot.app.screen
    assert isinstance(screen, TryItScreen)
    await until(pilot, lambda: len(screen._several.questions) > len(ORDERS))  # those of the data
    for question, reference, base, tuned in ORDERS:
        result = Result(asked(question, reference))
        for message in ends(1, base, tuned):
            result.take(message | ({"end": "cancelled"} if reference.endswith("GO") else {}))
        screen._several.results.append(result)
    await pilot.press("f6")
    await until_text(pilot, "Exact 0 of 2 before, 1 of 2 after", "■ stopped")
    await pilot.press("down")
    await pilot.pause()


async def boxed(pilot: Pilot[Any]) -> None:
    """How to ask, with a changed value and a wrong one."""
    await until_text(pilot, "F5 Held-out")
    await pilot.press("f2", "down", "down", "backspace", *"2", "enter")
    await until_text(pilot, "✗ This must be a number above 0 and up to 1")
    await pilot.pause()


@SIZES
def test_conversation(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    assert snap_compare(open_app(folder, 7), terminal_size=size, run_before=talked)


@SIZES
def test_several(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    assert snap_compare(open_app(folder, 7), terminal_size=size, run_before=tabled)


@SIZES
def test_how_to_ask(size: Size, folder: RunFolder, snap_compare: Compare) -> None:
    save_asking(folder, Asking(Sampling(0.8)))
    assert snap_compare(open_app(folder, 7), terminal_size=size, run_before=boxed)


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "screen")], ids=lambda v: v[1])
def test_several_in_few_colours(
    variable: tuple[str, str], folder: RunFolder, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    if variable[0] == "TERM":
        monkeypatch.delenv("COLORTERM")
    app: App[Any] = open_app(folder, 7)
    assert snap_compare(app, terminal_size=(80, 24), run_before=tabled)
