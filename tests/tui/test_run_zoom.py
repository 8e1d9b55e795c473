"""The chart of a run at a key: what is seen of it, how fine, and how it follows the newest step."""

from __future__ import annotations

import pytest

from ollama_tune.tui.widgets.chart import LossChart, Zoom
from ollama_tune.tui.widgets.curves import LossCurve

from .run_logs import Clock, Log, alive, make_run, open_app, screen_text, until, until_text


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_zoom_halves_what_is_seen_and_follows_the_newest_step() -> None:
    zoom = Zoom()
    assert zoom.span(1000, 300) == (0, 1000)
    zoom.change(1, 1000, 300)
    assert zoom.span(1000, 300) == (0, 500)
    assert zoom.span(1000, 510) == (125, 625), "it moves by quarters of its width"
    zoom.change(1, 1000, 990)
    assert zoom.span(1000, 990) == (750, 1000)


def test_moving_away_holds_the_window_until_the_newest_step_is_reached_again() -> None:
    zoom = Zoom(level=2)
    zoom.move(-1, 1000, 600)
    held = zoom.span(1000, 600)
    assert held[1] - held[0] == 250 and zoom.span(1000, 900) == held
    for _ in range(20):
        zoom.move(1, 1000, 900)
    assert zoom.quarter is None and zoom.span(1000, 900)[1] >= 900
    for _ in range(40):
        zoom.move(-1, 1000, 900)
    assert zoom.span(1000, 900)[0] == 0


def test_zoom_has_an_end_and_comes_back_to_all_steps() -> None:
    zoom = Zoom()
    for _ in range(20):
        zoom.change(1, 1000, 500)
    assert zoom.span(1000, 500)[1] - zoom.span(1000, 500)[0] >= 24
    for _ in range(20):
        zoom.change(-1, 1000, 500)
    assert zoom == Zoom()


def test_a_zoomed_curve_has_finer_buckets_than_the_whole_and_all_of_the_steps() -> None:
    curve = LossCurve()
    for step in range(1, 100_001):
        curve.add(step, float(step))
    near = list(curve.between(50_001, 51_000, 200))
    assert curve.width == 256 and len(near) == 200
    assert [(bucket.low, bucket.high, bucket.count) for _, bucket in near[:1]] == [(50_001, 50_005, 5)]
    assert list(curve.between(1, 100_000, 200)) == list(curve.points())
    curve.add(100_001, 7.0)
    assert [bucket.low for _, bucket in curve.between(100_000, 100_050, 60)] == [100_000.0, 7.0]


def test_steps_that_are_done_again_replace_what_they_were_at_every_zoom() -> None:
    curve = LossCurve()
    for step in range(1, 2001):
        curve.add(step, 1.0)
    assert {bucket.mean for _, bucket in curve.between(1500, 1600, 200)} == {1.0}
    assert curve.buckets
    curve.cut(1490)
    for step in range(1491, 1700):
        curve.add(step, 3.0)
    assert {bucket.mean for _, bucket in curve.between(1500, 1600, 200)} == {3.0}
    assert sum(bucket.count for bucket in curve.buckets) == 1699
    assert sum(bucket.sum for bucket in curve.buckets) == 1490 + 3 * 209


def test_a_foreign_step_number_takes_no_memory() -> None:
    curve = LossCurve()
    curve.add(10**12, 1.0)
    curve.add(-5, 1.0)
    assert list(curve.points()) == []


async def test_keys_zoom_move_and_show_all_again() -> None:
    folder = make_run()
    Log(folder).training(150)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(120, 40)) as pilot:
            await until_text(pilot, "step 150 of 200", "+/- zoom  y scale", "step 200")
            await pilot.press("+", "+")
            await until(pilot, lambda: app.screen.query_one(LossChart).text().endswith("step 150"))
            assert "0 all" in screen_text(app)
            await pilot.press("left")
            await until_text(pilot, "step 138")
            await pilot.press("0")
            await until(pilot, lambda: "step 200" in app.screen.query_one(LossChart).text())
