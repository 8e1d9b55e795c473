from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.content import Content

from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import visible
from ollama_tune.tui.run_values import Memory
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.screens.training_lines import finished
from ollama_tune.tui.widgets.chart import LossChart
from ollama_tune.tui.widgets.confirm import ConfirmScreen
from ollama_tune.tui.widgets.log import LogTail
from ollama_tune.tui.widgets.memory import MemoryPanel

from .run_logs import NASTY, Clock, Log, alive, make_run, open_app, screen_text, until, until_text


def shown(app: object, selector: str) -> str:
    return str(app.screen.query_one(selector).content)  # type: ignore[attr-defined]


async def test_a_run_that_goes_shows_its_figures_and_follows_the_log() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(120, 40)) as pilot:
            await until_text(
                pilot, "step 60 of 200", "30%", "tokens/s 820", "held-out 1.4734", "Memory", "Log"
            )
            assert "612.0 MiB" in screen_text(app) and "790.0 MiB" in screen_text(app)
            log.step(61, 200, 0.5)
            await until_text(pilot, "step 61 of 200", "loss 0.5000")
            assert "▶ Training" in screen_text(app), "the step list is there"


async def test_before_the_first_step_the_phase_and_its_progress_are_shown() -> None:
    folder = make_run()
    log = Log(folder)
    log.start().phase("Loading the model.")
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "Loading the model … ", "432 rows to learn from, 48 held out")
            log("progress", name="loading", done=300 << 20, total=1200 << 20, unit="B")
            await until_text(pilot, "300.0 MiB of 1.2 GiB")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 18)])
async def test_nothing_sticks_out_of_the_window(size: tuple[int, int]) -> None:
    folder = make_run()
    Log(folder).training(120)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=size) as pilot:
            await until_text(pilot, "step 120 of 200", "done at", "held-out loss", "peak", "s Stop")
            assert app.screen.query_one(LossChart).size.height >= 5
            widgets = app.screen.query("#body *")
            assert all(
                widget.region.right <= size[0] and widget.region.bottom <= size[1] for widget in widgets
            )


async def test_text_from_outside_is_shown_and_does_nothing() -> None:
    folder = make_run()
    log = Log(folder)
    log.start().phase(NASTY)
    log("warning", what=NASTY, fix=NASTY)
    folder.log_path.write_text(f"50%|##  |\r100%|####|\r\n{NASTY}\n")
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(120, 40)) as pilot:
            await until_text(pilot, "[/foo] [bold]x␛[2J", "<U+202E>abc", "· 100%|####|")
            assert not any(c in screen_text(app) for c in "\x1b\x07\u202e")
            assert "50%" not in screen_text(app), "of a line drawn over itself the last state counts"


async def test_detach_leaves_the_run_alone_and_says_how_to_return(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    Log(folder).training(5)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test() as pilot:
            await until_text(pilot, "d Detach")
            await pilot.press("d")
        assert app.return_code == 0
        assert f"`ollama-tune attach {folder.name}` shows it again" in " ".join(
            capsys.readouterr().err.split()
        )
        assert folder.alive() and not folder.stop_path.exists()


@pytest.mark.parametrize(
    ("keys", "stopped"), [(["enter"], False), (["escape"], False), (["n"], False), (["y"], True)]
)
async def test_stop_asks_once_and_only_y_says_yes(keys: list[str], stopped: bool) -> None:
    folder = make_run()
    Log(folder).training(30)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test() as pilot:
            await until_text(pilot, "s Stop")
            await pilot.press("s")
            await until_text(pilot, folder.name, "step 30 so far")
            assert isinstance(app.screen, ConfirmScreen)
            await pilot.press(*keys)
            await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
            assert folder.stop_path.exists() is stopped
            assert ("Stopping" in shown(app, "#state")) is stopped


async def test_next_is_refused_in_words_while_training_goes_on() -> None:
    folder = make_run()
    Log(folder).training(5)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test() as pilot:
            await until_text(pilot, "step 5 of 200")
            await pilot.press("enter")
            await until_text(pilot, "Training is still going")
            assert isinstance(app.screen, TrainingScreen)


@pytest.mark.parametrize(
    ("width", "words"), [(80, "✓ Finished early after 50 of 200 steps."), (50, "✓ Finished early.")]
)
def test_a_run_that_early_stopping_ended_says_so(width: int, words: str) -> None:
    view = RunView()
    view.step, view.total_steps, view.before, view.after = 50, 200, 0.02, 0.9
    assert finished(view, width).plain == f"{words} Exact answers: 2.0% before, 90.0% after."


async def test_a_finished_run_goes_on_with_enter() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(pilot, "✓ Finished after 200 steps", "2.0% before", "95.8% after")
        assert "Resume" not in screen_text(app) and "Stop" not in screen_text(app)
        await pilot.press("enter")
        await until_text(pilot, "Try it")


async def test_a_crash_is_told_with_the_last_lines_and_the_way_on() -> None:
    folder = make_run()
    Log(folder).training(60)
    folder.log_path.write_text("RuntimeError: \x1b[31m[/foo] went wrong\nKilled\n")
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(
            pilot, "✗ Crashed at step 60 of 200", "ended without a word", "go on from the checkpoint"
        )
        await until_text(pilot, "RuntimeError: ␛[31m[/foo] went wrong", "Killed", "r Resume", "stdout.log")
        assert "left" not in shown(app, "#figures")
        await pilot.press("e")
        await until_text(pilot, "Write details to a file")


async def test_a_stopped_run_says_who_stopped_it_and_how_to_go_on() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60)
    log("stopped", stage="train", step=60, reason="as you asked", resumable=True)
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(pilot, "■ Stopped at step 60 of 200", "Stopped: as you asked", "r Resume")


async def test_a_failed_run_says_what_and_what_to_do() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60)
    log("error", what="The disk is full [/foo].", fix="Free some space.", details="x")
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(
            pilot, "✗ Failed at step 60", "The disk is full [/foo].", "Free some space.", "Press r"
        )


async def test_silence_is_told_but_not_of_a_worker_that_has_just_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, folder = Clock(monkeypatch), make_run()
    Log(folder, clock).training(10)
    clock.pass_by(100)
    with alive(folder):
        os.utime(folder.worker_path, (clock.now - 5,) * 2)
        app = open_app(folder)
        async with app.run_test() as pilot:
            await until_text(pilot, "step 10 of 200")
            assert "No sign of life" not in screen_text(app)
            os.utime(folder.worker_path, (clock.now - 100,) * 2)
            await pilot.pause(0.6)
            await until_text(pilot, "! No sign of life for 1 min 40 s")


async def test_a_resume_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    log("stopped", stage="train", step=30, reason="as you asked", resumable=True)
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(pilot, "r Resume")
        with alive(folder):  # the key is gone as soon as the screen sees that
            app.screen.action_resume()  # type: ignore[attr-defined]
            await until_text(pilot, "is already going")


async def test_a_resumed_run_starts_a_real_worker_that_takes_the_run() -> None:
    """The worker finds no such model, so its end is quick: what counts is that it was started and seen."""
    folder = make_run()
    settings = folder.settings()
    settings.with_value("model.source", str(folder.path / "no-model")).save(folder.settings_path)
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(pilot, "Not started", "r Resume")
        await pilot.press("r")
        await until(pilot, lambda: app.screen.run.state is State.FAILED)  # type: ignore[attr-defined]
        await until_text(pilot, "✗ Failed before the first step", "no-model")


def test_the_plan_of_these_answers_is_held_against_what_was_measured() -> None:
    mib = 1 << 20
    memory, panel = (
        Memory("cpu", 612 * mib, 790 * mib, 3000 * mib, 4096 * mib, {"weights": 420 * mib}),
        MemoryPanel(),
    )
    panel.show(memory)
    assert "predicted" not in str(Content("\n").join(panel.lines(100)))
    assert "█ model 420.0 MiB" in str(Content("\n").join(panel.lines(100)))
    panel.show(memory, {"weights": 500 * mib, "rest": 500 * mib})
    assert "79% of predicted" in str(Content("\n").join(panel.lines(100)))
    panel.show(memory, {"weights": 395 * mib})
    assert "! 100% over predicted" in str(Content("\n").join(panel.lines(100)))
    panel.show(memory, {"weights": 789 * mib})
    assert "100% of predicted" in str(Content("\n").join(panel.lines(100))), "no warning of 0% over"


def test_what_the_probe_measured_stands_beside_what_was_predicted_and_the_limit() -> None:
    folder = make_run()
    mib = 1 << 20
    gauge = {"device": "cuda", "used": 612 * mib, "peak": 790 * mib, "free": 3000 * mib, "total": 4096 * mib}
    view, log = RunView(), Log(folder)
    probe = {"predicted": 1000 * mib, "measured": 980 * mib, "limit": 2048 * mib}
    log("memory", **gauge, probe=probe)
    view.fold(folder.events())
    panel = MemoryPanel()
    panel.show(view.memory, {"weights": 1000 * mib}, view.probe)
    lines = [str(line) for line in panel.lines(100)]
    (probed,) = [line for line in lines if line.startswith("probe")]
    assert probed.split(maxsplit=1)[1] == "980.0 MiB measured, 1000.0 MiB predicted (-2 %), limit 2.0 GiB"
    assert lines.index(probed) == 3
    panel.show(view.memory, {"weights": 1000 * mib})
    assert not any(str(line).startswith("probe") for line in panel.lines(100))


def test_the_tail_of_the_output_starts_near_the_end_and_takes_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    tail = LogTail(path, lines=3)
    assert tail.poll() == []
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(10_000)) + b"half")
    assert tail.poll() == ["line 9997", "line 9998", "line 9999"]
    with path.open("ab") as file:
        file.write(b" done\n\xff\n")
    assert tail.poll() == ["half done", "�"]
    assert tail.poll() == []


def test_reading_states_never_changes_the_folder() -> None:
    folder = make_run()
    Log(folder).training(3)
    before = sorted(path.name for path in folder.path.iterdir())
    assert RunFolder(folder.path).status().state is State.CRASHED
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert visible(folder.name) == folder.name


async def test_everything_that_judges_a_run_is_on_the_screen_in_words() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(60)
    log.evaluation(60, 1.5, waited=2).samples(step=60)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(
                pilot,
                "gradient norm 0.80",
                "learning rate 2.0e-04",
                "checkpoint step 50",
                "a crash now costs 10 steps",
                "best 1.4734 at step 50",
                "●●○ 2 of 3 evaluations no better",
                "Two teas and a bun.",
                "T2 B1 ✓",
                "model 420.0 MiB",
            )


async def test_p_asks_for_a_pause_and_takes_it_back() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "p Pause")
            await pilot.press("p")
            await until_text(pilot, "Pausing: the run finishes its step", "p Go on")
            assert folder.pause_path.exists()
            log("paused", step=30, reason="request", what="The run waits [/foo].", fix="It keeps its memory.")
            await until_text(
                pilot, "‖ Paused at step 30 of 200", "The run waits [/foo].", "p Go on", "s Stop"
            )
            await pilot.press("p")
            await until(pilot, lambda: not folder.pause_path.exists())
            log("continued", step=30, seconds=1.0)
            await until_text(pilot, "Training  ", "p Pause", "Going on at step 30")


async def test_a_full_disk_is_told_as_a_pause_with_what_to_do() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    log("paused", step=30, reason="disk", what="The disk is full.", fix="Free some space.")
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "‖ Paused at step 30", "‖ The disk is full. Free some space.")


async def test_y_changes_the_scale_of_the_losses() -> None:
    folder = make_run()
    Log(folder).training(30)
    with alive(folder):
        app = open_app(folder)
        async with app.run_test(size=(80, 24)) as pilot:
            await until_text(pilot, "step 30 of 200", "y scale")
            await pilot.press("y")
            await until_text(pilot, "log scale")
            await pilot.press("y")
            await until(pilot, lambda: "log scale" not in screen_text(app))


async def test_what_was_said_against_going_on_is_taken_back_when_it_holds_no_more() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    app = open_app(folder)
    async with app.run_test() as pilot:
        with alive(folder):
            await until_text(pilot, "step 30 of 200")
            await pilot.press("enter")
            await until_text(pilot, "Training is still going.")
        await until_text(pilot, "✗ Crashed at step 30")
        assert "Training is still going." not in screen_text(app)


async def test_after_training_the_whole_answer_stands_where_a_short_one_stood() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(30)
    asked = {"prompt": "Two teas.", "reference": "2 TEA | T3", "base": "Sure!"}
    log("sample", step=30, tuned="2 TEA", cut=True, **asked)
    app = open_app(folder)
    async with app.run_test() as pilot:
        with alive(folder):
            await until_text(pilot, "step 30    2 TEA …")
            log("sample", tuned="2 TEA | T3", **asked)
            await until_text(pilot, "at the end 2 TEA | T3 ✓")
            await pilot.press("comma")
            await until_text(pilot, "step 30    2 TEA …")
