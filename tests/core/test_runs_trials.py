"""Which runs are trials of a sweep, and the end of those that are not needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.files import read_table
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock
from ollama_tune.core.runs.sweep import Runs, Sweep, held, make_sweep
from ollama_tune.core.runs.trials import delete_needless, needless, runs_of, trial_runs, words

RANK = "training.rank"


@pytest.fixture
def wanted() -> Sweep:
    """A sweep of three runs, of which the second came to its end."""
    sweep = make_sweep(Settings(), [f"{RANK}=8,16,32"], None)
    sweep.folder.mkdir(parents=True)
    runs = Runs(sweep, "sweep")
    for number, rank in enumerate((8, 16, 32)):
        log = EventWriter(runs.folder(number, {RANK: rank}).events_path)
        if number == 1:
            log.write("done", stage="train", steps=8, best_step=8, best_loss=1.0)
        else:
            log.write("stopped", stage="train", step=1, reason="as you asked", resumable=True)
        log.close()
    return sweep


def test_a_run_is_told_as_a_trial_with_what_it_tries(wanted: Sweep) -> None:
    found = trial_runs()
    assert [found[run.name].values for run in runs_of(wanted.folder.name)] == [
        {RANK: 8},
        {RANK: 16},
        {RANK: 32},
    ]
    assert {(trial.sweep, trial.number) for trial in found.values()} == {
        (wanted.folder.name, number) for number in (1, 2, 3)
    }


def test_values_are_told_by_the_last_part_of_their_names() -> None:
    values = {"training.learning_rate": 2e-4, RANK: 16, "training.dora": True}
    assert words(values) == "learning_rate 0.0002, rank 16, dora True"
    assert words(values, "_") == "rate 0.0002, rank 16, dora True"


@pytest.mark.parametrize("damage", ["", "[]", '{"0": 3, "1": {"values": 2}, "x": {}}'])
def test_damaged_notes_are_no_obstacle(wanted: Sweep, damage: str) -> None:
    (wanted.folder / "trials.json").write_text(damage)
    assert trial_runs() == {} and runs_of(wanted.folder.name) == []


def test_a_name_that_leads_elsewhere_is_no_sweep(wanted: Sweep) -> None:
    assert runs_of(f"../sweeps/{wanted.folder.name}") == runs_of("") == runs_of("..") == []


def test_what_ended_on_the_way_is_deleted_and_the_best_stays_with_its_mark(wanted: Sweep) -> None:
    gone, kept = needless(wanted.folder.name)
    assert (len(gone), len(kept)) == (2, 1)
    delete_needless(wanted.folder.name)
    assert runs_of(wanted.folder.name) == kept and not any(run.path.exists() for run in gone)
    assert list(read_table(wanted.folder / "trials.json")) == ["1"]
    assert Runs(wanted, "sweep").folder(1, {RANK: 16}) == kept[0]


def test_a_sweep_of_which_nothing_is_left_is_forgotten(wanted: Sweep) -> None:
    (kept,) = needless(wanted.folder.name)[1]
    kept.events_path.unlink()
    delete_needless(wanted.folder.name)
    assert not wanted.folder.exists() and trial_runs() == {}


def test_nothing_is_deleted_while_the_sweep_or_one_of_its_runs_goes(wanted: Sweep) -> None:
    before = runs_of(wanted.folder.name)
    with held(wanted), pytest.raises(BusyError, match="sweep"):
        delete_needless(wanted.folder.name)
    lock = RunLock(before[2], sign=False)
    with pytest.raises(BusyError, match=before[2].name):
        delete_needless(wanted.folder.name)
    lock.release()
    assert runs_of(wanted.folder.name) == before


def _failing(folder: RunFolder, stage: str) -> None:
    log = EventWriter(folder.events_path)
    log.write("error", what=f"No {stage}.", fix="Mend it.", details="")
    log.close()


def test_what_failed_is_tried_again_by_the_next_command_only(
    wanted: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []

    def start(folder: RunFolder, stage: str) -> None:
        starts.append(folder.name)
        _failing(folder, stage)

    monkeypatch.setattr("ollama_tune.core.runs.sweep.start", start)
    runs = Runs(wanted, "sweep", again=True)
    assert runs.loss(0, {RANK: 8}, 1) is None and runs.loss(0, {RANK: 8}, 1) is None
    assert runs.reason(0) == "No all. Mend it."
    assert Runs(wanted, "sweep", again=True).loss(0, {RANK: 8}, 1) is None
    assert len(starts) == 2
    assert Runs(wanted, "sweep").loss(0, {RANK: 8}, 1) is None
    assert len(starts) == 2


def test_rows_that_are_gone_end_the_sweep_and_are_no_fault_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a"}))
    settings = Settings().with_value("data.path", str(rows))
    sweep = make_sweep(settings, [f"{RANK}=8,16"], None)
    sweep.folder.mkdir(parents=True)
    monkeypatch.setattr("ollama_tune.core.runs.sweep.start", _failing)
    runs = Runs(sweep, "sweep", again=True)
    assert runs.loss(0, {RANK: 8}, 1) is None
    rows.unlink()
    with pytest.raises(TuneError, match="is gone"):
        runs.loss(1, {RANK: 16}, 1)
