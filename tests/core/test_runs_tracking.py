"""What other programs get of a run: every figure once, whatever the run went through, and no text."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import data_dir
from ollama_tune.core.plan.settings import Settings, TrackingSettings, parse
from ollama_tune.core.runs import launch, tracking
from ollama_tune.core.runs.events import EventWriter, effective
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.runs.trackers import TRACKERS, Point, TensorBoard, Tracker, require, viewer
from ollama_tune.core.runs.tracking import Feed, follow, hyper_parameters, sent, series
from tests.core.train_parts import wait_for

SECRET = "a sentence that nobody may see"
REAL = os.environ.get("OLLAMA_TUNE_REAL_TRACKERS")


def step(number: int, loss: float | None, **fields: Any) -> dict[str, Any]:
    return {"step": number, "loss": loss, "learning_rate": 1e-4, "gradient_norm": 1.0, "epoch": 0.1} | fields


def write(folder: RunFolder, steps: Sequence[tuple[int, float | None]], resumed: int | None = None) -> None:
    """A worker's part of a log: its steps, a measurement after the last, and texts that must stay here."""
    log = EventWriter(folder.events_path)
    log.write("start", stage="train", stages=["train"], resumed_from=resumed)
    for number, loss in steps:
        log.write("step", **step(number, loss, useful_tokens=50, seconds=0.5))
        log.write("memory", device="cpu", used=number, peak=number + 1)
    last = steps[-1][0]
    log.write("evaluation", model="base", step=0, loss=9.0, exact_match=0.0, rows=4)
    log.write("evaluation", model="tuned", step=last, loss=0.25, exact_match=None, rows=4)
    log.write("sample", prompt=SECRET, reference=SECRET, base=SECRET, tuned=SECRET)
    log.close()


def end(folder: RunFolder, kind: str, **fields: Any) -> None:
    log = EventWriter(folder.events_path)
    log.write(kind, **fields)
    log.close()


@pytest.fixture
def folder() -> RunFolder:
    """A run that went to step 4, was killed, and went on from step 2 to its end at step 5."""
    run = create_run(Settings(), "kitchen")
    write(run, [(1, 8.0), (2, 4.0), (3, 99.0), (4, None)])
    write(run, [(3, 2.0), (4, 1.0), (5, 0.5)], resumed=2)
    end(run, "done", stage="train", steps=5)
    return run


def read(place: Path) -> dict[str, list[tuple[int, float]]]:
    """A folder as TensorBoard itself reads it."""
    found = EventAccumulator(str(place), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


# TensorBoard, with its own reader


def test_tensorboard_reads_each_figure_of_a_resumed_run_once(folder: RunFolder, tmp_path: Path) -> None:
    wanted = TrackingSettings(folder=str(tmp_path / "charts"))
    for _ in range(2):  # the second time in the place of the first
        follow(folder, "tensorboard", wanted)
        found = read(tmp_path / "charts" / folder.name)
        assert found["train/loss"] == [(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0), (5, 0.5)]
        assert found["train/tokens_per_second"] == [(n, 100.0) for n in range(1, 6)]
        assert found["memory/peak_bytes"][-1] == (5, 6.0)
        assert found["evaluation/loss"] == [(5, 0.25)] and found["evaluation_base/loss"] == [(0, 9.0)]
        assert len(list((tmp_path / "charts" / folder.name).iterdir())) == 1
    assert shlex.split(sent(folder, "tensorboard").place) == [viewer(), "--logdir", str(tmp_path / "charts")]


def test_a_run_that_goes_back_while_it_is_watched_takes_its_points_back(folder: RunFolder) -> None:
    events = folder.events()
    at = next(n for n, event in enumerate(events) if event.get("resumed_from"))
    board = TensorBoard(series(folder, "tensorboard", TrackingSettings(), None))
    feed = Feed(board)
    for part in (events[:5], events[5:at], events[at:]):
        feed.add(part)
        feed.send()
    board.end("finished")
    steps = [(e["step"], e["loss"]) for e in effective(events) if e.kind == "step"]
    assert read(folder.path / "tensorboard")["train/loss"] == steps


def test_files_of_others_in_the_folder_are_left_alone(folder: RunFolder) -> None:
    other = folder.path / "tensorboard" / "events.out.tfevents.1.other"
    other.parent.mkdir()
    other.write_bytes(b"")
    follow(folder, "tensorboard", TrackingSettings())
    follow(folder, "tensorboard", TrackingSettings())
    assert other.exists() and len(list(other.parent.iterdir())) == 2


def test_a_run_is_tracked_from_its_start_and_a_broken_tracker_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "charts").write_text("a file where TensorBoard's folder should be")
    values = {"tracking.to": ["tensorboard"], "tracking.folder": str(tmp_path / "charts")}
    run = create_run(Settings().with_values(values | {"model.source": str(tmp_path / "model")}), "empty")
    launch.start(run)
    wait_for(lambda: sent(run, "tensorboard").problem)
    wait_for(lambda: not run.alive())
    assert "Error" in sent(run, "tensorboard").problem
    assert "model" in run.status().message  # what ended it is its own mistake, an empty model folder


# what is sent


def test_no_text_of_a_person_or_of_the_data_is_sent(folder: RunFolder, tmp_path: Path) -> None:
    tree = Settings().model_dump()
    tree["model"]["source"] = tree["data"]["path"] = str(tmp_path / SECRET / "name")
    tree["data"] |= {"labels": {"0": SECRET}, "columns": {"question": SECRET}}
    tree["export"]["system"] = SECRET
    values = hyper_parameters(parse(tree))
    assert values["model.source"] == "name" and values["training.rank"] == 16
    assert SECRET not in str(values)
    follow(folder, "tensorboard", TrackingSettings())
    (file,) = (folder.path / "tensorboard").iterdir()
    assert SECRET.encode() not in file.read_bytes()


def test_a_missing_package_is_named_before_a_run_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    settings = Settings().with_value("tracking.to", ["mlflow"])
    with pytest.raises(TuneError, match=r"pip install 'ollama-tune\[mlflow\]'"):
        create_run(settings, "kitchen")
    require(["tensorboard"])


# clients that only append


class Appending:
    """Takes points and gives none back; fails so many times first."""

    rewritten: ClassVar[bool] = False
    id, place = "one", "there"

    def __init__(self, failures: int = 0) -> None:
        self.points: list[Point] = []
        self.ended: list[str] = []
        self.failures = failures

    def log(self, points: Sequence[Point]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to http://me:secret@host")
        self.points += points

    def back_to(self, step: int) -> None:
        raise AssertionError("it cannot")

    def end(self, outcome: str) -> None:
        self.ended.append(outcome)

    def steps(self, name: str = "train/loss") -> list[int]:
        return [point.step for point in self.points if name in point.values]


def opened(monkeypatch: pytest.MonkeyPatch, *trackers: Tracker) -> list[str | None]:
    """Trackers handed out one after the other; the ids that they were opened with."""
    ids: list[str | None] = []
    waiting = iter(trackers)

    def open_next(found: Any) -> Tracker:
        ids.append(found.id)
        return next(waiting)

    monkeypatch.setitem(TRACKERS, "wandb", open_next)
    monkeypatch.setattr(tracking, "AGAIN", 0.0)
    return ids


def test_what_was_sent_before_a_resume_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(Settings(), "kitchen")
    first, second = Appending(), Appending()
    ids = opened(monkeypatch, first, second)
    write(run, [(1, 8.0), (2, 4.0), (3, 3.0)])
    end(run, "stopped", stage="train", step=3, reason="asked", resumable=True)
    follow(run, "wandb", TrackingSettings())
    write(run, [(3, 3.0), (4, 1.0)], resumed=2)
    end(run, "done", stage="train", steps=4)
    follow(run, "wandb", TrackingSettings())
    assert (first.steps(), second.steps()) == ([1, 2, 3], [4])
    assert (first.ended, second.ended, ids) == (["stopped"], ["finished"], [None, "one"])


def test_a_service_that_cannot_be_reached_gets_the_same_points_later(folder: RunFolder) -> None:
    tracker = Appending(failures=1)
    feed = Feed(tracker)
    feed.add(effective(folder.events()))
    with pytest.raises(ConnectionError):
        feed.send()
    assert feed.told == {}
    feed.send()
    assert tracker.steps() == [1, 2, 3, 4, 5]


def test_why_it_failed_is_kept_for_the_person(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Appending(failures=9)
    opened(monkeypatch, tracker)
    follow(folder, "wandb", TrackingSettings())
    assert sent(folder, "wandb").problem == "ConnectionError: no route to http://host"
    assert tracker.ended == []


def test_a_library_that_breaks_at_its_import_is_a_problem_and_no_crash(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    follow(folder, "wandb", TrackingSettings())
    assert "wandb" in sent(folder, "wandb").problem


# the calls of each client, on doubles that know no other


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    double = ModuleType(name)
    vars(double).update(members)
    monkeypatch.setitem(sys.modules, name, double)


def mlflow_double(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    store: dict[str, Any] = {"runs": 0, "metrics": [], "params": {}, "status": "", "uri": ""}

    class Client:
        def __init__(self, *, tracking_uri: str) -> None:
            store["uri"] = tracking_uri

        def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
            return SimpleNamespace(experiment_id=store[name]) if name in store else None

        def create_experiment(self, name: str) -> str:
            store[name] = "7"
            return "7"

        def create_run(self, experiment_id: str, *, run_name: str) -> SimpleNamespace:
            store["runs"] += 1
            store["name"], store["status"] = run_name, "RUNNING"
            return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

        def update_run(self, run_id: str, *, status: str) -> None:
            assert run_id == "abc"
            store["status"] = status

        def log_batch(self, run_id: str, *, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
            assert run_id == "abc" and len(metrics) <= 1000
            store["metrics"] += metrics
            store["params"] |= dict(params)

        def set_terminated(self, run_id: str, status: str) -> None:
            store["status"] = status

    def metric(*values: Any) -> tuple[Any, ...]:
        return values

    module(
        monkeypatch,
        "mlflow",
        MlflowClient=Client,
        get_tracking_uri=lambda: "http://there",
        is_tracking_uri_set=lambda: "MLFLOW_TRACKING_URI" in os.environ,
    )
    module(monkeypatch, "mlflow.entities", Metric=metric, Param=metric)
    return store


def test_mlflow_gets_one_run_with_parameters_and_milliseconds(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mlflow_double(monkeypatch)
    wanted = TrackingSettings(project="kitchens")
    follow(folder, "mlflow", wanted)
    follow(folder, "mlflow", wanted)
    loss = [(step, value) for name, value, _, step in store["metrics"] if name == "train/loss"]
    assert loss == [(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0), (5, 0.5)]
    assert store["metrics"][0][2] == round(folder.events()[1].t * 1000)
    assert (store["runs"], store["name"], store["status"]) == (1, folder.name, "FINISHED")
    assert store["params"]["training.rank"] == "16" and store["uri"].startswith("sqlite:///")
    assert store["kitchens"] == "7"


def test_wandb_gets_the_step_as_a_figure_of_its_own(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, float]] = []
    calls: dict[str, Any] = {}

    class Run:
        id, offline, url = "w1", False, "https://wandb.ai/me/kitchen/runs/w1"
        dir = str(folder.path / "tracking" / "wandb" / "run" / "files")

        def define_metric(self, name: str, *, step_metric: str | None = None) -> None:
            calls[name] = step_metric

        def log(self, values: dict[str, float]) -> None:
            rows.append(values)

        def finish(self, *, exit_code: int) -> None:
            calls["exit"] = exit_code

    def init(
        *, project: str, name: str, id: str | None, resume: str, dir: str, config: Any, settings: Any
    ) -> Run:
        calls.update(project=project, name=name, id=id, resume=resume, settings=settings, config=config)
        return Run()

    module(monkeypatch, "wandb", init=init, Settings=dict)
    follow(folder, "wandb", TrackingSettings())
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert (calls["step"], calls["*"], calls["exit"], calls["resume"]) == (None, "step", 0, "allow")
    assert calls["settings"]["console"] == "off" and not calls["settings"]["save_code"]
    assert calls["settings"]["x_disable_meta"], "no folders, command line or name of this computer"
    assert sent(folder, "wandb").place == Run.url


def test_trackio_goes_on_with_the_run_of_that_name(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, *, step: rows.append((step, values)), finish=lambda: calls.append("finish")
    )

    def init(*, project: str, name: str, config: Any, resume: str, embed: bool, **logs: bool) -> Any:
        assert set(logs) == {"auto_log_gpu", "auto_log_cpu"} and not embed
        calls.append((project, name, resume))
        return run

    module(monkeypatch, "trackio", init=init)
    follow(folder, "trackio", TrackingSettings())
    assert [number for number, values in rows if "train/loss" in values] == [1, 2, 3, 4, 5]
    assert calls == [("ollama-tune", folder.name, "allow"), "finish"]


@pytest.mark.skipif(not REAL, reason="the real clients are asked with OLLAMA_TUNE_REAL_TRACKERS=1 only")
@pytest.mark.filterwarnings("default")
def test_the_real_clients_take_a_run(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("mlflow", "wandb", "trackio"):
        follow(folder, name, TrackingSettings())
        there = sent(folder, name)
        assert not there.problem and (there.told or {})["train/loss"] == 5
    from mlflow import MlflowClient
    from trackio.sqlite_storage import SQLiteStorage

    store = f"sqlite:///{data_dir() / 'mlflow.db'}"
    history = MlflowClient(store).get_metric_history(str(sent(folder, "mlflow").id), "train/loss")
    assert [(point.step, point.value) for point in history][-2:] == [(4, 1.0), (5, 0.5)]
    rows = SQLiteStorage.get_logs("ollama-tune", folder.name)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    (file,) = (folder.path / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    assert json.dumps("kitchen").strip('"').encode() in file.read_bytes()
