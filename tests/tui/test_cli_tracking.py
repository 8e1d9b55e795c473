"""`ollama-tune tensorboard`, `track` and the options of `run` that send figures."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings, TrackerName, TrackingSettings
from ollama_tune.core.runs import trackers, tracking
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock, create_run
from ollama_tune.core.runs.launch import track
from ollama_tune.core.runs.trackers import TRACKERS
from ollama_tune.core.runs.tracking import Follower
from ollama_tune.tui.cli import cli
from ollama_tune.tui.tracking_cli import NAMES, tracking_lines, tracking_values
from tests import told as outputs


def run_with_steps(count: int) -> RunFolder:
    folder = create_run(Settings(), "kitchen")
    add_steps(folder, 1, count)
    return folder


def add_steps(folder: RunFolder, first: int, last: int) -> None:
    log = EventWriter(folder.events_path)
    for number in range(first, last + 1):
        log.write("step", step=number, loss=1 / number, useful_tokens=5, seconds=0.1)
    log.close()


def losses(place: Path) -> list[int]:
    found = EventAccumulator(str(place))
    found.Reload()
    return [scalar.step for scalar in found.Scalars("train/loss")]


def test_an_ended_run_is_written_for_tensorboard(tmp_path: Path) -> None:
    folder = run_with_steps(3)
    done = CliRunner().invoke(cli, ["tensorboard", folder.name, str(tmp_path / "charts"), "--json"])
    told = outputs.told("tensorboard", done.output)
    assert told["outcome"] == "ok" and told["steps"] == 3 and told["live"] is False
    program, *rest = shlex.split(told["place"])
    assert shutil.which(program) and rest == ["--logdir", str(tmp_path / "charts")]
    assert losses(tmp_path / "charts" / folder.name) == [1, 2, 3]
    assert tracking_lines(folder) == [f"Figures at tensorboard: {told['place']}"]


def test_a_run_that_is_going_is_followed_to_its_end_and_not_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_with_steps(2)
    processes = []

    def remembered(run: RunFolder, wanted: TrackingSettings) -> list[object]:
        processes.extend(track(run, wanted))
        return list(processes)

    monkeypatch.setattr(tracking, "track", remembered)
    lock = RunLock(folder)
    done = CliRunner().invoke(cli, ["tensorboard", folder.name, "--json"])
    assert json.loads(done.output)["live"] is True
    again = CliRunner().invoke(cli, ["tensorboard", folder.name])
    assert "is being sent to tensorboard already" in str(again.exception)
    add_steps(folder, 3, 5)
    lock.release()
    assert processes[0].wait(300) == 0
    assert losses(folder.path / "tensorboard") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ((None, ()), {}),
        (("", ()), {"tracking.to": ["tensorboard"]}),
        (("charts", ()), {"tracking.to": ["tensorboard"], "tracking.folder": "charts"}),
        (("", ("wandb", "wandb")), {"tracking.to": ["wandb", "tensorboard"]}),
    ],
)
def test_the_options_of_run_are_settings(
    options: tuple[str | None, tuple[str, ...]], values: dict[str, object]
) -> None:
    assert tracking_values(*options) == values


def test_the_folder_of_the_files_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings().with_values({"tracking.to": ["tensorboard"], "tracking.folder": "charts"})
    assert create_run(settings, "kitchen").settings().tracking.folder == str(tmp_path / "charts")


def test_the_trackers_have_one_list_of_names() -> None:
    assert set(NAMES) == set(TRACKERS) == set(get_args(TrackerName))


def test_a_run_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    folder = run_with_steps(2)
    shutil.move(folder.path, tmp_path / "gone")
    follower = Follower(folder, "tensorboard", TrackingSettings())
    assert follower.turn(last=True) and not folder.path.exists()


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_with_steps(2)
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    with pytest.raises(TuneError, match="figures are to go to mlflow") as caught:
        CliRunner().invoke(cli, ["track", folder.name, "--to", "mlflow"], catch_exceptions=False)
    assert "ollama-tune[mlflow]" in caught.value.fix


def test_help_has_examples() -> None:
    for command in ("tensorboard", "track", "run"):
        shown = CliRunner().invoke(cli, [command, "--help"]).output
        assert "Examples:" in shown and f"ollama-tune {command}" in shown
