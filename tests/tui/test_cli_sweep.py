"""`ollama-tune sweep`: what it says before, its table and chart, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import sweep as search_room
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.sweep import MEASUREMENTS, Trial
from ollama_tune.tui import sweep_cli
from ollama_tune.tui.cli import cli
from ollama_tune.tui.shell import Interrupted
from ollama_tune.tui.sweep_cli import chart_lines, table_lines
from tests import told as outputs

RANKS = "training.rank=8,16,32"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Settings().save(tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


def fake_worker(folder: RunFolder, stage: str) -> None:
    """A worker that is done at once: the loss is lower the higher the rank."""
    assert stage == "all"
    rank = folder.settings().training.rank
    log = EventWriter(folder.events_path)
    log.write("start", stage="train", stages=["train"], resumed_from=None, pid=1, device="cpu")
    for n in range(1, MEASUREMENTS + 1):
        log.write("step", step=n, total_steps=8, loss=1.0, useful_tokens=1, seconds=1.0)
        log.write("evaluation", step=n, loss=8 / rank / n, exact_match=None, rows=4, model="tuned")
    log.write("done", stage="train", steps=8, best_step=8, best_loss=1.0)
    log.close()


def test_a_dry_run_says_the_trials_and_the_time_and_starts_nothing(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", str(file), "--over", RANKS, "--dry-run", "--json"])
    told = outputs.told("sweep", done.output)
    assert sorted(point["training.rank"] for point in told["combinations"]) == [8, 16, 32]
    seconds = told["seconds"]
    assert told["full_run_seconds"] <= seconds["least"] <= seconds["usual"] <= seconds["most"]
    assert not list((tmp_path / "tune-home" / "data").glob("*/*"))


def test_the_best_run_is_named_and_the_same_command_gives_the_same_table(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_room, "start", fake_worker)
    command = ["sweep", str(file), "--over", RANKS, "--json"]
    first, second = (CliRunner().invoke(cli, command) for _ in range(2))
    told = outputs.told("sweep", first.stdout)
    assert told == json.loads(second.stdout)
    assert told["trials"][0]["values"] == {"training.rank": 32}
    assert told["best"] == told["trials"][0]["run"]
    assert "Trial 3 of 3: rank" in first.stderr and "# measured to the end" in first.stderr


def test_when_every_trial_fails_the_sweep_says_where_to_look(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: RunFolder, stage: str) -> None:
        log = EventWriter(folder.events_path)
        log.write("error", what=f"No {stage}.", fix="None.", details="")
        log.close()

    monkeypatch.setattr(search_room, "start", broken)
    done = CliRunner().invoke(cli, ["sweep", str(file), "--over", RANKS])
    assert isinstance(done.exception, TuneError) and "Every trial failed" in str(done.exception)


def test_a_wrong_field_is_refused_with_the_nearest(file: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", str(file), "--over", "training.rnk=8,16"])
    assert isinstance(done.exception, UsageError) and "training.rank" in str(done.exception)


def test_an_interrupted_sweep_lets_its_run_rest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_cli, "_carry_out", interrupted)
    done = CliRunner().invoke(cli, ["sweep", str(file), "--over", RANKS])
    assert isinstance(done.exception, Interrupted) and "goes on where it was" in str(done.exception)


def test_table_and_chart_are_plain_lines() -> None:
    trials = [
        Trial(1, {"training.rank": 32, "training.learning_rate": 1e-3}, "kept", 4, 0.5, "b"),
        Trial(0, {"training.rank": 8, "training.learning_rate": 1e-4}, "ended", 1, 1.0, "a"),
        Trial(2, {"training.rank": 512, "training.learning_rate": 1e-4}, "failed", run="c"),
    ]
    table = table_lines(trials)
    assert "rank 32, learning_rate 0.001" in table[1] and "4/8" in table[1] and "0.5000" in table[1]
    assert "failed" in table[3] and table[3].split()[0] == "3"
    bars = [line.count("#") + line.count("-") for line in chart_lines(trials)[1:3]]
    assert bars == [20, 40]
    assert all(line.isascii() for line in (*table, *chart_lines(trials)))
