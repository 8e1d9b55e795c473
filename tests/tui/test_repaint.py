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
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.segment import ControlType
from textual._compositor import ChopsUpdate, Compositor, LayoutUpdate
from textual._styles_cache import StylesCache
from textual.geometry import Region
from textual.widgets import RichLog

from ollama_tune.tui import control_cli
from ollama_tune.tui.repaint import SparingCompositor, apart, outside
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.widgets.help import HelpScreen
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


def test_regions_apart_have_the_same_cells_each_once() -> None:
    chance = random.Random(5)
    for _ in range(200):
        regions = [Region(*(chance.randrange(7) for _ in range(4))) for _ in range(chance.randrange(5))]
        regions = [region for region in regions if region]
        cells = Counter((x, y) for part in apart(regions) for x in part.column_range for y in part.line_range)
        assert set(cells) == {(x, y) for r in regions for x in r.column_range for y in r.line_range}
        assert set(cells.values()) <= {1}


def painted(update: ChopsUpdate | LayoutUpdate | None) -> Cells:
    """What an update writes into which cell of the terminal; Textual's goes on to the end of a segment."""
    cells: Cells = {}
    if update is None:
        return cells
    x = y = 0
    console = Console(width=500)
    for segment in update.__rich_console__(console, console.options):
        for code in segment.control or ():
            assert code[0] is ControlType.CURSOR_MOVE_TO
            x, y = int(code[1]), int(code[2])  # type: ignore[arg-type, misc]
        for letter in "" if segment.control else segment.text.rstrip("\n"):
            cells[x, y] = (letter, str(segment.style))
            x += 1
    return cells


@pytest.mark.parametrize("kind", ["render_partial_update", "render_full_update"])
async def test_the_same_is_painted_as_by_textual_itself(
    corner: Corner, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    checked: list[int] = []
    ours, textuals = getattr(SparingCompositor, kind), getattr(Compositor, kind)

    def both(self: SparingCompositor, **how: bool) -> ChopsUpdate | LayoutUpdate | None:
        regions = self._dirty_regions.copy()
        update = ours(self, **how)
        self._dirty_regions.update(regions)
        cells, plain = painted(update), painted(textuals(self, **how))
        assert cells.items() <= plain.items()
        changed = [region.intersection(self.size.region) for region in regions]
        assert set(cells) >= {(x, y) for r in changed for x in r.column_range for y in r.line_range}
        checked.append(len(cells))
        return cast("ChopsUpdate | LayoutUpdate | None", update)

    monkeypatch.setattr(SparingCompositor, kind, both)
    corner.rows.write_text("\n".join(chat_lines(60)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(100, 34)) as pilot:
        await settled(pilot)
        for key in ("tab", "down", "pagedown", "i", "end", "tab", "x", "up", "question_mark", "down", "q"):
            await pilot.press(key)
        await pilot.pause(0.05)
    assert sum(count > 0 for count in checked) > (10 if kind == "render_partial_update" else 3)


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


async def test_the_help_is_kept_and_tells_of_what_it_is_asked_for() -> None:
    app = open_app(make_run())
    async with app.run_test(size=(100, 30)) as pilot:
        seen: list[tuple[object, str]] = []
        for key in ("question_mark", "pagedown", "q", "l", "question_mark", "q", "escape", "question_mark"):
            await pilot.press(key)
            await pilot.pause()
            if isinstance(app.screen, HelpScreen):
                lines = app.screen._compositor.render_strips()
                seen.append((app.screen, "\n".join(strip.text for strip in lines)))
        first, paged, other, again = seen
        assert {window for window, _ in seen} == {app.screen}
        assert first[1] != paged[1] and first[1] == again[1]
        assert other[1] not in (first[1], paged[1])


def test_what_the_rooms_loaded_is_collected_no_more_only_in_a_window_of_its_own() -> None:
    code = """
import gc
from ollama_tune.tui.app import collect_again, keep_loaded
keep_loaded()
none = gc.get_freeze_count()
gc.disable()
collect_again()
begun, made = gc.get_freeze_count(), [[] for _ in range(1000)]
keep_loaded()
print(none, begun > 0, gc.get_freeze_count() - begun >= 1000, gc.isenabled())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == [
        "0",
        "True",
        "True",
        "True",
    ]


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
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.split() == ["True", "False", "False", str(has_driver()), "0"], done.stderr
