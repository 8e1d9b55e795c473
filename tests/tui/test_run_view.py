from __future__ import annotations

import random

import pytest

from ollama_tune.core.runs.events import Event, EventReader
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.widgets.curves import BUCKETS, LossCurve
from ollama_tune.tui.widgets.spark import spark

from .run_logs import NASTY, Clock, Log, make_run


def view_of(folder: RunFolder) -> RunView:
    view = RunView()
    view.fold(EventReader(folder.events_path).poll())
    return view


def test_a_curve_never_holds_more_than_its_buckets_and_loses_no_step() -> None:
    curve, rng = LossCurve(), random.Random(3)
    losses = [rng.random() for _ in range(5000)]
    for step, loss in enumerate(losses, start=1):
        curve.add(step, loss)
    buckets = [bucket for _, bucket in curve.points()]
    assert len(curve.buckets) <= BUCKETS
    assert sum(bucket.count for bucket in buckets) == 5000
    assert sum(bucket.sum for bucket in buckets) == pytest.approx(sum(losses))
    assert (min(b.low for b in buckets), max(b.high for b in buckets)) == (min(losses), max(losses))


def test_a_bucket_stands_at_the_middle_of_its_steps() -> None:
    curve = LossCurve()
    for step in range(1, BUCKETS + 2):
        curve.add(step, float(step))
    points = list(curve.points())
    assert curve.width == 2
    assert points[0][0] == pytest.approx(points[0][1].mean) == 1.5
    assert points[100][0] == pytest.approx(points[100][1].mean)


def test_nan_and_missing_losses_leave_a_gap() -> None:
    curve = LossCurve()
    for step, loss in enumerate([1.0, float("nan"), None, float("inf"), 2.0], start=1):
        curve.add(step, loss)
    assert [at for at, _ in curve.points()] == [1.0, 5.0]


def test_figures_follow_the_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    folder = make_run()
    Log(folder, clock).training(50)
    view = view_of(folder)
    assert (view.step, view.total_steps, view.device) == (50, 200, "cpu")
    assert view.tokens_per_second == pytest.approx(820)
    assert view.validation_loss == pytest.approx(0.3 + 2.7 * 2.718281828 ** (-50 / 60), abs=1e-3)
    assert view.before == 0.02 and view.after is None
    assert view.memory is not None and sum(view.memory.parts.values()) == 790 << 20
    assert view.best is not None and view.best.step == 50


def test_time_left_counts_the_evaluations_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    folder = make_run()
    Log(folder, clock).training(50)
    view = view_of(folder)
    assert view.finish_time is not None
    pace = (49 * 0.5 + 0.4) / 49
    assert view.finish_time - (clock.now - 0.4) == pytest.approx(150 * pace, rel=1e-3)
    assert view.elapsed == pytest.approx(3 + 0.4 + 50 * 0.5 + 2 * 0.4, abs=0.01)


def test_resumed_steps_replace_those_after_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    folder = make_run()
    log = Log(folder, clock)
    log.training(40)
    clock.pass_by(3600)
    log.start(200, resumed_from=25)
    view = view_of(folder)
    assert view.step == 25 and max(view.validation) == 25
    assert len(list(view.losses.points())) == 25
    for step in range(26, 31):
        log.step(step, 200, 1.0)
    view = view_of(folder)
    assert view.step == 30 and len(list(view.losses.points())) == 30
    assert view.elapsed < 60, "the hour between two starts is no training time"


def test_a_fresh_start_after_a_crash_begins_at_step_zero() -> None:
    folder = make_run()
    log = Log(folder)
    log.start(200).step(1, 200, 3.0).step(2, 200, 2.9)
    log.start(200)
    view = view_of(folder)
    assert view.step == 0 and not list(view.losses.points()) and not view.training


def test_polling_in_pieces_gives_the_same_as_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    folder = make_run()
    reader, live, log = EventReader(folder.events_path), RunView(), Log(folder, clock)
    for part in (lambda: log.training(30), lambda: log.samples(), lambda: log.trained()):
        part()
        assert live.fold(reader.poll())
    assert not live.fold(reader.poll())
    whole = view_of(folder)
    assert list(live.log) == list(whole.log)
    assert list(live.losses.points()) == list(whole.losses.points())
    assert (live.after, live.trained) == (whole.after, whole.trained) == (0.958, True)


def test_samples_of_the_base_and_the_tuned_model_meet() -> None:
    folder = make_run()
    log = Log(folder)
    log("sample", prompt="p", reference="r", base="b", tuned=None)
    log("sample", prompt="p", reference="r", base=None, tuned="t")
    (sample,) = view_of(folder).samples.values()
    assert (sample.base, sample.tuned) == ("b", "t")


def test_an_export_after_training_keeps_the_training_figures() -> None:
    folder = make_run()
    Log(folder).trained().exported()
    view = view_of(folder)
    assert view.trained and set(view.done) == {"train", "export"}
    assert view.verification is not None and view.verification.verdict == "warn"
    assert view.step == view.total_steps == 200


def test_a_second_export_forgets_the_first_one() -> None:
    folder = make_run()
    log = Log(folder)
    log.trained().exported().start(stage="export")
    view = view_of(folder)
    assert view.verification is None and set(view.done) == {"train"}


def test_warnings_are_kept_once_and_errors_until_the_next_start() -> None:
    folder = make_run()
    log = Log(folder)
    log.start()
    for _ in range(3):
        log("warning", what=NASTY, fix="Look.")
    log("out_of_memory", step=3, change="batch size 2 to 1")
    log("error", what="The disk is full.", fix="Free some.", details="")
    view = view_of(folder)
    assert len(view.warnings) == 2 and view.error is not None
    assert not any(c in line.text for line in view.log for c in "\x1b\x07\u202e")
    log.start(resumed_from=1)
    assert view_of(folder).error is None


def test_events_with_missing_or_wrong_fields_are_passed_over() -> None:
    view = RunView()
    odd = [Event(0, 0.0, "step", {}), Event(1, 0.0, "start", {}), Event(2, 0.0, "unheard of", {"x": 1})]
    odd += [
        Event(3, 0.0, "memory", {"device": "cpu", "used": "many"}),
        Event(4, 1.0, "verification", {"verdict": 1}),
    ]
    assert view.fold(odd)
    assert view.last is odd[-1] and view.step == 0 and view.memory is None


def test_superseded_steps_leave_a_long_curve_without_a_trace() -> None:
    """Buckets of several steps cannot take one back, so the log is read anew, each step once."""
    folder = make_run()
    log = Log(folder)
    log.start(2000)
    for step in range(1, 1301):
        log.step(step, 2000, 1.0)
    follower = RunFollower(folder)
    follower.poll()
    log.checkpoint(1001).start(2000, resumed_from=1001)
    for step in range(1002, 1200):
        log.step(step, 2000, 3.0)
    follower.poll()
    curve = follower.view.losses
    assert curve.width > 1 and sum(bucket.count for bucket in curve.buckets) == 1199
    assert sum(bucket.sum for bucket in curve.buckets) == 1001 * 1.0 + 198 * 3.0
    assert sum(bucket.count for bucket in follower.view.norms.buckets) == 1199


def test_a_run_that_went_back_takes_its_steps_and_its_answers_back() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60).samples(step=50)
    log("warning", what="Not a number.", fix="Half the rate from step 25 on.", back_to=25)
    view = view_of(folder)
    assert (view.step, max(view.validation), view.checkpoints[-1].step) == (25, 25, 25)
    assert [len(asked.said) for asked in view.asked.values()] == [0, 0, 0]
    assert len(list(view.losses.points())) == 25


def test_what_a_crash_would_cost_is_counted_from_the_last_checkpoint() -> None:
    folder = make_run()
    log = Log(folder)
    log.start().step(1, 200, 3.0).step(2, 200, 2.9)
    assert view_of(folder).unsaved == 2
    log.checkpoint(2).step(3, 200, 2.8)
    assert view_of(folder).unsaved == 1


def test_time_that_a_run_waited_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, folder = Clock(monkeypatch), make_run()
    log = Log(folder, clock)
    log.training(50)
    before = view_of(folder)
    log("paused", step=50, reason="request", what="It waits.", fix="Go on.")
    assert view_of(folder).paused
    log("continued", 3600.0, step=50, seconds=3600.0)
    view = view_of(folder)
    assert not view.paused and view.elapsed == pytest.approx(before.elapsed, abs=0.01)
    log.step(51, 200, 1.0)
    assert view_of(folder).finish_time == pytest.approx((before.finish_time or 0) + 3600.0, abs=5.0)


def test_the_share_of_the_card_is_the_mean_by_time_and_unknown_without_a_card() -> None:
    folder = make_run()
    log = Log(folder)
    log.start().step(1, 200, 3.0)
    assert view_of(folder).mfu is None
    for share, seconds in ((0.5, 3.0), (0.1, 1.0)):
        tokens = {"useful_tokens": 10, "supervised_tokens": 5, "seconds": seconds, "cpu_seconds": 1.0}
        figures = {"epoch": 1.0, "loss": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0, "mfu": share}
        log("step", step=2, total_steps=200, **tokens, **figures)
    assert view_of(folder).mfu == pytest.approx(0.4)


def test_answers_are_kept_by_question_and_step_with_the_base_models_beside_them() -> None:
    folder = make_run()
    log = Log(folder)
    log.start().samples(step=1).samples(step=2)
    log("sample", prompt="One soup, no salt.", reference="S1 -salt", base=None, tuned="S1 -salt")
    view = view_of(folder)
    tea, soup, _ = view.asked.values()
    assert [(said.step, said.text) for said in tea.said] == [(1, "T"), (2, "T2")]
    assert (tea.base, tea.final) == ("I am happy to help you with that.", None)
    assert (soup.base, soup.final) == (tea.base, "S1 -salt")
    log.samples(step=2)
    assert [said.step for said in next(iter(view_of(folder).asked.values())).said] == [1, 2]


def test_a_curve_in_one_line_goes_from_its_lowest_to_its_highest() -> None:
    curve = LossCurve()
    for step in range(1, 51):
        curve.add(step, float(step))
    assert spark(curve, 8, 100) == "▁▃▆█"
    assert spark(curve, 8, 50) == "▁▂▃▄▅▆▇█"
    assert spark(LossCurve(), 8, 100) == ""
