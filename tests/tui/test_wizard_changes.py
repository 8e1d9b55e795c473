"""What changes behind an open wizard: the file that was read, the folder of the model, a plan overtaken."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.paths import runs_dir
from ollama_tune.tui import tasks
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.state import load_answers
from ollama_tune.tui.widgets.confirm import ConfirmScreen
from ollama_tune.tui.widgets.errors import ErrorScreen
from ollama_tune.tui.widgets.form import TextField
from tests.tui.conftest import Corner, settled, shown, write_rows
from tests.tui.run_logs import until, until_text


def words(app: TuneApp) -> str:
    return " ".join(shown(app).split())


async def test_the_data_step_invites_to_ones_own_rows_and_typing_takes_the_place_of_bundled(
    corner: Corner,
) -> None:
    app = corner.app(step=3, data="bundled")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "These rows come with the tool. For yours type a file above, or press Ctrl+O." in words(app)
        await pilot.press(*"rows.jsonl", "enter")
        await settled(pilot)
        assert app.answers.data == str(corner.rows)
        assert "40 rows" in shown(app)
        assert "come with the tool" not in shown(app)
        await until(pilot, lambda: load_answers().data == str(corner.rows))


async def test_a_chosen_path_has_the_cursor_at_its_end(corner: Corner) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field = app.screen.query_one("#path", TextField)
        assert field.value == "~/rows.jsonl"
        assert field.cursor_position == len(field.value)
        assert field.selection.is_empty


async def test_data_that_was_mended_is_read_again_by_enter_and_by_coming_back(corner: Corner) -> None:
    app = corner.app(step=3, changed={"data.exclude": ["duplicate"]})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "40 rows" in shown(app)
        write_rows(corner.rows, 44)
        await pilot.press("enter")
        await settled(pilot)
        assert "44 rows" in shown(app)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen)
        write_rows(corner.rows, 48)
        await pilot.press("escape")
        await settled(pilot)
        assert "48 rows" in shown(app)
        assert app.answers.reading_values() == {"data.exclude": ["duplicate"]}


@pytest.mark.parametrize("gone", ["rows", "model"])
async def test_what_went_away_since_it_was_read_starts_nothing_and_says_so(corner: Corner, gone: str) -> None:
    app = corner.app(step=5)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        corner.rows.unlink() if gone == "rows" else shutil.rmtree(corner.model)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        assert "was there when it was read, and is gone now." in words(app)
        assert not list(runs_dir().glob("*"))


async def test_a_run_is_not_started_by_a_plan_that_a_newer_value_overtakes(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, plan = threading.Event(), tasks.plan
    app = corner.app(step=4)

    def slow(*given: Any) -> Any:
        if "training.epochs" in given[-1].changed:
            go.wait(120)
        return plan(*given)

    monkeypatch.setattr(tasks, "plan", slow)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+u", "7", "enter")
        await pilot.pause()
        assert isinstance(app.screen, ReviewScreen)
        await pilot.press("enter")
        await until_text(pilot, "The plan is still being made.")
        assert app.folder is None
        assert not list(runs_dir().glob("*"))
        go.set()
        await settled(pilot)
        await until_text(pilot, "7 epochs")


async def test_a_question_that_is_wider_than_its_box_is_wrapped_and_not_cut(corner: Corner) -> None:
    title = "Delete run 2026-11-22-0700-a-model-with-a-long-name, 10.2 MiB?"
    app = corner.app()
    async with app.run_test(size=(60, 18)) as pilot:
        await settled(pilot)
        await app.push_screen(ConfirmScreen(title, "Checkpoints are removed."))
        await pilot.pause()
        assert "long-name, 10.2 MiB?" in words(app).replace("│ │ ", "")
        assert "…" not in words(app)
        await pilot.resize_terminal(100, 30)


def test_a_stamp_tells_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert tasks.stamp(str(path)) is None
    path.write_text("one")
    first = tasks.stamp(str(path))
    path.write_text("other")
    assert first is not None and tasks.stamp(str(path)) != first
    assert tasks.stamp("a\0b") is None
