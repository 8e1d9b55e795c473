"""The training screen's parts at a key: zoom, answers, log, memory and machine, and a window that changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.core.machine.live import BoxNow
from ollama_tune.core.machine.values import Gpu
from ollama_tune.core.plan import memory as memory_formula
from ollama_tune.core.runs import events as events_source
from ollama_tune.core.runs.events import Event, parse_line, parse_lines
from ollama_tune.tui.memory_words import PARTS, grouped, word_of
from ollama_tune.tui.pace import Pace
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_values import Asked, Memory, Said
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.run_log import LogScreen
from ollama_tune.tui.screens.training import TrainingScreen, watch_box
from ollama_tune.tui.widgets.lines import LineList
from ollama_tune.tui.widgets.live import LivePanel, live_line, live_lines
from ollama_tune.tui.widgets.memory import LOOKS, MemoryPanel
from ollama_tune.tui.widgets.sample import SamplePanel

from .run_logs import NASTY, Clock, Log, alive, make_run, open_app, screen_text, until, until_text

GIB = 1 << 30
CARD = Gpu(
    0, "GPU-1", "Example 24 GB", 24 * GIB, 4 * GIB, (8, 9), (), False, False, False, False, True, 97, 71
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# Answers


def test_the_answer_panel_turns_questions_and_evaluations() -> None:
    panel = SamplePanel()
    tea = Asked("Two teas?", "T2", "Hello!", [Said(10, "T"), Said(20, "T2")])
    bun = Asked("A bun?", "B1", None, [Said(20, "B", cut=True)])
    panel.show([tea, bun, Asked("never answered", "x")])
    assert plain(panel) == ["asked 1/2  Two teas?", "wanted     T2", "base       Hello!", "step 20    T2 ✓"]
    panel.turn(evaluations=1)
    assert plain(panel)[3] == "step 10    T"
    panel.turn(evaluations=5)
    assert plain(panel)[3] == "step 10    T", "there is none before the first"
    panel.turn(questions=1)
    assert plain(panel) == [
        "asked 2/2  A bun?",
        "wanted     B1",
        "base       not asked yet",
        "step 20    B …",
    ]
    panel.turn(questions=1)
    assert plain(panel)[0] == "asked 1/2  Two teas?"


def plain(panel: SamplePanel) -> list[str]:
    return [str(line) for _, line in panel.lines(60)]


async def test_a_shows_wanted_base_and_tuned_by_step_and_pages_through_the_questions() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60).samples(tuned=False)
    log.samples(step=1).samples(step=2)
    log("sample", prompt=NASTY, reference=NASTY, base=NASTY, tuned=NASTY, step=60, cut=False)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "a Answers", "asked 1/4")
            await pilot.press("n")
            await until_text(pilot, "asked 2/4")
            await pilot.press("a")
            await until_text(
                pilot, "Question 1 of 4", "T2 B1", "I am happy to help", "step 2      T2", "step 1"
            )
            await pilot.press("left")
            await until_text(pilot, "Question 4 of 4", "[/foo] [bold]x␛[2J", "✓")
            assert not any(c in screen_text(app) for c in "\x1b\x07\u202e")
            await pilot.press("right", "right")
            await until_text(pilot, "Question 2 of 4", "One soup, no salt.")
            log.samples(step=3)
            await until_text(pilot, "step 3      S1 ")
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, TrainingScreen))


# Log


async def test_l_shows_the_whole_log_follows_it_and_leaves_only_warnings() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(150)
    log("warning", what=NASTY, fix="Do this.")
    folder.log_path.write_text("a library said this\n50%\r100%\n")
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "l Log")
            await pilot.press("l")
            await until_text(pilot, "What happened.", "! [/foo] [bold]x␛[2J", "Checkpoint at step 150")
            log("warning", what="One more.", fix="Nothing.")
            await until_text(pilot, "One more.")
            await pilot.press("w")
            await until_text(pilot, "Warnings and errors.", "One more.")
            assert "Checkpoint" not in screen_text(app)
            await pilot.press("o")
            await until_text(pilot, "a library said this", "100%", "stdout.log")
            await pilot.press("o", "home")
            await until_text(pilot, "Training started on cpu.")
            log("warning", what="The newest.", fix="Nothing.")
            await pilot.pause(1.2)
            assert "The newest." not in screen_text(app), "who reads above is not moved"
            await pilot.press("end")
            await until_text(pilot, "The newest.")
            assert isinstance(app.screen, LogScreen)


async def test_long_lines_of_the_log_are_broken_and_the_list_draws_what_is_seen() -> None:
    folder = make_run()
    log = Log(folder).start()
    for number in range(3000):
        log("warning", what=f"Line {number}", fix="word " * 30)
    app = open_app(folder)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "l Log")
        await pilot.press("l")
        await until_text(pilot, "Line 2999")
        lines = app.screen.query_one(LineList)
        assert lines.virtual_size.height >= 9000 and lines.size.height < 24


# Memory and machine


def test_each_of_several_gpus_has_a_line_with_its_peak_by_part() -> None:
    panel = MemoryPanel()
    parts = {"weights": 10 * GIB, "activations": 4 * GIB}
    devices = [Memory(f"cuda:{n}", 12 * GIB, 14 * GIB, 8 * GIB, 24 * GIB, parts) for n in range(2)]
    panel.show(devices, {"weights": 13 * GIB})
    lines = [str(line) for line in panel.lines(100)]
    assert [line.split()[0] for line in lines] == ["predicted", "cuda:0", "cuda:1", "█"]
    assert "14.0 GiB  peak, now 12.0 GiB of 24.0 GiB" in lines[1] and "▤" in lines[1]
    assert "others 4.0 GiB" in lines[3]


async def test_m_shows_memory_by_part_predicted_and_measured_and_the_machine() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    log("data", predicted={"weights": 400 << 20, "activations": 300 << 20})
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "CPU 43 %   RAM 2.9 GiB free   disk 60.0 GiB free")
            await pilot.press("m")
            await until_text(
                pilot, "at the peak", "predicted", "400.0 MiB", "420.0 MiB", "others", "484.0 MiB"
            )
            await until_text(pilot, "This machine now", "the run 1.9 of 2 cores")


def test_the_machine_in_one_line_fits_a_usual_window_and_says_what_is_not_told() -> None:
    box = BoxNow(34.0, 1.9, 16, 52 * GIB, 64 * GIB, 180 * GIB, (CARD,))
    line = str(live_line(box))
    assert line == "GPU 97 %  71 °C   CPU 34 %   RAM 52.0 GiB free   disk 180.0 GiB free" and len(line) <= 76
    first, *_ = (str(line) for line in live_lines(box, 100))
    assert first.startswith("GPU  97 % ") and "71 °C   4.0 of 24.0 GiB free   Example 24 GB" in first
    untold = BoxNow(None, None, 2, GIB, 2 * GIB, None, (Gpu(0, "GPU-1", "x", 0, 0, None),))
    assert str(live_line(untold)) == "GPU – %   CPU –   RAM 1.0 GiB free   disk –"
    assert "! 1.0 GiB free" in str(live_line(BoxNow(1.0, None, 2, GIB, GIB, GIB)))


def test_four_gpus_have_a_line_each_in_a_tall_window_only() -> None:
    from textual.geometry import Size

    panel = LivePanel()
    panel._box = BoxNow(1.0, None, 2, GIB, GIB, GIB, (CARD,) * 4)
    assert panel.get_content_height(Size(96, 40), Size(120, 40), 96) == 5
    assert panel.get_content_height(Size(76, 24), Size(80, 24), 76) == 1


def test_the_box_is_looked_at_only_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    folder = make_run()
    assert watch_box(folder, "cpu") is None
    with alive(folder):
        watch = watch_box(folder, "cpu")
        assert watch is not None
        watch.close()
        folder.worker_path.write_text('{"pid": 1, "boot_id": "another machine", "host": "x"}')
        assert watch_box(folder, "cpu") is None


# Time


def test_the_time_left_is_known_after_two_steps_and_knows_no_pause_and_nothing_done_once() -> None:
    pace = Pace()
    pace.start(0.0)
    pace.step(10.0, 1, 100, 1.0, None)
    assert pace.finish(11) is None
    pace.step(11.0, 2, 100, 1.0, None)
    assert pace.finish(11) == 20.0
    pace.pause(11.5)
    assert pace.elapsed(500.0) == 11.5, "waiting is no training"
    pace.go_on(600.0)
    assert pace.finish(11) == 620.0
    pace.once(611.5)
    pace.every(650.0)
    pace.step(650.5, 3, 100, 1.0, None)
    assert pace.finish(11) == pytest.approx(658.5), "asking the base model does not come again"


def test_a_worker_that_was_killed_in_a_pause_adds_no_waiting_to_the_time() -> None:
    pace = Pace()
    pace.start(0.0)
    pace.step(10.0, 1, 100, 1.0, None)
    pace.pause(20.0)
    pace.end(9_000.0)
    assert pace.elapsed(9_000.0) == 20.0
    pace.start(10_000.0)
    assert pace.elapsed(10_005.0) == 25.0 and pace.finish(100) is None


async def test_what_is_not_known_yet_is_said() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(1)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "left known after two steps")
            log.step(2, 200, 2.9)
            await until_text(pilot, "done at")


# The coach, the log's cost, and windows that change


async def test_the_coach_stands_below_the_figures_and_is_silent_where_the_run_ended() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(120)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "Falling well")
            log("stopped", stage="train", step=120, reason="as you asked", resumable=True)
    app = open_app(folder)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "■ Stopped")
        assert "Falling well" not in screen_text(app)


@pytest.mark.parametrize("sizes", [((120, 40), (60, 18)), ((60, 18), (200, 60)), ((80, 24), (40, 10))])
async def test_a_window_may_change_its_size_while_training_goes_on(
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    folder = make_run()
    log = Log(folder)
    log.training(120).samples(step=100)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=sizes[0]) as pilot:
            await until_text(pilot, "step 120 of 200")
            await pilot.resize_terminal(*sizes[1])
            log.step(121, 200, 0.5)
            if sizes[1] == (40, 10):
                await until_text(pilot, "This window is too small")
                return
            await until_text(pilot, "step 121 of 200", "held-out loss", "peak")
            shown = [widget for widget in app.screen.query("#body *") if widget.display]
            assert all(widget.region.right <= sizes[1][0] for widget in shown)
            assert all(widget.region.bottom <= sizes[1][1] for widget in shown)


def test_many_lines_of_a_log_are_read_together_and_what_is_no_event_is_left_out() -> None:
    lines = [b'{"n":%d,"t":1.5,"kind":"step","step":%d}' % (n, n) for n in range(500)]
    torn = [*lines[:100], b'{"n":7,"t":1', b"", b"[1,2]", b'x"}', *lines[100:]]
    alone = [event for line in torn if (event := parse_line(line)) is not None]
    assert parse_lines(torn) == alone and len(alone) == 500
    assert parse_lines([]) == []


def test_a_view_of_a_log_read_in_one_go_or_line_by_line_is_the_same() -> None:
    folder = make_run()
    Log(folder).training(120)
    events: list[Event] = folder.events()
    whole, single = RunView(), RunView()
    whole.fold(events)
    for event in events:
        single.fold([event])
        assert single.losses.buckets is not None
    assert whole.losses.buckets == single.losses.buckets
    assert whole.version == single.version == len(events)


def test_a_long_log_is_taken_in_by_pieces() -> None:
    folder = make_run()
    Log(folder).training(120)
    whole, pieces = RunFollower(folder), RunFollower(folder)
    whole.poll()
    calls = 0
    while pieces.poll(4096) and pieces.behind:
        calls += 1
        assert pieces.view.step < whole.view.step
    assert calls > 3 and not pieces.behind
    assert (pieces.view.version, pieces.state) == (whole.view.version, whole.state)


def test_every_part_of_a_runs_memory_has_a_plain_word() -> None:
    """The names that plans and workers give, from their sources; the words are the same on every screen."""
    plan = memory_formula._PARTS + memory_formula._UNSURE
    worker = ("weights", "adapter", "gradients", "optimizer", "libraries", "activations", "cache")
    events = Path(events_source.__file__).read_text(encoding="utf-8")
    assert "adapter, gradients, optimizer, libraries, activations, cache" in events
    assert {word_of(name) for name in (*plan, *worker)} == set(PARTS) == set(LOOKS)
    assert grouped({"weights": 5, "adapter": 1, "optimizer": 2, "loss": 0}) == {"model": 5, "training": 3}


def test_a_narrow_memory_panel_keeps_the_peak_and_its_parts() -> None:
    mib = 1 << 20
    panel, parts = MemoryPanel(), {"weights": 420 * mib, "activations": 370 * mib}
    panel.show(Memory("cpu", 612 * mib, 790 * mib, 3000 * mib, 4096 * mib, parts), {"all": 800 * mib})
    lines = [str(line) for line in panel.lines(100)]
    assert [line.split()[0] for line in lines] == ["predicted", "now", "peak", "█"]
    assert lines[1].endswith("612.0 MiB  2.9 GiB of 4.0 GiB free, others 484.0 MiB")
    kept = [str(line) for rank, line in panel._ranked(100) if rank < 2]
    assert [line.split()[0] for line in kept] == ["peak", "█"]
    bar = kept[0].split()[1]
    assert bar.count("█") / bar.count("▒") == pytest.approx(420 / 370, rel=0.1)


@pytest.mark.parametrize(("width", "names"), [(78, 4), (58, 3)])
def test_long_figures_of_the_parts_stay_whole_where_there_is_one_line_for_them(
    width: int, names: int
) -> None:
    mib, most = 1 << 20, 1023.9
    parts = dict.fromkeys(("weights", "optimizer", "activations", "context"), round(most * mib))
    panel = MemoryPanel()
    panel.show(Memory("cuda", 4 << 30, 4 << 30, 19 << 30, 24 << 30, parts))
    legends = [line for rank, line in panel._ranked(width, 2) if rank == 1]
    (line,) = legends
    assert line.cell_length <= width and line.plain.startswith("MiB █ model 1023.9 ▓ training 1023.9")
    assert len([sign for sign in "█▓▒░▤" if sign in line.plain]) == names
    assert len([line for rank, line in panel._ranked(width, 4) if rank in (1, 2)]) == 2
    panel.show(Memory("cuda", 4 << 30, 4 << 30, 19 << 30, 24 << 30), parts)
    (foreseen,) = [line for rank, line in panel._ranked(width, 2) if rank == 1]
    assert foreseen.cell_length <= width and foreseen.plain.startswith("predicted MiB █ model 1023.9")
