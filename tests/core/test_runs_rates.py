"""Three learning rates on short runs: what is tried, what is best, and a real search that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.plan.settings import Settings, load
from ollama_tune.core.runs.folder import RunFolder, RunLock, list_runs
from ollama_tune.core.runs.rates import (
    RATE,
    RateSearch,
    Tried,
    begin,
    carry_out,
    end,
    look,
    make_search,
    outcome,
)
from ollama_tune.core.runs.sweep import held
from tests.core.train_parts import make_run, wait_for, write_rows

WHOLE = Settings().with_value(RATE, 2e-4)


def search(steps: int = 171, **values: object) -> RateSearch:
    return make_search(WHOLE.with_values({f"training.{n}": v for n, v in values.items()}), steps)


def tried(*losses: float | None) -> list[Tried]:
    return [
        Tried(rate, 24, "failed" if loss is None else "done", 24, loss)
        for rate, loss in zip(search().rates, losses, strict=True)
    ]


def test_a_third_the_rate_itself_and_three_times_it() -> None:
    assert search().rates == (6.67e-5, 2e-4, 6e-4)
    assert make_search(WHOLE, 100, points=5).rates == (2.22e-5, 6.67e-5, 2e-4, 6e-4, 1.8e-3)
    assert search(learning_rate=0.5).rates == (0.167, 0.5, 1.0)
    assert make_search(WHOLE, 100, middle=1e-3).rates[1] == 1e-3


@pytest.mark.parametrize(
    ("steps", "planned", "short"), [(10, 10, 12), (100, 100, 24), (320, 320, 40), (9000, 480, 60)]
)
def test_a_short_run_is_the_first_eighth_of_the_whole_one(steps: int, planned: int, short: int) -> None:
    """Of one that is over before, all of it is measured; of a very long one the whole is shortened."""
    found = search(steps)
    assert (found.planned, found.short, found.interval * 4) == (planned, short, short)
    training = found.settings.training
    assert training.epochs == pytest.approx(WHOLE.training.epochs * planned / steps)
    assert training.evaluation_interval == found.interval and training.early_stopping == 0
    assert found.settings.export.name is None and found.settings.evaluation.rows == 0
    assert found.counted.training.epochs <= training.epochs


def test_the_same_search_has_the_same_folder_whatever_rate_is_set_now() -> None:
    taken = make_search(WHOLE.with_value(RATE, 6e-4), 171, middle=2e-4)
    assert taken.folder == search().folder
    named = make_search(WHOLE.with_value("export.name", "other"), 171)
    assert named.folder == search().folder
    assert search(rank=32).folder != search().folder != make_search(WHOLE, 171, points=5).folder
    search().save()
    assert RateSearch.load(search().folder) == search()
    (search().folder / "search.json").write_text("{}")
    with pytest.raises(TuneError, match="is not a search"):
        RateSearch.load(search().folder)


@pytest.mark.parametrize(
    ("losses", "rate", "words"),
    [
        ((2.0, 1.0, 1.5), 2e-4, "its held-out loss, 1.0000, is the lowest of the 3."),
        ((2.0, 1.0, 0.995), 2e-4, "lower by 0.5% only, which may be chance"),
        ((2.0, 1.0, 0.9), 6e-4, "10.0% below the 1.0000 of 0.0002; one still further"),
        ((0.5, 1.0, None), 6.67e-5, "50.0% below the 1.0000"),
        ((2.0, None, 3.0), 6.67e-5, "0.0002 failed; of the others"),
    ],
)
def test_another_rate_is_best_only_where_its_loss_is_clearly_lower(
    losses: tuple[float | None, ...], rate: float, words: str
) -> None:
    found = outcome(search(), tried(*losses))
    assert found is not None and found.rate == rate and words in found.reason


def test_before_the_end_and_after_failures_alone_nothing_is_best() -> None:
    assert outcome(search(), [*tried(1.0, 2.0, 3.0)[:2], Tried(6e-4, 24, "going")]) is None
    assert outcome(search(), tried(None, None, None)) is None
    assert [point.state for point in look(search())] == ["waiting"] * 3


def test_without_held_out_rows_there_is_no_search() -> None:
    with pytest.raises(UsageError, match="held-out rows"):
        make_search(WHOLE.with_value("data.validation_split", 0.0), 100)


def test_a_search_in_the_background_is_killed_stopped_and_goes_on_to_the_same_table(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that tries them, then their worker, then on request; losses are those of another home."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = make_run(model_folder, write_rows(tmp_path / "rows.jsonl", 24)).settings_path
    tuned = load(file).with_value("training.batch_size", 1)
    wanted = make_search(tuned, 10, points=1)
    begin(wanted)
    with pytest.raises(BusyError), held(wanted):
        pass
    begin(wanted)  # one that goes on is left alone
    wait_for(lambda: look(wanted)[0].state == "going")
    named = str(wanted.folder)
    (searcher,) = [p for p in psutil.process_iter(["cmdline"]) if named in (p.info["cmdline"] or [])]
    searcher.kill()
    wait_for(lambda: not wanted.going)
    first = RunFolder(next(wanted.folder.glob("*-trial-1")))
    if process := first.process():
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not first.alive())
    begin(wanted)
    wait_for(lambda: first.alive() and first.process())
    worker = first.process()
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)  # so that it is not at its end before it is asked to rest
    mine = RunLock(RunFolder(file.parent), sign=False)
    wait_for(first.stop_path.exists)
    os.kill(worker.pid, signal.SIGCONT)
    wait_for(lambda: wanted.waits_for == file.parent.name and not first.alive())
    assert wanted.going  # a run of the person's goes first
    assert look(wanted)[0].state == "waiting"
    mine.release()
    wait_for(first.alive)
    end(wanted)
    wait_for(lambda: not wanted.going)
    assert not first.alive()  # it may have been quicker than the request
    table = carry_out(wanted)
    assert [point.state for point in table] == ["done"]
    assert not list_runs()[1:] and not list(wanted.folder.glob("*/checkpoints"))
    found = outcome(wanted, table)
    assert found is not None and found.rate == wanted.middle
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "other"))
    assert carry_out(make_search(tuned, 10, points=1))[0].train == table[0].train
