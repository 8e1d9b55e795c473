"""What a list shows of a run, in a few figures; those of ended runs are kept, and no log is read twice."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.paths import cache_dir
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import ALIVE, RunFolder, State, list_runs
from ollama_tune.core.runs.trials import TrialRun, trial_runs
from ollama_tune.tui.coach import Advice, advise
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_view import RunView

VERSION = 2
"""Changes with the figures below and with what the coach says: older files are not read."""


@dataclass(frozen=True)
class RunSummary:
    """A run in figures. Losses are None before the first; `best_loss` is the lowest on the held-out rows.

    `updated` is the Unix time of the last event and `last` its kind, empty where there is none. `name` is the
    model's in Ollama, once it is there. `problem` says what an error event said.
    """

    model: str = ""
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    before: float | None = None
    after: float | None = None
    updated: float = 0.0
    last: str = ""
    trained: bool = False
    exported: bool = False
    name: str = ""
    problem: str = ""
    preferred: float | None = None
    advice: Advice | None = None

    @classmethod
    def of(cls, view: RunView) -> RunSummary:
        """From what is known of the run."""
        measured = {
            at: p.loss for at, p in view.validation.items() if at and isinstance(p.loss, (int, float))
        }
        best = min(measured, key=lambda at: (measured[at], at), default=None)
        exported = view.done.get("export")
        return cls(
            model=view.model,
            stage=view.stage,
            step=view.step,
            total_steps=view.total_steps,
            loss=view.loss,
            validation_loss=measured[max(measured)] if measured else None,
            best_loss=measured[best] if best is not None else None,
            best_step=best,
            before=view.before,
            after=view.after,
            updated=view.updated,
            last=view.last.kind if view.last else "",
            trained=view.trained,
            exported=exported is not None,
            name=str(exported.get("ollama_name") or "") if exported is not None else "",
            problem=str(view.error["what"]) if view.error is not None else "",
            preferred=view.preferred.accuracy if view.preferred is not None else None,
            advice=advise(view),
        )

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> RunSummary:
        """From its dictionary; raises `TypeError` for one of another shape."""
        advice = table.pop("advice", None)
        return cls(**table, advice=Advice(**advice) if advice else None)

    @property
    def shown_loss(self) -> float | None:
        """The best loss on the held-out rows; where none were measured, that of the last step."""
        loss = self.loss if self.best_loss is None else self.best_loss
        return loss if loss is None or math.isfinite(loss) else None


class Summaries:
    """The summaries of runs that ended, in one file of the cache folder: each holds for a log of that size
    and time, so a run that went on is read again. The file can be lost without harm."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_dir() / "runs.json"
        stored = read_table(self._path)
        known = stored.get("runs") if stored.get("version") == VERSION else None
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}
        self._used: dict[str, Any] = {}

    def get(self, folder: RunFolder) -> RunSummary | None:
        """The summary of a run whose log is still the same."""
        key, entry = str(folder.path), self._known.get(str(folder.path))
        if not isinstance(entry, dict) or entry.get("log") != _stamp(folder):
            return None
        try:
            summary = RunSummary.from_dict(dict(entry["summary"]))
        except (KeyError, TypeError, ValueError):
            return None
        self._used[key] = entry
        return summary

    def put(self, folder: RunFolder, summary: RunSummary) -> None:
        """Keep the summary of a run that no worker holds."""
        self._used[str(folder.path)] = {"log": _stamp(folder), "summary": asdict(summary)}

    def save(self) -> None:
        """Write what was used or is new; runs that are gone drop out. A full disk is no obstacle."""
        if self._used != self._known:
            with contextlib.suppress(OSError, TuneError):
                write_atomic(self._path, json.dumps({"version": VERSION, "runs": self._used}))
                self._known = dict(self._used)


def _stamp(folder: RunFolder) -> list[int]:
    try:
        found = folder.events_path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


class ListedRun:
    """A run of the list: a live one is followed, of another only the summary is looked at."""

    def __init__(self, folder: RunFolder, summaries: Summaries, trial: TrialRun | None = None) -> None:
        self.folder, self.trial = folder, trial
        self.size: int | None = None
        self.summary = RunSummary()
        self.state = State.NEW
        self._follower: RunFollower | None = None
        self._trained: str | None = None
        known = None if folder.alive() else summaries.get(folder)
        if known is None:
            self._follow()
            if not self.alive:
                summaries.put(folder, self.summary)
                self._follower = None
        else:
            self.summary = known
            self.state = folder.state(Event(0, known.updated, known.last, {}) if known.last else None)

    def _follow(self) -> None:
        self._follower = RunFollower(self.folder)
        self.poll()

    def poll(self) -> bool:
        """Look again at a live run; True where something is new."""
        if self._follower is None:
            return False
        fresh = self._follower.poll()
        self.summary, self.state = RunSummary.of(self._follower.view), self._follower.state
        return fresh

    @property
    def alive(self) -> bool:
        """True while a worker holds the run."""
        return self.state in ALIVE

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    def model(self) -> str:
        """What is tuned: as its worker said, else as its settings say; `?` where these cannot be read."""
        if self.summary.model:
            return self.summary.model
        try:
            return self.folder.settings().model.source
        except TuneError:
            return "?"

    def trained(self) -> str:
        """What learned, and from what, as its settings say; empty where these cannot be read."""
        if self._trained is None:
            self._trained = _trained(self.folder)
        return self._trained


def _trained(folder: RunFolder) -> str:
    from ollama_tune.tui.review_words import trained_words

    try:
        training = folder.settings().training
    except TuneError:
        return ""
    return f"{trained_words(training)}{'; preferences (DPO)' if training.objective == 'dpo' else ''}"


def read_runs() -> Iterator[ListedRun]:
    """Every run, newest first, as each is read; what was read of ended ones is kept at the end."""
    summaries, trials = Summaries(), trial_runs()
    for folder in list_runs():
        yield ListedRun(folder, summaries, trials.get(folder.name))
    summaries.save()


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile or may not be read counts nothing."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                folder = entry.is_dir(follow_symlinks=False)
                size += folder_size(Path(entry)) if folder else entry.stat(follow_symlinks=False).st_size
    return size
