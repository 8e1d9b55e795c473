from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from textual.widgets import OptionList

from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.cli import cli
from ollama_tune.tui.comparing import (
    METRICS,
    Row,
    best_of,
    comparison_json,
    differing,
    line_of,
    metric_rows,
    read_compared,
    remarks,
)
from ollama_tune.tui.screens.compare import CompareScreen
from ollama_tune.tui.screens.runs import RunsScreen
from ollama_tune.tui.widgets.overlay import Line, Overlay

from .run_logs import NASTY, Log, make_run, open_app, screen_text, until, until_text


def run_with(label: str, *, steps: int = 60, **values: Any) -> RunFolder:
    """A run that trained so many steps with these settings."""
    settings = Settings().with_values({name.replace("__", "."): value for name, value in values.items()})
    folder = create_run(settings, label)
    Log(folder).trained(steps)
    return folder


def metric(key: str) -> Any:
    return next(metric for metric in METRICS if metric.key == key)


def test_only_settings_that_differ_are_listed() -> None:
    runs = [
        read_compared(run_with(name, training__rank=rank)) for name, rank in (("a", 8), ("b", 16), ("c", 8))
    ]
    assert differing(runs) == {"training.rank": [8, 16, 8]}
    assert remarks(runs) == []


def test_the_curve_knows_steps_tokens_and_time() -> None:
    run = read_compared(run_with("a"))
    assert [point.step for point in run.held] == [25, 50, 60]
    assert (run.held[0].tokens, run.held[0].seconds) == (25 * 410, 12.5)
    assert (run.tokens, run.seconds, run.speed) == (60 * 410, 30.0, 820.0)
    assert run.train[0].step == 1 and run.train[-1].step == 60
    assert run.peak == 790 << 20


def test_a_long_run_has_few_points_and_steps_done_again_count_once() -> None:
    folder = make_run()
    log = Log(folder).start(1000)
    for step in range(1, 601):
        log.step(step, 1000, 2.0)
    log.start(1000, resumed_from=500)
    for step in range(501, 1001):
        log.step(step, 1000, 1.0)
    run = read_compared(folder)
    assert run.tokens == 1000 * 410
    assert len(run.train) <= 240
    assert [point.loss for point in run.train if point.step > 530] == pytest.approx(
        [1.0] * sum(point.step > 530 for point in run.train)
    )


def test_the_best_of_a_figure_is_the_lowest_or_highest_unless_two_are_alike() -> None:
    run = read_compared(run_with("a"))
    worse = replace(run, summary=replace(run.summary, best_loss=0.5, after=0.99))
    assert best_of(metric("best_loss"), [worse, run]) == 1
    assert best_of(metric("exact_match_after"), [worse, run]) == 0
    assert best_of(metric("best_loss"), [run, run]) is None
    assert best_of(metric("steps"), [worse, run]) is None
    unknown = replace(run, summary=replace(run.summary, best_loss=None))
    assert best_of(metric("best_loss"), [unknown, run]) is None


def test_runs_measured_on_other_rows_have_no_best_loss_and_say_why() -> None:
    run, other = (read_compared(run_with(name, data__seed=seed)) for name, seed in (("a", 1), ("b", 2)))
    worse = replace(other, summary=replace(other.summary, best_loss=9.0, after=0.1))
    assert best_of(metric("best_loss"), [run, worse]) is None
    assert best_of(metric("exact_match_after"), [run, worse]) is None
    assert "held-out rows are not the same" in remarks([run, worse])[0]


def test_other_models_are_told_to_compare_by_answers() -> None:
    runs = [
        read_compared(run_with(name, model__source=model)) for name, model in (("a", "bundled"), ("b", "x/y"))
    ]
    assert "compare exact answers rather than losses" in remarks(runs)[0]


@pytest.mark.parametrize(
    "others", [{"training__objective": "sft"}, {"training__objective": "dpo", "training__beta": 0.5}]
)
def test_losses_of_preferences_are_not_held_against_others_and_pairs_have_a_figure(others: Any) -> None:
    said = ({"training__objective": "dpo", "training__beta": 0.1}, others)
    run, other = (read_compared(run_with(name, **values)) for name, values in zip("ab", said, strict=True))
    better = replace(run, summary=replace(run.summary, best_loss=0.01, preferred=0.9))
    assert best_of(metric("best_loss"), [better, other]) is None
    assert "compare exact answers, not losses" in remarks([better, other])[0]
    assert best_of(metric("best_loss"), [better, replace(better, summary=run.summary)]) == 0
    assert {row.label: row.cells for row in metric_rows([better, other])}["Better answers preferred"] == (
        "90%",
        "–",
    )


def test_a_run_without_settings_or_steps_is_compared_as_far_as_it_goes() -> None:
    broken, empty = run_with("a"), make_run("b")
    broken.settings_path.write_text("training: [\n")
    runs = [read_compared(broken), read_compared(empty)]
    assert differing(runs) == {}
    assert "run.yaml of A cannot be read" in remarks(runs)[-1]
    assert {row.label: row.cells[1] for row in metric_rows(runs)}["Best held-out loss"] == "–"
    json.dumps(comparison_json(runs), allow_nan=False)


def test_a_row_names_its_best_by_a_sign_and_a_word() -> None:
    assert line_of(Row("Loss", ("0.5", "0.4"), 1), 6, 9) == "Loss   0.5      0.4 ★    best B"
    assert line_of(Row("Loss", ("x" * 20, "0.4"), 0), 6, 9) == "Loss   xxxxx… ★ 0.4      best A"


def test_the_command_prints_a_table_and_json() -> None:
    names = [run_with(name, training__rank=rank).name for name, rank in (("a", 8), ("b", 16))]
    result = CliRunner().invoke(cli, ["compare", *names])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"A  {names[0]}"
    assert [line.split() for line in lines if line.startswith("training.rank")] == [
        ["training.rank", "8", "16"]
    ]
    found = json.loads(CliRunner().invoke(cli, ["compare", "--json", *names]).output)
    assert found["settings_that_differ"] == {"training.rank": [8, 16]}
    assert [run["name"] for run in found["runs"]] == names
    assert found["runs"][0]["best_loss"] == pytest.approx(0.41)


def test_the_command_wants_two_to_four_runs() -> None:
    name = run_with("a").name
    for names in ([name], [name] * 5):
        found = CliRunner().invoke(cli, ["compare", "--json", *names])
        assert found.exit_code == 2
        assert json.loads(found.output)["outcome"] == "error"


async def opened(app: TuneApp, *folders: RunFolder) -> None:
    await app.push_screen(CompareScreen(folders))


async def test_runs_are_marked_and_compared_by_keys() -> None:
    folders = [run_with(name, training__rank=rank) for name, rank in (("a", 8), ("b", 16))]
    app = open_app(folders[0])
    async with app.run_test(size=(100, 30)) as pilot:
        await app.push_screen(app.runs_screen())
        await until_text(pilot, "✓ finished")
        await pilot.press("c")
        assert isinstance(app.screen, RunsScreen)
        assert app.screen.chosen is not None and app.screen.chosen.folder == folders[0]
        await pilot.press("home", "space")
        await until_text(pilot, "● ✓ finished", "Mark another one")
        await pilot.press("space")
        await until_text(pilot, "2 runs are marked", "c Compare")
        await pilot.press("c")
        await until_text(pilot, "Rank  ", "What came of it", "log scale", "step 60")
        for key, text in (("x", "24,600 tokens"), ("x", "30 s in steps"), ("x", "step 60")):
            await pilot.press(key)
            await until_text(pilot, text)
        await pilot.press("l")
        await until(pilot, lambda: "log scale" not in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: "step 60" not in screen_text(app))
        await pilot.press("escape")
        await until_text(pilot, "● ✓ finished")
        await pilot.press("up", "space")
        await until(pilot, lambda: screen_text(app).count("●") == 1)


async def test_at_most_four_runs_are_marked() -> None:
    for name in "abcde":
        run_with(name, steps=10)
    app = open_app(make_run("f"))
    async with app.run_test(size=(100, 30)) as pilot:
        await app.push_screen(app.runs_screen())
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 6)
        for _ in range(5):
            await pilot.press("space")
        await until_text(pilot, "At most 4 runs can be compared")
        assert screen_text(app).count("●") == 4


async def test_nothing_from_a_run_moves_the_cursor() -> None:
    first = run_with("a", data__path=f"/tmp/{NASTY}")
    second = run_with("b")
    odd = RunFolder(second.path.with_name(f"b {NASTY.replace('/', '')}"))
    second.path.rename(odd.path)
    app = open_app(first)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, first, odd)
        await until_text(pilot, "Data  ", "[bold]x␛[2J")
        assert "\x1b" not in screen_text(app)


async def test_the_worst_and_the_smallest_window_show_the_letters_and_the_figures() -> None:
    folders = [run_with(name, training__rank=rank) for name, rank in zip("abcd", (4, 8, 16, 32), strict=True)]
    app = open_app(folders[0])
    async with app.run_test(size=(60, 18)) as pilot:
        await opened(app, *folders)
        await until_text(pilot, "What differs", "Rank  ", "step 60")
        await pilot.press("t", "end")
        await until_text(pilot, "Size on disk")


def drawn(lines: list[Line], size: tuple[int, int] = (60, 12), *, log: bool = True) -> list[str]:
    chart = Overlay()
    chart.logarithmic = log
    chart._lines, chart._unit = lines, lambda value: f"step {value:.0f}"
    return [text for text, _ in chart._compose_rows(*size)]


def falling(letter: str, floor: float, steps: int = 100) -> Line:
    train = [(step, floor + 2.0 / (1 + step / 10)) for step in range(1, steps + 1)]
    return Line(letter, train, [(steps / 2, floor + 0.5), (steps, floor + 0.3)])


def test_lines_are_told_apart_without_colour() -> None:
    rows = drawn([falling("A", 2.0), falling("B", 0.1)])
    assert rows[-1].rstrip().endswith("step 100")
    ends = {letter: next(y for y, row in enumerate(rows[1:]) if letter in row) for letter in "ABab"}
    assert ends["A"] < ends["B"]
    solid = sum(row.count("⠒") + row.count("⠤") + row.count("⣀") + row.count("⠉") for row in rows)
    assert solid > 20
    assert "A ━━━" in rows[0] and "B ╺━" in rows[0]


def test_letters_of_lines_that_end_together_do_not_cover_each_other() -> None:
    rows = drawn([falling(letter, 1.0) for letter in "ABCD"])
    text = "".join(rows[1:])
    assert all(letter in text for letter in "ABCD")


@pytest.mark.parametrize("log", [True, False])
def test_every_row_has_the_width_of_the_window(log: bool) -> None:
    one_point = Line("A", [(1, 3.0)], [])
    nothing = Line("B", [], [])
    for lines in ([falling("A", 0.5), falling("B", 0.01, 37)], [one_point, nothing], [nothing]):
        for size in ((60, 7), (80, 12), (200, 30), (24, 5)):
            assert {len(row) for row in drawn(lines, size, log=log)} == {size[0]}
    assert drawn([one_point], (20, 4)) == []


def test_a_damaged_log_is_compared_as_far_as_it_can_be_read() -> None:
    folder = make_run()
    log = Log(folder)
    log.start(100)
    for step in range(1, 51):
        log.step(step, 100, 2.0)
    log("step", step="x", loss="high")
    log("step", loss=1.0)
    log("step", step=51, loss="?", useful_tokens=None, seconds=[])
    log("evaluation", step=50, loss="low", model="tuned", exact_match=None, rows=1)
    log("memory", device="cpu", peak="big")
    log("start", stage="train", resumed_from="soon")
    run = read_compared(folder)
    assert (run.train[-1].loss, run.tokens, run.held, run.peak) == (2.0, 50 * 410, (), 0)
    json.dumps(comparison_json([run, run]), allow_nan=False)
