"""A search on losses that are known beforehand, and one on real runs that is killed and goes on."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.files import read_table
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.dimensions import Options, Range, Value, read_dimension
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.sweep import (
    Runs,
    Sweep,
    Trial,
    held,
    held_out_losses,
    make_sweep,
    ranked,
    search,
    shares,
)
from tests.core.train_parts import make_run, quiet_environment, write_rows

RATE = "training.learning_rate"
RANK = "training.rank"


class Known:
    """Losses by a formula: best at a rate of 1e-3, falling with every measurement."""

    def __init__(self, fails: int = -1) -> None:
        self.asked: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self._fails = fails

    def loss(self, number: int, values: Mapping[str, Value], measurement: int) -> float | None:
        self.asked.append((number, measurement))
        if number == self._fails:
            return None
        return abs(math.log10(float(values[RATE])) + 3) + 1 / measurement

    def reason(self, number: int) -> str:
        return f"run-{number} broke"

    def end(self, number: int) -> str:
        self.ended.append(number)
        return f"run-{number}"


def sweep(*over: str, trials: int | None = None) -> Sweep:
    return make_sweep(Settings(), over, trials)


def silent(_: str) -> None:
    pass


# what may vary


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        (f"{RATE}=1e-5..1e-3:log", Range(RATE, 1e-5, 1e-3, log=True, whole=False)),
        (f"{RANK}=8..64", Range(RANK, 8, 64, log=False, whole=True)),
        (f"{RANK}=8, 16,8", Options(RANK, (8, 16))),
        (f"{RATE}=1e-4,2e-4", Options(RATE, (1e-4, 2e-4))),
        ("training.rslora=true,false", Options("training.rslora", (True, False))),
        ("data.path=../a,../b", Options("data.path", ("../a", "../b"))),
    ],
)
def test_a_dimension_is_read_in_the_type_of_its_setting(text: str, dimension: object) -> None:
    assert read_dimension(text, Settings()) == dimension


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (["training.rnak=8,16"], "training.rank"),
        ([f"{RANK}=8,1024"], "training.rank is wrong"),
        ([f"{RANK}=64..8"], "no range"),
        ([f"{RATE}=1e-5..1e-3:cubic"], "no scale"),
        ([RANK], "names no values"),
        (["training.targets=all-linear,q_proj"], "targets"),
        ([f"{RANK}=8", f"{RANK}=16"], "twice"),
        ([], "Nothing varies"),
        (["data.seed=1,2"], "measured on other rows"),
        (["training.beta=0.1,0.5"], "what the loss counts"),
        (["export.name=a,b"], "nothing in the held-out loss"),
        (["training.early_stopping=0,3"], "the same in every run"),
    ],
)
def test_what_cannot_vary_is_refused_before_anything_starts(over: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_sweep(Settings(), over, None)


def test_without_held_out_rows_there_is_no_sweep() -> None:
    with pytest.raises(UsageError, match="held-out"):
        make_sweep(Settings().with_value("data.validation_split", 0.0), [f"{RANK}=8,16"], None)


# the search


def test_every_combination_is_tried_once_and_the_best_is_found() -> None:
    runner = Known()
    wanted = sweep(f"{RATE}=1e-5,1e-4,1e-3,1e-2", f"{RANK}=8,16")
    found = ranked(search(wanted, runner, silent))
    tried = [(trial.values[RATE], trial.values[RANK]) for trial in found]
    assert sorted(tried) == sorted(itertools.product([1e-5, 1e-4, 1e-3, 1e-2], [8, 16]))
    assert found[0].values[RATE] == 1e-3 and found[0].measured == 4
    assert runner.ended == list(range(8))


def test_a_trial_goes_on_only_among_the_better_half_so_far() -> None:
    runner = Known()
    found = search(sweep(f"{RATE}=1e-6..1e-1:log", trials=16), runner, silent)
    assert all(1e-6 <= float(trial.values[RATE]) <= 1e-1 for trial in found)
    for rung in (1, 2):
        there: list[float] = []
        for trial in (trial for trial in found if trial.measured >= rung):
            loss = Known().loss(0, trial.values, rung)
            assert loss is not None
            there = sorted([*there, loss])
            better = loss <= there[max(len(there) // 2, 1) - 1]
            assert (trial.measured > rung) == better
    assert {1, 4} <= {trial.measured for trial in found} <= {1, 2, 4}
    best = min(found, key=lambda trial: abs(math.log10(float(trial.values[RATE])) + 3))
    assert ranked(found)[0] == best and best.outcome == "kept"


def test_the_same_search_asks_the_same_questions() -> None:
    first, second = Known(), Known()
    over = (f"{RATE}=1e-6..1e-1:log", f"{RANK}=8..64")
    assert search(sweep(*over, trials=14), first, silent) == search(sweep(*over, trials=14), second, silent)
    assert first.asked == second.asked


def test_a_trial_that_fails_is_last_and_the_others_go_on() -> None:
    found = ranked(search(sweep(f"{RATE}=1e-4,1e-3,1e-2"), Known(fails=1), silent))
    assert [trial.outcome for trial in found].count("failed") == 1
    assert found[-1] == Trial(1, found[-1].values, "failed", run="run-1")


def test_what_a_dry_run_says_lies_between_its_bounds() -> None:
    for trials in (1, 4, 12):
        least, usual, most = shares(trials)
        assert 1.0 <= least <= usual <= most == (4 * trials + 4) / 8


# the runs


def test_a_measurement_that_was_repeated_counts_as_it_was_first(tmp_path: Path) -> None:
    log = EventWriter(tmp_path / "events.jsonl")
    told = {"exact_match": None, "rows": 4}
    for step, loss, model in ((5, 3.0, "tuned"), (0, 9.0, "base"), (10, 2.0, "tuned"), (5, 3.5, "tuned")):
        log.write("evaluation", step=step, loss=loss, model=model, **told)
    log.close()
    assert held_out_losses(RunFolder(tmp_path).events()) == [3.0, 2.0]


def test_two_at_once_are_refused() -> None:
    wanted = sweep(f"{RANK}=8,16")
    with held(wanted), pytest.raises(BusyError, match="already going"), held(wanted):
        pass
    with held(wanted):
        pass


def test_other_values_for_a_trial_that_was_begun_are_refused() -> None:
    wanted = sweep(f"{RANK}=8,16")
    wanted.folder.mkdir(parents=True)
    name = Runs(wanted, "sweep").folder(0, {RANK: 8}).name
    assert Runs(wanted, "sweep").folder(0, {RANK: 8}).name == name
    with pytest.raises(TuneError, match="other values"):
        Runs(wanted, "sweep").folder(0, {RANK: 16})


SCRIPT = """
import sys
from pathlib import Path
from ollama_tune.core.plan.settings import load
from ollama_tune.core.runs.sweep import Runs, held, make_sweep, ranked, search

wanted = make_sweep(load(Path(sys.argv[1])), ["training.learning_rate=1e-5,2e-2"], None)
with held(wanted):
    for trial in ranked(search(wanted, Runs(wanted, "sweep"), lambda line: print(line, file=sys.stderr))):
        print(trial.number, trial.values, trial.outcome, trial.measured, trial.loss)
"""


def searched(file: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=quiet_environment() | {"OLLAMA_TUNE_HOME": str(home)},
    )


def test_a_sweep_of_real_runs_that_was_killed_ends_in_the_same_table(
    model_folder: Path, tmp_path: Path
) -> None:
    file = make_run(model_folder, write_rows(tmp_path / "rows.jsonl")).settings_path
    whole, _ = searched(file, tmp_path / "whole").communicate(timeout=300)
    home = tmp_path / "killed"
    killed = searched(file, home)
    assert killed.stderr is not None
    while "goes on" not in killed.stderr.readline():
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    (folder,) = (RunFolder(path.parent) for path in (home / "data" / "runs").glob("*/run.yaml"))
    if process := folder.process():  # the worker outlives the search; it is killed as well
        os.kill(process.pid, signal.SIGKILL)
        while folder.alive():
            time.sleep(0.01)
    again = searched(file, home)
    table, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert table == whole and len(table.splitlines()) == 2
    (kept,) = (home / "data" / "sweeps").glob("*/trials.json")
    assert len(read_table(kept)) == len(list((home / "data" / "runs").iterdir())) == 2
