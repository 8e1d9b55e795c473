"""What takes long says how far it is, holds no key up, and ends when it is no longer wanted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import psutil
import pytest

from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.screens import data as data_screen
from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.model import ModelScreen
from ollama_tune.tui.widgets.rows import RowList
from tests.tui.conftest import Corner, settled, shown
from tests.tui.run_logs import until
from tests.tui.test_key_order import type_at_once

ROWS = 30_000
"""Seconds of computing for a key, at the 95th percentile."""


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.jsonl"
    answer = {"role": "assistant", "content": "It is in the hall. " * 8}
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            question = {"role": "user", "content": f"Where is box {number}?"}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return path


def progress(app: TuneApp) -> int:
    """How far the reading or counting of rows says that it is, in percent; 0 where it says nothing yet."""
    told = " ".join(text for name, text in app.facts.busy.items() if name in ("data", "rows"))
    return max((int(figure) for figure in re.findall(r"(\d+)%", told)), default=0)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


async def test_a_long_file_says_how_far_it_is_read_and_keys_are_answered(
    corner: Corner, long_file: Path
) -> None:
    app = corner.app(step=3, data=str(long_file))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.facts.profile is not None and progress(app) > 0)
        table = app.screen.query_one(RowList)
        table.focus()
        await pilot.pause()
        for place in range(1, 41):
            type_at_once(app, "down")
            await until(pilot, lambda place=place: table.cursor >= place)
        assert app.facts.busy.keys() & {"data", "rows"}, "the rows are still being read or counted"
        await pilot.press("escape")
        app.workers.cancel_all()


async def test_escape_leaves_a_reading_and_another_file_ends_it(
    corner: Corner, long_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_screen, "LONG", math.inf)  # Esc ends a long one, as any is on a busy box
    before = children()
    app = corner.app(step=3, data=str(long_file))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(children() - before))
        readers = children() - before
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelScreen))
        assert "data" in app.facts.busy
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DataScreen))
        type_at_once(app, "end", "ctrl+u", *str(corner.rows), "enter")
        await until(pilot, lambda: not psutil.pid_exists(next(iter(readers))))
        await settled(pilot)
        assert app.answers.data == str(corner.rows) and "✓ 40 rows" in shown(app)
