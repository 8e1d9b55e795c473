"""Which runs are trials of a sweep, as the sweeps have noted it, and the end of those that are not needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import BusyError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.paths import data_dir, runs_dir
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.lock import open_lock, seize

NOTES = "trials.json"
"""In the folder of a sweep: of each trial by its number, from 0, the run's name and the values."""


@dataclass(frozen=True)
class TrialRun:
    """A run as a trial: the name of its sweep, its number there from 1, and the values that it tries."""

    sweep: str
    number: int
    values: Mapping[str, Any]

    @property
    def words(self) -> str:
        """The values as a person reads them."""
        return words(self.values)

    @property
    def few_words(self) -> str:
        """The same where there is little room: `rate 0.001, rank 8`."""
        return words(self.values, "_")


def sweeps_dir() -> Path:
    """Where the sweeps are, each in a folder of its name."""
    return data_dir() / "sweeps"


def words(values: Mapping[str, Any], after: str = ".") -> str:
    """Values as a person reads them, by the last part of their names; after `_` it is the last word."""
    shown = {name.rpartition(".")[2].rpartition(after)[2]: value for name, value in values.items()}
    return ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in shown.items())


def trial_runs() -> dict[str, TrialRun]:
    """Every run that is a trial, by its name; notes that cannot be read are passed over."""
    return {run: trial for notes in sweeps_dir().glob(f"*/{NOTES}") for run, trial in _noted(notes)}


def _noted(notes: Path) -> Iterator[tuple[str, TrialRun]]:
    for number, known in read_table(notes).items():
        if number.isdecimal() and isinstance(known, dict) and isinstance(known.get("values"), dict):
            yield str(known.get("run")), TrialRun(notes.parent.name, int(number) + 1, known["values"])


def runs_of(sweep: str) -> list[RunFolder]:
    """The runs of a sweep that are there, by its name; none where there is no such sweep."""
    if Path(sweep).name != sweep:
        return []
    names = [run for run, _ in _noted(sweeps_dir() / sweep / NOTES)]
    return [RunFolder(runs_dir() / name) for name in names if (runs_dir() / name / "run.yaml").is_file()]


def needless(sweep: str) -> tuple[list[RunFolder], list[RunFolder]]:
    """The runs of a sweep that ended on the way, and those that came to their end: the best one."""
    found = [(folder, folder.status().state is State.FINISHED) for folder in runs_of(sweep)]
    return [run for run, finished in found if not finished], [run for run, finished in found if finished]


def delete_needless(sweep: str) -> None:
    """Remove what `needless` says, with everything in it; raises `BusyError` while the sweep or a run goes.

    The sweep forgets what is gone: the same search would try it again.
    """
    folder = sweeps_dir() / sweep
    with open_lock(folder / "lock") as descriptor:
        if not seize(descriptor):
            raise BusyError(f"The sweep {sweep} is going.", "End it first with Ctrl+C where it was started.")
        gone, stays = needless(sweep)
        for run in (*gone, *stays):
            if run.alive():
                raise BusyError(f"{run.name} is going.", f"Stop it first with `ollama-tune stop {run.name}`.")
        for run in gone:
            control.delete(run)
        left = {run.name for run in stays}
        table = read_table(folder / NOTES)
        kept = {number: known for number, known in table.items() if known["run"] in left}
        write_atomic(folder / NOTES, json.dumps(kept, indent=1))
        if not kept:
            shutil.rmtree(folder)
