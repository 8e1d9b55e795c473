from __future__ import annotations

import math
import random

import pytest
from textual.app import App, ComposeResult

from ollama_tune.tui.widgets.chart import Canvas, LossChart
from ollama_tune.tui.widgets.curves import LossCurve
from ollama_tune.tui.widgets.scales import limits, log_limits, log_ticks, percentile, smoothed, ticks


def falling(steps: int, total: int) -> LossCurve:
    curve, rng = LossCurve(), random.Random(2)
    for step in range(1, steps + 1):
        curve.add(step, 0.3 + 2.5 * math.exp(-4 * step / total) + rng.gauss(0, 0.05))
    return curve


class ChartApp(App[None]):
    def compose(self) -> ComposeResult:
        yield LossChart()


async def drawn(
    curve: LossCurve, marks: list[tuple[int, float | None]], total: int, size: tuple[int, int] = (80, 20)
) -> list[str]:
    app = ChartApp()
    async with app.run_test(size=size) as pilot:
        chart = app.query_one(LossChart)
        chart.show(curve, marks, total)
        await pilot.pause()
        return chart.text().split("\n")


def test_dots_land_in_the_braille_cell_they_belong_to() -> None:
    canvas = Canvas(2, 1)
    canvas.column(0, 0, 3)
    canvas.column(3, 1, 1)
    assert "".join(canvas.row(0)) == "⡇⠐"
    blocks = Canvas(2, 1, braille=False)
    blocks.column(0, 1, 1)
    blocks.column(3, 0, 1)
    assert "".join(blocks.row(0)) == "▖▐"


def test_a_console_without_braille_gets_quadrant_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    chart = LossChart()
    chart._curve, chart._total, chart._validation = falling(50, 100), 100, [(10, 1.0)]
    text = "\n".join(line for line, _ in chart._compose_rows(80, 20))
    assert not any(0x2800 <= ord(character) <= 0x28FF for character in text)
    assert "▖" in text and " x" in text and "◆" not in text


def test_a_spike_does_not_flatten_the_curve() -> None:
    points = [(float(step), 1.0, 2.0, 1.5) for step in range(1, 101)]
    points[50] = (51.0, 1.0, 900.0, 1.6)
    bottom, top = limits(points, [1.7])
    assert top == 2.0 and bottom == 1.0


def test_the_top_is_never_below_the_highest_mean_or_validation_loss() -> None:
    points = [(float(step), 1.0, 2.0, 1.5) for step in range(1, 101)]
    points[50] = (51.0, 5.0, 900.0, 7.0)
    assert limits(points, [])[1] == 7.0
    assert limits(points, [9.0])[1] == 9.0


def test_a_flat_curve_has_room_above_and_below() -> None:
    bottom, top = limits([(1.0, 2.0, 2.0, 2.0)], [])
    assert bottom < 2.0 < top


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 0.98), percentile(values, 0.02), percentile([5.0], 0.98)) == (98.0, 2.0, 5.0)


@pytest.mark.parametrize(("bottom", "top"), [(0.0, 3.1), (1.8, 2.2), (0.0, 0.004), (0.0, 12_000.0)])
def test_ticks_are_round_values_inside_the_limits(bottom: float, top: float) -> None:
    found = ticks(bottom, top, 6)
    assert 2 <= len(found) <= 8
    assert all(bottom - 1e-9 <= value <= top + 1e-9 for value, _ in found)
    assert len({label for _, label in found}) == len(found)
    assert all(float(label) == pytest.approx(value, abs=1e-9) for value, label in found)


async def test_the_curve_falls_and_leaves_the_room_of_the_steps_to_come_empty() -> None:
    rows = await drawn(falling(50, 100), [], 100)
    plot = [row.split("│")[-1].split("┤")[-1] for row in rows[1:-2]]
    columns = [
        [y for y, row in enumerate(plot) if x < len(row) and row[x] != " "]
        for x in range(max(map(len, plot)))
    ]
    used = [x for x, ys in enumerate(columns) if ys]
    assert min(columns[used[0]]) < min(columns[used[-1]])
    assert max(used) == pytest.approx(len(columns) / 2, abs=2)
    assert rows[-1].rstrip().endswith("step 100")


async def test_validation_losses_are_marked_and_named_without_colour() -> None:
    rows = await drawn(falling(60, 100), [(0, 2.8), (30, 1.0), (60, None), (61, float("nan"))], 100)
    assert sum(row.count("◆") for row in rows[1:]) == 2
    assert "◆ held-out loss" in rows[0]


async def test_before_the_first_step_there_is_a_sentence() -> None:
    rows = await drawn(LossCurve(), [], 100)
    assert any("The curve starts with the first step." in row for row in rows)


@pytest.mark.parametrize("size", [(24, 5), (60, 6), (10, 3), (200, 60)])
async def test_every_size_is_drawn_within_its_bounds(size: tuple[int, int]) -> None:
    rows = await drawn(falling(80, 100), [(40, 1.0)], 100, size)
    assert len(rows) == size[1] and {len(row) for row in rows} == {size[0]}


async def test_more_steps_than_planned_stay_inside() -> None:
    rows = await drawn(falling(120, 100), [(120, 1.0)], 100)
    assert {len(row) for row in rows} == {80}


async def test_only_changed_cells_are_painted_again() -> None:
    app = ChartApp()
    async with app.run_test(size=(80, 20)) as pilot:
        chart, curve = app.query_one(LossChart), falling(50, 100)
        chart.show(curve, [], 100)
        await pilot.pause()
        painted: list[object] = []
        chart.refresh = lambda *regions, **_: painted.extend(regions) or chart  # type: ignore[assignment,func-returns-value]
        chart.show(curve, [], 100)
        assert painted == []
        curve.add(51, 0.9)
        chart.show(curve, [], 100)
        assert 0 < sum(region.area for region in painted) < 40  # type: ignore[attr-defined]


def smooth(values: list[float], reach: float) -> list[float]:
    curve = LossCurve()
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    return smoothed(list(curve.points()), reach)


def test_the_mean_line_is_smooth_but_begins_where_the_curve_begins() -> None:
    means = smooth([9.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0], 2)
    assert means[0] == 9.0 and means[1] == pytest.approx(13 / 3)
    assert means[3] == pytest.approx((1 + 3 + 1 + 3 + 1) / 5)
    assert smooth([1.0, 2.0, 3.0], 0) == [1.0, 2.0, 3.0]


async def test_a_logarithmic_axis_keeps_what_comes_after_a_steep_start_apart() -> None:
    curve = LossCurve()
    for step in range(1, 101):
        curve.add(step, 10.0 if step < 10 else 1.0 if step < 50 else 0.1)
    app = ChartApp()
    async with app.run_test(size=(80, 20)) as pilot:
        chart = app.query_one(LossChart)
        chart.show(curve, [], 100)
        await pilot.pause()
        linear = _lowest(chart.text())
        chart.rescale()
        logarithmic = _lowest(chart.text())
        assert "log scale" in chart.text().split("\n")[0] and "10 ┤" in chart.text()
        assert logarithmic[60] - logarithmic[30] > 3 * (linear[60] - linear[30])
        chart.rescale()
        assert _lowest(chart.text()) == linear


def _lowest(text: str) -> dict[int, int]:
    """For each column of the plot the lowest row with a dot."""
    rows = [row.split("┤")[-1].split("│")[-1] for row in text.split("\n")[1:-2]]
    width = max(map(len, rows))
    found = {x: [y for y, row in enumerate(rows) if row.rjust(width)[x] != " "] for x in range(width)}
    return {x: max(ys) for x, ys in found.items() if ys}


@pytest.mark.parametrize(("bottom", "top"), [(0.01, 20.0), (0.5, 2.0), (1.9, 2.0), (1e-4, 1.0)])
def test_ticks_of_a_logarithmic_axis_are_round_and_inside(bottom: float, top: float) -> None:
    found = log_ticks(bottom, top, 6)
    assert 2 <= len(found) <= 8
    assert all(bottom - 1e-9 <= value <= top + 1e-9 for value, _ in found)
    assert all(float(label) == pytest.approx(value) for value, label in found)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [2.0, 2.0], [1e-9, 5.0], [0.0, 3.0]])
def test_a_logarithmic_axis_bears_zero_and_flat_curves(losses: list[float]) -> None:
    points = [(float(step), loss, loss, loss) for step, loss in enumerate(losses)]
    bottom, top = log_limits(points, [])
    assert 0 < bottom < top and top / bottom <= 10_001
