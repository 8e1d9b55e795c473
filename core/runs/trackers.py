"""Where the figures of a run can be sent: TensorBoard, MLflow, Weights & Biases, Trackio.

Each goes through its library's own client, which is imported at use and has no types to check against.
Only figures and settings are sent, never a row of the data and never a prompt.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.paths import data_dir

Value = str | int | float | bool
SUFFIX = ".ollama-tune"
"""Ends the names of TensorBoard's files from here, so that only these are ever replaced."""
TENSORBOARD = "tensorboard"
MOST_METRICS = 1000
"""MLflow takes so many in one request."""


@dataclass(frozen=True)
class Point:
    """Figures of one step (from 1) at a Unix time, by the names of their series."""

    step: int
    t: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """What a tracker has to know of a run: its name, the project, the settings as hyper-parameters, a folder
    for files, and by which id the tracker knows it already (None: not yet)."""

    name: str
    project: str
    settings: Mapping[str, Value]
    folder: Path
    id: str | None = None


class Tracker(Protocol):
    """A client that takes the figures of one run.

    `rewritten` tells that it starts anew each time and can take points back; the others only ever append.
    `id` finds the run again, `place` tells a person where to look.
    """

    rewritten: ClassVar[bool]
    id: str
    place: str

    def log(self, points: Sequence[Point]) -> None:
        """Take points, in the order of their steps; when this returns they are safe with the client."""

    def back_to(self, step: int) -> None:
        """Take back the points after a step; never called where `rewritten` is false."""

    def end(self, outcome: str) -> None:
        """Close the run there: `finished`, `stopped` (may be resumed) or `failed`."""


class _Appending:
    """A tracker that takes nothing back."""

    rewritten: ClassVar[bool] = False

    def back_to(self, step: int) -> None:
        """Refuse."""
        raise NotImplementedError


def viewer() -> str:
    """What starts TensorBoard in a terminal: its name, or where it is beside this Python. A terminal seldom
    finds the programs of an environment that pipx or uv made."""
    beside = Path(sys.executable).with_name(TENSORBOARD)
    return str(beside) if not shutil.which(TENSORBOARD) and beside.is_file() else TENSORBOARD


class TensorBoard:
    """Event files through `tensorboard` alone; neither torch nor TensorFlow is needed.

    The files are written anew from the run's log and then take the place of earlier ones. A `SessionLog`
    START with a step makes TensorBoard forget the points from that step on.
    """

    rewritten: ClassVar[bool] = True

    def __init__(self, series: Series) -> None:
        hparams = import_module("tensorboard.plugins.hparams.summary_v2")
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        series.folder.mkdir(parents=True, exist_ok=True)
        self._former = list(series.folder.glob(f"events.out.tfevents.*{SUFFIX}"))
        self._writer = writer.EventFileWriter(str(series.folder), filename_suffix=SUFFIX)
        self.id = str(series.folder)
        self.place = shlex.join([viewer(), "--logdir", str(series.folder.parent)])
        self.back_to(-1)
        self._add(summary=hparams.hparams_pb(dict(series.settings), trial_id=series.name))

    def _add(self, **fields: Any) -> None:
        self._writer.add_event(self._events.Event(**fields))

    def log(self, points: Sequence[Point]) -> None:
        """Write points to the file, and then remove the files that this one replaces."""
        summary = self._summaries.Summary
        for point in points:
            values = [summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(step=point.step, wall_time=point.t, summary=summary(value=values))
        self._writer.flush()
        while self._former:
            self._former.pop().unlink(missing_ok=True)

    def back_to(self, step: int) -> None:
        """Start again after a step."""
        log = self._events.SessionLog
        self._add(step=step + 1, session_log=log(status=log.START))

    def end(self, outcome: str) -> None:
        """Close the file; there is no word for how a run ended."""
        self._writer.close()


class MLflow(_Appending):
    """A run in MLflow, where `MLFLOW_TRACKING_URI` says, else in a database beside the runs."""

    def __init__(self, series: Series) -> None:
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        own = f"sqlite:///{data_dir() / 'mlflow.db'}"
        uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else own
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        there = f"mlflow ui --backend-store-uri {uri}" if uri == own else without_password(uri)
        self.place = f"{there} (experiment {series.project})"
        if series.id is not None:
            self.id = series.id
            self._client.update_run(self.id, status="RUNNING")
            return
        experiment = self._experiment(series.project)
        self.id = self._client.create_run(experiment, run_name=series.name).info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in series.settings.items()]
        self._client.log_batch(self.id, params=params)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def log(self, points: Sequence[Point]) -> None:
        """Send points in requests of the size that is allowed."""
        metrics = [
            self._entities.Metric(name, value, round(point.t * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.id, metrics=metrics[start : start + MOST_METRICS])

    def end(self, outcome: str) -> None:
        """Set the run's status."""
        states = {"finished": "FINISHED", "stopped": "KILLED"}
        self._client.set_terminated(self.id, states.get(outcome, "FAILED"))


class WandB(_Appending):
    """A run of Weights & Biases, with `WANDB_MODE`, `WANDB_API_KEY` and the like as its client reads them.

    The horizontal axis is the series `step`, since the client's own counter refuses a step before its last.
    """

    def __init__(self, series: Series) -> None:
        wandb = import_module("wandb")
        unseen = {"disable_git": True, "save_code": False, "x_disable_meta": True}
        quiet = wandb.Settings(console="off", silent=True, **unseen)
        self._run = wandb.init(
            project=series.project,
            name=series.name,
            id=series.id,
            resume="allow",
            dir=str(series.folder),
            config=dict(series.settings),
            settings=quiet,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.id = str(self._run.id)
        offline = f"wandb sync {series.folder / 'wandb'}/offline-run-*-{self.id}"
        self.place = offline if self._run.offline else str(self._run.url)

    def log(self, points: Sequence[Point]) -> None:
        """Hand points to the client, which sends them in the background."""
        for point in points:
            self._run.log({"step": point.step, **point.values})

    def end(self, outcome: str) -> None:
        """Wait until all is sent; a failed run gets exit code 1."""
        self._run.finish(exit_code=int(outcome == "failed"))


class Trackio(_Appending):
    """A run of Trackio: on this computer, or where `TRACKIO_SPACE_ID` says."""

    def __init__(self, series: Series) -> None:
        self._run = import_module("trackio").init(
            project=series.project,
            name=series.name,
            config=dict(series.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.id = series.name
        self.place = f"trackio show --project {series.project}"

    def log(self, points: Sequence[Point]) -> None:
        """Hand points to the client."""
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def end(self, outcome: str) -> None:
        """Wait until all is stored."""
        self._run.finish()


def without_password(text: str) -> str:
    """A text in which no address names a user or a password."""
    return re.sub(r"//[^/@\s]*@", "//", text)


TRACKERS: dict[str, Callable[[Series], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}
"""By the name of the Python package."""


def require(names: Sequence[str]) -> None:
    """Raise `TuneError` where one of these trackers' packages is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"There is no tracker {name!r}.", f"There are {', '.join(TRACKERS)}.")
        found = None
        with contextlib.suppress(ValueError):
            found = find_spec(name)
        if found is None:
            raise TuneError(
                f"The figures are to go to {name}, and its package is not installed.",
                f"Install it with `pip install 'ollama-tune[{name}]'`.",
            )
