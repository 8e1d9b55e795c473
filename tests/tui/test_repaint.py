"""What a key or an event costs: how much is painted, parsed, imported and asked, counted and not timed."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.segment import ControlType
from textual._compositor import ChopsUpdate, Compositor
from textual._styles_cache import StylesCache
from textual.geometry import Region
from textual.widgets import RichLog

from ollama_tune.tui import control_cli
from ollama_tune.tui.repaint import SparingCompositor, outside
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.widgets.log import MOST_LINES, RunLog
from tests.tui.conftest import Corner, settled
from tests.tui.run_logs import Log, make_run, open_app
from tests.tui.test_wizard_data import chat_lines, table

Cells = dict[tuple[int, int], tuple[str, str]]


def test_what_a_region_leaves_of_another_is_exactly_the_rest() -> None:
    chance = random.Random(3)
    for _ in range(300):
        part, cover = (Region(*(chance.randrange(7) for _ in range(4))) for _ in range(2))
        pieces = list(outside(part, cover)) if part else []
        cells = Counter((x, y) for piece in pieces for x in piece.column_range for y in piece.line_range)
        wanted = {(x, y) for x in part.column_range for y in part.line_range if not cover.contains(x, y)}
        assert set(cells) == wanted and set(cells.values()) <= {1}


def painted(update: ChopsUpdate | None) -> Cells:
    """What an update writes into which cell of the terminal."""
    cells: Cells = {}
    if update is None:
        return cells
    x = y = 0
    console = Console(width=500)
    for segment in update.__rich_console__(console, console.options):
        for code in segment.control or ():
            assert code[0] is ControlType.CURSOR_MOVE_TO
            x, y = int(code[1]) - 1, int(code[2]) - 1  # type: ignore[arg-type, misc]
        for letter in "" if segment.control else segment.text.rstrip("\n"):
            cells[x, y] = (letter, str(segment.style))
            x += 1
    return cells


async def test_the_same_is_painted_as_by_textual_itself(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    ours = SparingCompositor.render_partial_update

    def both(self: SparingCompositor) -> ChopsUpdate | None:
        regions = self._dirty_regions.copy()
        update = ours(self)
        self._dirty_regions.update(regions)
        with monkeypatch.context() as patch:
            patch.setattr(SparingCompositor, "_get_renders", Compositor._get_renders)
            plain = Compositor.render_partial_update(self)
        cells = painted(update)
        assert cells == painted(plain)
        checked.append(len(cells))
        return update

    monkeypatch.setattr(SparingCompositor, "render_partial_update", both)
    corner.rows.write_text("\n".join(chat_lines(60)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(100, 34)) as pilot:
        await settled(pilot)
        for key in ("tab", "down", "pagedown", "i", "end", "tab", "x", "up", "question_mark", "down"):
            await pilot.press(key)
        await pilot.pause(0.05)
    assert sum(count > 0 for count in checked) > 10


async def test_a_key_in_the_preview_asks_few_widgets_for_few_lines(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    render = StylesCache.render_line
    lines_of = StylesCache.render_widget
    now: list[str] = []

    def widget(self: StylesCache, one: Any, crop: Region) -> Any:
        now[:] = [type(one).__name__]
        asked[f"asked {now[0]}"] += 1
        return lines_of(self, one, crop)

    def line(self: StylesCache, *values: Any) -> Any:
        asked[now[0]] += 1
        return render(self, *values)

    corner.rows.write_text("\n".join(chat_lines(300)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        table(app).focus()
        await pilot.press("down")
        await settled(pilot)
        monkeypatch.setattr(StylesCache, "render_widget", widget)
        monkeypatch.setattr(StylesCache, "render_line", line)
        await pilot.press("down")
        await settled(pilot)
        assert asked["RowList"] == 2 and asked["RowText"] == 1
        assert not {"asked Vertical", "asked Horizontal", "asked DataScreen"} & set(asked)


def test_a_long_log_gives_the_panel_only_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    log = Log(run).start()
    view = RunView()
    for number in range(700):
        log("checkpoint", step=number, bytes=1, best=False, reason="evaluation")
    view.fold(run.events())
    assert view.logged > 10 * MOST_LINES
    written: list[object] = []
    monkeypatch.setattr(RichLog, "write", lambda self, text, **_: written.append(text))
    panel = RunLog()
    panel.show_events(view)
    assert len(written) == MOST_LINES and str(written[-1]).endswith("step 699 (1 B).")


async def test_screens_and_windows_over_them_paint_sparingly() -> None:
    app = open_app(make_run())
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("question_mark")
        await pilot.pause()
        own = app.screen_stack[1:]
        assert len(own) == 2 and all(isinstance(one._compositor, SparingCompositor) for one in own)


def test_nothing_is_collected_until_an_attached_run_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run()
    seen: list[bool] = []
    monkeypatch.setattr(control_cli, "on_terminal", lambda: True)
    monkeypatch.setattr(control_cli, "wants_plain", lambda: False)
    monkeypatch.setattr("ollama_tune.tui.app.run_app", lambda *_: seen.append(gc.isenabled()) or 0)
    try:
        assert CliRunner().invoke(control_cli.attach, []).exit_code == 0
    finally:
        gc.enable()
    assert seen == [False]


SCRIPT = """
import sys
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.rows import duplicates
from ollama_tune.core.data.values import Reading
from ollama_tune.core.machine.gpus import read_gpus
load_dataset("bundled")
read_gpus()
kept = duplicates._classes.cache_info().currsize + duplicates._powers.cache_info().currsize
print(*(name in sys.modules for name in ("numpy", "numpy.random", "numpy.ma", "pynvml")), kept)
"""


def has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def test_reading_small_data_and_looking_for_gpus_imports_and_keeps_little(tmp_path: Path) -> None:
    environment = dict(os.environ, OLLAMA_TUNE_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.split() == ["True", "False", "False", str(has_driver()), "0"], done.stderr
