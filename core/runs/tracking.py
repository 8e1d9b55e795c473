"""Sends the figures of a run to a tracker while it goes: a process beside the worker, one for each tracker.

It reads the event log as every viewer does. The training knows nothing of it, and a tracker that hangs or
breaks harms neither the run nor another tracker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.plan.settings import Settings, TrackingSettings
from ollama_tune.core.plan.stopping import TITLES
from ollama_tune.core.runs.events import Event, EventReader, back_to, effective
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.launch import NICE, PATIENCE, track
from ollama_tune.core.runs.lock import is_held
from ollama_tune.core.runs.trackers import TRACKERS, Point, Series, Tracker, Value, without_password
from ollama_tune.core.text import one_line

POLL = 1.0
AGAIN = 20.0
"""Seconds until a tracker that failed is tried again."""
LAST_TRIES = 3
"""How often that is done after the run's end."""
OUTCOMES = {State.FINISHED: "finished", State.STOPPED: "stopped"}

SENT_SETTINGS = ("training", "evaluation")
"""The sections of a run.yaml that are sent whole: they hold neither texts of a person nor of the data."""


def hyper_parameters(settings: Settings) -> dict[str, Value]:
    """The settings that a tracker may know, by their dotted paths.

    Of model and data only the last part of the name: folders are nobody's business. No system prompt, no
    labels, no columns.
    """
    found: dict[str, Value] = {
        "model.source": Path(settings.model.source).name,
        "data.path": Path(settings.data.path).name,
        "data.validation_split": settings.data.validation_split,
        "data.seed": settings.data.seed,
        "export.type": settings.export.type,
    }
    for section in SENT_SETTINGS:
        for name, value in getattr(settings, section).model_dump().items():
            found[f"{section}.{name}"] = value if isinstance(value, (str, int, float)) else json.dumps(value)
    return found


def _step(event: Event) -> dict[str, Any]:
    seconds, tokens = event.get("seconds"), event.get("useful_tokens")
    names = ("loss", "learning_rate", "gradient_norm", "epoch", "mfu")
    speed = tokens / seconds if seconds and tokens is not None else None
    return {**{f"train/{name}": event.get(name) for name in names}, "train/tokens_per_second": speed}


def _evaluation(event: Event) -> dict[str, Any]:
    whose = "evaluation" if event.get("model") == "tuned" else "evaluation_base"
    found = {f"{whose}/{name}": event.get(name) for name in ("loss", "exact_match")}
    metric = event.get("metric")
    return found | {f"{whose}/{metric}": event.get("score")} if metric in TITLES else found


def _memory(event: Event) -> dict[str, Any]:
    return {f"memory/{name}_bytes": event.get(name) for name in ("used", "peak")}


FIGURES: dict[str, Callable[[Event], dict[str, Any]]] = {
    "step": _step,
    "evaluation": _evaluation,
    "memory": _memory,
}
"""The series that each kind of event feeds; every other kind is not sent."""


def _finite(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield name, float(value)


class Feed:
    """Turns events into points of one tracker, each step of a series once.

    `told` is the last step of each series that the tracker has. Where it can take points back, a run that
    resumes replaces them; where it cannot, steps that come again are left out.
    """

    def __init__(self, tracker: Tracker, told: Mapping[str, int] | None = None) -> None:
        self._tracker = tracker
        self.told = {} if tracker.rewritten else dict(told or {})
        self._waiting: list[Event] = []
        self._now = 0

    def add(self, events: Iterable[Event]) -> None:
        """Keep events until they are sent."""
        self._waiting += events

    def send(self) -> None:
        """Send what waits; where the tracker fails, it all waits on."""
        told, now, points = dict(self.told), self._now, list[Point]()
        for event in self._waiting:
            step = back_to(event)
            if step is not None and self._tracker.rewritten and any(last > step for last in told.values()):
                self._tracker.log(points)
                self._tracker.back_to(step)
                points, told = [], {name: min(last, step) for name, last in told.items()}
            now = int(event["step"]) if event.kind == "step" else now
            if point := _point(event, now, told):
                points.append(point)
                told.update(dict.fromkeys(point.values, point.step))
        if points:
            self._tracker.log(points)
        self.told, self._now = told, now
        self._waiting.clear()


def _point(event: Event, now: int, told: Mapping[str, int]) -> Point | None:
    """What an event tells of a step that its series do not have yet; memory counts for the last step."""
    if event.kind not in FIGURES:
        return None
    step = int(event.get("step", now))
    values = {n: value for n, value in _finite(FIGURES[event.kind](event)) if step > told.get(n, -1)}
    return Point(step, event.t, values) if values else None


@dataclass(frozen=True)
class Sent:
    """What is known of a run at one tracker; kept in `tracking/NAME.json` of the run's folder.

    `problem` is why the last try failed, else empty.
    """

    id: str | None = None
    place: str = ""
    told: Mapping[str, int] | None = None
    problem: str = ""


def sent(folder: RunFolder, name: str) -> Sent:
    """What a tracker has of a run."""
    table = read_table(_file(folder, name, "json"))
    return Sent(**{key: value for key, value in table.items() if key in Sent.__dataclass_fields__})


def send(folder: RunFolder, name: str, wanted: TrackingSettings) -> Sent:
    """Send a run to one tracker, from a process of its own since the clients print, and say what came of it.

    An ended run is waited for; one that is going is followed from then on, and only the first try is waited
    for. Raises `BusyError` where that is done already.
    """
    if is_held(_file(folder, name, "lock")):
        there = sent(folder, name).place
        raise BusyError(f"{folder.name} is being sent to {name} already.", f"Look there: {there}.")
    state = _file(folder, name, "json")
    former = _mark(state)
    (process,) = track(folder, wanted.model_copy(update={"to": [name]}))
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and (not folder.alive() or _mark(state) == former):
        if folder.alive() and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if process.poll():
        raise TuneError(
            f"Sending {folder.name} to {name} ended at once.", f"See {_file(folder, name, 'log')}."
        )
    return sent(folder, name)


def _mark(path: Path) -> tuple[int, int]:
    """Changes when a file is replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def tracked(folder: RunFolder) -> dict[str, Sent]:
    """Every tracker that a run was sent to, with what it has."""
    names = [name for name in TRACKERS if _file(folder, name, "json").exists()]
    return {name: sent(folder, name) for name in names}


def _file(folder: RunFolder, name: str, suffix: str) -> Path:
    return folder.path / "tracking" / f"{name}.{suffix}"


def series(folder: RunFolder, name: str, wanted: TrackingSettings, known: str | None) -> Series:
    """How a run is called there, and where its files go."""
    place = folder.path / "tracking"
    if name == "tensorboard":
        place = Path(wanted.folder) / folder.name if wanted.folder else folder.path / "tensorboard"
    return Series(folder.name, wanted.project, hyper_parameters(folder.settings()), place, known)


@contextlib.contextmanager
def _alone(folder: RunFolder, name: str) -> Iterator[None]:
    """One process for each run and tracker; that of a resumed run waits for the end of the one before."""
    path = _file(folder, name, "lock")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Follower:
    """One run and one tracker: opens it when it can be opened, feeds it, closes it at the run's end."""

    def __init__(self, folder: RunFolder, name: str, wanted: TrackingSettings) -> None:
        self.folder, self.name = folder, name
        self.sent = sent(folder, name)
        self._kept = False
        self._wanted = wanted
        self._reader = EventReader(folder.events_path)
        self._tracker: Tracker | None = None
        self._feed: Feed | None = None

    def turn(self, *, last: bool = False) -> bool:
        """Send what is new; at the end of the run also close it.

        True when all of it went well, or there is no run any more.
        """
        if not self.folder.settings_path.exists():
            return True
        try:
            self._send(last)
        except Exception as error:
            self._keep(problem=without_password(one_line(f"{type(error).__name__}: {error}", 400)))
            return False
        self._keep(problem="")
        return True

    def _send(self, last: bool) -> None:
        if self._tracker is None or self._feed is None:
            self._tracker = TRACKERS[self.name](series(self.folder, self.name, self._wanted, self.sent.id))
            self._feed = Feed(self._tracker, self.sent.told)
            self._keep(id=self._tracker.id, place=self._tracker.place)
            self._feed.add(effective(self._reader.poll()))
        self._feed.add(self._reader.poll())
        self._feed.send()
        self._keep(told=self._feed.told)
        if last:
            self._tracker.end(OUTCOMES.get(self.folder.status().state, "failed"))

    def _keep(self, **values: Any) -> None:
        """Remember what the tracker has; a full disk only costs that memory."""
        changed = replace(self.sent, **values)
        if changed != self.sent or not self._kept:
            self.sent, self._kept = changed, True
            with contextlib.suppress(OSError):
                write_atomic(_file(self.folder, self.name, "json"), json.dumps(asdict(changed)))


def follow(folder: RunFolder, name: str, wanted: TrackingSettings) -> None:
    """Send a run to a tracker until its worker ends; an ended run at once, and that is tried once."""
    with _alone(folder, name):
        follower, tries = Follower(folder, name, wanted), 1
        while folder.alive():
            time.sleep(POLL if follower.turn() else AGAIN)
            tries = LAST_TRIES
        while not follower.turn(last=True) and (tries := tries - 1):
            time.sleep(AGAIN)


def main(arguments: list[str]) -> None:
    """The process beside the worker: RUN_FOLDER NAME SETTINGS (as JSON)."""
    folder, name, wanted = arguments
    if os.getpriority(os.PRIO_PROCESS, 0) < NICE:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    follow(RunFolder(Path(folder)), name, TrackingSettings.model_validate_json(wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
