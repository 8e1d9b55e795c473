"""Runs of a sweep in the list, in the window and on the command line; deleting what it left behind."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from textual.widgets import OptionList

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, list_runs
from ollama_tune.core.runs.sweep import Runs, make_sweep
from ollama_tune.core.runs.trials import TrialRun
from ollama_tune.tui.cli import cli
from ollama_tune.tui.run_summary import ListedRun, Summaries
from ollama_tune.tui.screens.runs import RunsScreen, _searched
from ollama_tune.tui.screens.runs_lines import Table, together
from tests import told as outputs

from .run_logs import make_run, open_app, screen_text, until_text

OVER = ["training.learning_rate=1e-3,1e-2", "training.rank=8,16"]


def trial(runs: Runs, number: int, rate: float, rank: int, loss: float, *, ends: bool) -> RunFolder:
    folder = runs.folder(number, {"training.learning_rate": rate, "training.rank": rank})
    log = EventWriter(folder.events_path)
    log.write("step", step=8, total_steps=57, loss=loss, useful_tokens=1, seconds=1.0)
    log.write("evaluation", step=8, loss=loss, exact_match=None, rows=4, model="tuned")
    if ends:
        log.write("done", stage="train", steps=57, best_step=8, best_loss=loss)
    else:
        log.write("stopped", stage="train", step=8, reason="as you asked", resumable=True)
    log.close()
    return folder


@pytest.fixture
def swept() -> tuple[str, list[RunFolder]]:
    """A sweep's name and its two runs, the second of which is the best; an ordinary run is between them."""
    sweep = make_sweep(Settings(), OVER, 2)
    sweep.folder.mkdir(parents=True)
    runs = Runs(sweep, "sweep")
    first = trial(runs, 0, 1e-3, 16, 5.27, ends=False)
    make_run("mine")
    return sweep.folder.name, [first, trial(runs, 1, 1e-2, 8, 0.23, ends=True)]


def test_the_list_has_the_runs_of_a_sweep_together_with_what_they_try(
    swept: tuple[str, list[RunFolder]],
) -> None:
    name, (worse, best) = swept
    lines = CliRunner().invoke(cli, ["runs"]).output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"Sweep {name}, 2 runs, "))
    group = lines[at + 1 : at + 6]
    assert group[0].startswith(f"  {best.name}") and group[2].startswith(f"  {worse.name}")
    assert group[1].endswith("step 8 of 57, learning_rate 0.01, rank 8")
    assert group[3].endswith("step 8 of 57, learning_rate 0.001, rank 16")
    assert f"`ollama-tune delete {name}`" in group[4]
    assert all(len(line) <= 80 for line in lines)
    rows = outputs.told("runs", CliRunner().invoke(cli, ["runs", "--json"]).output)
    trials = {row["name"]: row["trial"] for row in rows}
    values = {"training.learning_rate": 0.01, "training.rank": 8}
    assert trials.pop(best.name) == {"sweep": name, "number": 2, "values": values}
    assert trials.pop(worse.name)["number"] == 1 and set(trials.values()) == {None}


def test_what_a_sweep_left_is_deleted_by_its_name_and_the_best_run_stays(
    swept: tuple[str, list[RunFolder]],
) -> None:
    name, (worse, best) = swept
    refused = CliRunner().invoke(cli, ["delete", name])
    assert isinstance(refused.exception, UsageError) and "--yes" in str(refused.exception)
    assert f"  {worse.name} " in refused.output and "learning_rate 0.001, rank 16" in refused.output
    assert "KiB" in refused.output and worse.path.exists()
    done = CliRunner().invoke(cli, ["delete", name, "--yes", "--json"])
    told = outputs.told("delete", done.output)
    assert (told["sweep"], told["runs"], told["kept"]) == (name, [worse.name], [best.name])
    assert told["freed_bytes"] > 0
    assert not worse.path.exists() and best in list_runs() and len(list_runs()) == 2
    again = json.loads(CliRunner().invoke(cli, ["delete", name, "--yes", "--json"]).output)
    assert (again["runs"], again["kept"]) == ([], [best.name])


async def test_the_window_names_a_trial_by_what_it_tries(swept: tuple[str, list[RunFolder]]) -> None:
    name, (worse, _) = swept
    app = open_app(worse)
    async with app.run_test(size=(60, 18)) as pilot:
        await app.push_screen(app.runs_screen())
        await until_text(pilot, "└ rate 0.01, rank 8", "└ rate 0.001, rank 16")
        lines = screen_text(app).splitlines()
        first, second = (
            next(n for n, line in enumerate(lines) if f"└ rate {r}," in line) for r in ("0.01", "0.001")
        )
        assert abs(first - second) == 1, "the run that was made between them does not stand there"
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        screen.query_one(OptionList).highlighted = [path.name for path in screen._shown].index(worse.name)
        await until_text(pilot, f"{name}, trial 1: learning_rate 0.001")
        await pilot.resize_terminal(120, 24)
        await until_text(pilot, "└ learning_rate 0.01, rank 8")
        await pilot.press("x")
        await until_text(pilot, f"Delete run {worse.name}", f"ollama-tune delete {name}")


def listed(folder: RunFolder, trial: TrialRun | None) -> ListedRun:
    return ListedRun(folder, Summaries(), trial)


def test_trials_stand_where_the_newest_of_them_stands_and_show_all_values_where_there_is_room() -> None:
    tried = TrialRun("abc", 1, {"training.learning_rate": 2e-4, "training.rank": 16})
    runs = [listed(make_run(f"r{n}"), tried if n in (1, 3) else None) for n in range(5)]
    assert [runs.index(run) for run in together(runs)] == [0, 1, 3, 2, 4]
    assert "└ learning_rate 0.0002, rank 16" in Table(120).line(runs[1], False).plain
    assert "└ rate 0.0002, rank 16" in Table(60).line(runs[1], False).plain
    assert all(word in _searched(runs[1]) for word in ("abc", "rank 16", "r1"))
