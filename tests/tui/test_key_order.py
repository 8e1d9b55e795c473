"""Keys that come in one packet, as over a slow line or from quick fingers, keep their order."""

from __future__ import annotations

from textual import events
from textual.app import App

from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.data_rows import GoToScreen
from ollama_tune.tui.widgets.rows import RowList
from tests.tui.conftest import Corner, settled, write_rows


def type_at_once(app: App[int], *keys: str) -> None:
    """Send keys as the driver does when they were read together: no time between them."""
    for key in keys:
        app.post_message(events.Key(key, key if len(key) == 1 else None))


async def test_enter_waits_for_the_letters_typed_before_it(corner: Corner) -> None:
    other = write_rows(corner.home / "other.jsonl", 7)
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        type_at_once(app, "end", "ctrl+u", *str(other), "enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
        assert app.answers.data == str(other)
        assert app.facts.profile is not None and app.facts.profile.usable == 7


async def test_a_window_gets_the_keys_typed_after_the_one_that_opens_it(corner: Corner) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.screen.query_one(RowList).focus()
        await pilot.pause()
        type_at_once(app, "g", "2", "3", "enter")
        await settled(pilot)
        assert not isinstance(app.screen, GoToScreen)
        assert isinstance(app.screen, DataScreen), "Enter belongs to the window that g opened"
        assert app.screen.query_one(RowList).cursor == 22
