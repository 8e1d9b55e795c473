"""The preview of data: broken lines as they stand, what to do about them, and rows that scroll at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.widgets import Static

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import DatasetProfile, Message, Problem, Row
from ollama_tune.tui import data_tasks
from ollama_tune.tui.data_tasks import render_row
from ollama_tune.tui.screens import data
from ollama_tune.tui.widgets.problems import ProblemList
from ollama_tune.tui.widgets.textview import TextView
from tests.tui.conftest import Corner, settled, shown
from tests.tui.test_wizard_data import chat_lines, table, words


async def test_a_broken_line_is_opened_as_it_stands_in_the_file_and_what_to_do_is_said(
    corner: Corner,
) -> None:
    lines = [*chat_lines(20), '{"question": "[/x]\x1b[2J', chat_lines(1)[0]]
    corner.rows.write_text("\n".join(lines) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        problems, advice = app.screen.query_one(ProblemList), app.screen.query_one("#advice", Static)
        assert not advice.display
        await pilot.press("tab")
        while problems.problem and problems.problem.kind != "bad-line":
            await pilot.press("down")
        assert "→ Enter shows the line as it stands in the file." in words(shown(app))
        await pilot.press("f1")
        await pilot.pause()
        assert "What it means. A line or an entry of the file is broken" in words(shown(app)).replace(
            "│ ", ""
        )
        await pilot.press("escape", "enter")
        await settled(pilot)
        assert [row.line for row in table(app).rows] == [21]
        assert '{"question": "[/x]␛[2J' in shown(app) and not advice.display


def test_lines_of_a_table_or_a_folder_are_not_looked_for(tmp_path: Path) -> None:
    problem = Problem("bad-line", "x", 1, (2,))
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    shown_of = {}
    for path in (tmp_path / "a.txt", tmp_path, tmp_path / "gone"):
        profile = DatasetProfile(str(path), "text", "", "UTF-8", (), 0, (problem,))
        shown_of[path.name] = [row.messages[0].content for row in data_tasks.rows_of(profile, problem)]
    assert shown_of == {"a.txt": ["two"], tmp_path.name: [], "gone": []}


async def test_rows_that_a_held_key_passes_over_are_not_rendered(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def render(chat: ChatFormat, row: Row, limit: int = 0) -> object:
        rendered.append(row.line)
        return render_row(chat, row, limit)

    corner.rows.write_text("\n".join(chat_lines(300)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        monkeypatch.setattr(data_tasks, "render_row", render)
        table(app).focus()
        await pilot.pause(0.1)
        with monkeypatch.context() as held:
            held.setattr(data, "REST", 600.0)  # however slow the box is, the key is held
            for _ in range(49):
                table(app).action_move(1)
                await pilot.pause(0)
        table(app).action_move(1)
        await settled(pilot)
        assert rendered[-1] == 51 and len(rendered) <= 2
        assert "It is 51, I think." in shown(app)


async def test_a_row_is_read_once_while_it_stays_in_sight(corner: Corner) -> None:
    asked: list[int] = []

    class Counted(list[Row]):
        def __getitem__(self, at: object) -> Row:  # type: ignore[override]
            asked.append(at)  # type: ignore[arg-type]
            return super().__getitem__(at)  # type: ignore[call-overload,no-any-return]

    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        rows = Counted(
            Row((Message("user", f"q{n}"), Message("assistant", f"a{n}")), n + 1) for n in range(1000)
        )
        table(app).show(rows)
        table(app).focus()
        await settled(pilot)
        asked.clear()
        await pilot.press("down", "down", "up")
        await settled(pilot)
        assert set(asked) == {1, 2} and len(asked) == 3, "only the rows that the cursor stands on"
        assert "q2 " in shown(app)


async def test_a_long_text_scrolls_and_wraps_to_the_window(corner: Corner) -> None:
    corner.rows.write_text(json.dumps({"question": "q?", "answer": "blue sky " * 300 + "END"}) + "\n")
    app = corner.app(step=3, changed={"training.sequence_length": 512})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = app.screen.query_one("#text", TextView)
        text.focus()
        assert "END" not in shown(app)
        await pilot.press("end")
        await pilot.pause()
        assert "END" in shown(app)
        await pilot.resize_terminal(120, 40)
        await settled(pilot)
        assert text.virtual_size.width == text.scrollable_content_region.width
        lines = [line for line in shown(app).splitlines() if "blue sky" in line]
        assert max(map(len, lines)) <= 120
