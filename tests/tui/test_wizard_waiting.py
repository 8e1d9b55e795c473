"""Long reads that can be stopped, and what a beginner sees at once in a low window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from textual.widgets import Input

from ollama_tune.core.data.child import Cancelled
from ollama_tune.core.machine import logout
from ollama_tune.tui import data_tasks, tasks
from ollama_tune.tui.messages import DatasetChecked
from ollama_tune.tui.screens import data
from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.data_rows import GoToScreen
from ollama_tune.tui.screens.model import ModelScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.widgets.form import FieldRow
from tests.tui.conftest import Corner, settled
from tests.tui.run_logs import until, until_text
from tests.tui.test_wizard_data import chat_lines


@pytest.fixture
def slow(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Reading all rows takes until the event is set, or until nobody wants it any more."""
    go, whole = threading.Event(), data_tasks.check_data

    def check(
        path: str,
        reading: Mapping[str, Any],
        progress: data_tasks.Progress,
        cancelled: Callable[[], bool],
    ) -> DatasetChecked:
        while not go.wait(0.01):
            if cancelled():
                raise Cancelled
        return whole(path, reading, progress, cancelled)

    monkeypatch.setattr(data_tasks, "check_data", check)
    monkeypatch.setattr(data_tasks, "SMALL", 0)
    monkeypatch.setattr(data, "LONG", 0.001)  # a timer of no length divides by zero when it is late
    corner.rows.write_text("\n".join(chat_lines(300)) + "\n")
    return go


async def test_escape_stops_a_long_reading_and_enter_reads_again(
    corner: Corner, slow: threading.Event
) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "about 300 rows", "Esc Stop reading")
        await pilot.press("escape")
        await until_text(pilot, "✗ The reading was stopped.", "Esc Back")
        assert isinstance(app.screen, DataScreen) and not app.facts.busy.keys() & {"data", "rows"}
        assert app.screen.query_one("#rows-and-text").display, "what was read is still shown"
        slow.set()
        await pilot.press("enter")
        await until_text(pilot, "✓ 300 rows")
        await settled(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelScreen))


async def test_how_the_data_is_read_outlives_a_stop(corner: Corner, slow: threading.Event) -> None:
    app = corner.app(step=3, changed={"data.exclude": ["duplicate"]})
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "Esc Stop reading")
        await pilot.press("escape")
        await until_text(pilot, "The reading was stopped.")
        slow.set()
        await pilot.press("enter")
        await until_text(pilot, "✓ 300 rows")
        assert app.answers.reading_values() == {"data.exclude": ["duplicate"]}


async def test_go_to_row_says_what_is_read_so_far_and_follows(corner: Corner, slow: threading.Event) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "about 300 rows")
        await pilot.press("tab", "g")
        await until_text(pilot, "A number from 1 to 50 (those read so far")
        slow.set()
        await until_text(pilot, "A number from 1 to 300:")
        app.screen.query_one(Input).value = "299"
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, GoToScreen))
        await until_text(pilot, "line 299")


async def test_what_matters_of_the_review_is_on_the_first_screen_of_a_low_window(corner: Corner) -> None:
    app = corner.app(step=5)
    async with app.run_test(size=(60, 18)) as pilot:
        await settled(pilot)
        await until_text(pilot, "Model", "Data", "Training", "Result", "✓ fits", "Time", "Disk", "Command")
        await until_text(pilot, "ollama-tune run")


async def test_the_review_says_what_a_logout_would_end(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = logout.Logout(kills=True, scope=True, lingers=False)
    monkeypatch.setattr(logout, "read_logout", lambda: known)
    assert "loginctl enable-linger" in tasks.logout()
    app = corner.app(step=5)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await until_text(pilot, "! Logging out may end this run", "enable-linger` prevents that.")


async def test_changed_values_under_more_open_it_without_taking_the_focus(corner: Corner) -> None:
    app = corner.app(step=4, changed={"training.rank": 4})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen) and app.screen.query("FieldRow.more")
        first = app.screen.query(FieldRow).first(FieldRow)
        assert first.editor.has_focus and first.field.path == "training.epochs"
        await pilot.press("m")
        await until(pilot, lambda: not app.screen.query("FieldRow.more"))
        assert first.editor.has_focus


async def test_a_field_that_was_emptied_stays_empty_and_the_cursor_stands_at_the_end(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        name = app.screen.query_one("#field-export-name", FieldRow)
        name.editor.focus()
        await pilot.press("exclamation_mark")
        assert name.editor.value.endswith("!") and len(name.editor.value) > 1  # type: ignore[union-attr]
        await pilot.press("ctrl+u")
        name.show_value("late")
        assert name.editor.value == ""  # type: ignore[union-attr]
