"""Three short runs that find the size of the learning rate: a third of it, as it is, and three times it.

Each is the first part of a run: warm-up and schedule are those of the whole, for a short run of its own would
favour rates that are too high for a longer one. They see the same rows in the same order, one after the
other, in a process that outlives the interface and a folder of their own, where they are no runs of the
person's. What comes out is read from their logs, so that whoever was killed, the same search goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.plan.settings import Settings, parse
from ollama_tune.core.runs.events import Event, effective
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.launch import PATIENCE, search_rates
from ollama_tune.core.runs.lock import is_held
from ollama_tune.core.runs.ready import absolute
from ollama_tune.core.runs.sweep import Halted, Runs, held
from ollama_tune.core.runs.turns import gone_before, searches_dir, turn

RATE = "training.learning_rate"
FACTOR = 3.0
POINTS = 3
SHARE, FEWEST, MOST = 8, 24, 60
"""A short run is an eighth of the whole one, but no fewer and no more steps than these. Of a run that is so
long that its warm-up would take more, the whole is taken to be eight times the most."""
MEASUREMENTS = 4
GIVEN_UP = "given-up"
"""A file in the folder of a short run that came to nothing."""
CLEAR = 0.01
"""Another rate is taken only where its held-out loss is lower by this share: less may be chance."""

Tell = Callable[[str], None]
Pair = tuple[float, float]


@dataclass(frozen=True)
class RateSearch:
    """What is tried: the settings of the whole run, its steps, and the rate in the middle of so many."""

    whole: Settings
    steps: int
    middle: float
    points: int = POINTS

    @property
    def rates(self) -> tuple[float, ...]:
        """From the lowest to the highest, each so many times the one before; the middle is exact."""
        half = self.points // 2
        found = (self.middle * FACTOR ** (number - half) for number in range(self.points))
        return tuple(float(f"{min(rate, 1.0):.3g}") if rate != self.middle else rate for rate in found)

    @property
    def planned(self) -> int:
        """Steps of the run that each short run is the beginning of."""
        return min(self.steps, SHARE * MOST)

    @property
    def short(self) -> int:
        """Steps of each short run, where it is not over before."""
        return self.interval * MEASUREMENTS

    @property
    def interval(self) -> int:
        """Steps between two measurements on the held-out rows."""
        return math.ceil(min(max(self.planned // SHARE, FEWEST), self.planned) / MEASUREMENTS)

    @cached_property
    def settings(self) -> Settings:
        """Of all short runs, but for the rate: nothing is asked, exported or sent, none ends early."""
        steady = {
            "training.epochs": self._epochs(self.planned),
            "training.evaluation_interval": self.interval,
            "training.early_stopping": 0,
            "training.early_stopping_metric": "loss",
            RATE: self.middle,
            "evaluation.rows": 0,
            "export.name": None,
            "export.importance": False,
            "export.also": [],
            "tracking.to": [],
        }
        return absolute(self.whole.with_values(steady))

    @property
    def counted(self) -> Settings:
        """The settings of a run that takes as long as each of the short ones."""
        return self.settings.with_value("training.epochs", self._epochs(self.short))

    def _epochs(self, steps: int) -> float:
        return self.whole.training.epochs * min(steps / max(self.steps, 1), 1.0)

    def reached(self, events: Sequence[Event]) -> float | None:
        """The held-out loss at the end of a short run; None before it, and where it is not a number."""
        total = next((int(e["total_steps"]) for e in events if e.get("total_steps")), self.short)
        end = min(self.short, total)
        found = (e for e in events if e.kind == "evaluation" and e["step"] == end and e["model"] == "tuned")
        return next((float(e["loss"]) for e in found if e.get("loss") is not None), None)

    @cached_property
    def folder(self) -> Path:
        """Where its short runs lie; the same search has the same folder."""
        decide = self.settings.model_dump(include={"model", "data", "training"})
        said = json.dumps([decide, self.points], sort_keys=True)
        return searches_dir() / hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def going(self) -> bool:
        """Whether somebody carries it out now."""
        return is_held(self.folder / "lock")

    @property
    def waits_for(self) -> str:
        """What is in its way now, in words: a run of the person's, or another search; empty where nothing."""
        return gone_before(self.folder) if self.going else ""

    @property
    def stop_path(self) -> Path:
        """Its existence is the wish to end."""
        return self.folder / "stop"

    def save(self) -> None:
        """Write down what is searched, for the process that does it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        said = {"steps": self.steps, "middle": self.middle, "points": self.points}
        text = json.dumps(said | {"settings": self.whole.model_dump()}, indent=1)
        write_atomic(self.folder / "search.json", text)

    @classmethod
    def load(cls, folder: Path) -> RateSearch:
        """As it was saved; raises `TuneError` for a file that says nothing of the kind."""
        said = read_table(folder / "search.json")
        try:
            steps, middle, points = int(said["steps"]), float(said["middle"]), int(said["points"])
            found = cls(parse(said["settings"]), steps, middle, points)
        except (KeyError, TypeError, ValueError) as error:
            raise TuneError(f"{folder} is not a search.", "Start it anew.") from error
        if found.folder.name != folder.name:
            raise TuneError(f"{folder} is of another search.", "Start it anew.")
        return found


def make_search(
    settings: Settings, steps: int, middle: float | None = None, points: int = POINTS
) -> RateSearch:
    """A search around the rate of the settings, or another one; `UsageError` where nothing is held out."""
    if not settings.data.validation_split and not settings.data.validation:
        raise UsageError("Without held-out rows no rate is better.", "Set data.validation_split to 0.1.")
    return RateSearch(settings, steps, middle or settings.training.learning_rate, points)


@dataclass(frozen=True)
class Tried:
    """A rate and how far its short run is: of how many steps, how it ended, the held-out loss at its end, and
    the losses of the steps and on the held-out rows by step (0: the model before)."""

    rate: float
    steps: int
    state: Literal["waiting", "going", "done", "failed"] = "waiting"
    step: int = 0
    loss: float | None = None
    train: tuple[Pair, ...] = ()
    held_out: tuple[Pair, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.state in ("done", "failed")


@dataclass(frozen=True)
class Outcome:
    """Which rate to take, and why in a sentence."""

    rate: float
    reason: str


def look(search: RateSearch) -> tuple[Tried, ...]:
    """How far each rate is, from the logs."""
    runs = read_table(search.folder / "trials.json")
    known = (runs.get(str(number)) for number in range(search.points))
    return tuple(
        _tried(search, rate, RunFolder(search.folder / str(run["run"]))) if run else Tried(rate, search.short)
        for rate, run in zip(search.rates, known, strict=True)
    )


def _tried(search: RateSearch, rate: float, folder: RunFolder) -> Tried:
    log = folder.events()
    events = effective(log)
    steps, measured = ([e for e in events if e.kind == kind] for kind in ("step", "evaluation"))
    loss, status = search.reached(events), folder.status(log)
    over = (folder.path / GIVEN_UP).exists() or status.state in (State.FAILED, State.FINISHED)
    open_still: Literal["going", "waiting"] = "going" if status.alive else "waiting"
    ended = "done" if loss is not None else "failed" if over else open_still
    total = min(search.short, int(steps[-1]["total_steps"]) if steps else search.short)
    step = min(int(steps[-1]["step"]) if steps else 0, total)
    return Tried(rate, total, ended, step, loss, _pairs(steps, total), _pairs(measured, total))


def _pairs(events: Sequence[Event], last: int) -> tuple[Pair, ...]:
    """Step and loss, where that is a number, in order and up to the end."""
    known = (e for e in events if e.get("loss") is not None and e["step"] <= last)
    return tuple(sorted({float(e["step"]): float(e["loss"]) for e in known}.items()))


def outcome(search: RateSearch, tried: Sequence[Tried]) -> Outcome | None:
    """The best rate once all were tried; the middle one unless another is clearly better. None before that,
    and where none could be measured."""
    known = [(point.loss, point.rate) for point in tried if point.loss is not None]
    if not all(point.over for point in tried) or not known:
        return None
    losses = {rate: loss for loss, rate in known}
    lowest, best = min(known)
    usual = losses.get(search.middle)
    if usual is None:
        return Outcome(best, f"{search.middle:g} failed; of the others this has the lowest held-out loss.")
    if best == search.middle:
        return Outcome(best, f"its held-out loss, {usual:.4f}, is the lowest of the {len(tried)}.")
    less = 1 - lowest / usual
    if less < CLEAR:
        words = f"{best:g} has a held-out loss lower by {less:.1%} only, which may be chance."
        return Outcome(search.middle, words)
    words = f"its held-out loss is {lowest:.4f}, {less:.1%} below the {usual:.4f} of {search.middle:g}"
    edge = best in (search.rates[0], search.rates[-1]) and best != search.middle
    further = "; one still further that way was not tried" if edge else ""
    return Outcome(best, f"{words}{further}.")


def begin(search: RateSearch) -> None:
    """Have it carried out by a process of its own, which outlives this one; returns when that has begun.

    One that is going already is left alone, one that was ended goes on where it was.
    """
    if search.going:
        return
    search.save()
    search.stop_path.unlink(missing_ok=True)
    process = search_rates(search.folder)
    deadline = time.monotonic() + PATIENCE
    while not search.going and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if process.poll() not in (None, 0) and not search.going:
        log = search.folder / "search.log"
        raise TuneError("The search did not start.", f"See {log}.", details=_tail(log))


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    return ""


def end(search: RateSearch) -> None:
    """Ask whoever carries it out to end; what was tried is kept, and the same search goes on there."""
    if search.going:
        search.stop_path.touch(mode=0o600)


class _GivesWay:
    """Says whether something goes before the short runs, and tells so once; raises `Halted` on the wish."""

    def __init__(self, search: RateSearch, tell: Tell) -> None:
        self._search, self._tell, self._told = search, tell, ""

    def __call__(self) -> bool:
        if self._search.stop_path.exists():
            raise Halted
        name = gone_before(self._search.folder)
        if name and name != self._told:
            self._tell(f"  Waiting until {name} has ended.")
        self._told = name
        return bool(name)


def carry_out(search: RateSearch, tell: Tell = lambda _line: None) -> tuple[Tried, ...]:
    """Try all rates, one after the other, in this process, as long as no other run works on this box; raises
    `Halted` where that was asked for.

    Of a short run that is over only its log is kept. Where all of them had failed, all are tried again.
    """
    search.save()
    search.stop_path.unlink(missing_ok=True)
    gives_way = _GivesWay(search, tell)
    with held(search), turn(search.folder, gives_way):
        if all(point.state == "failed" for point in look(search)):
            for path in search.folder.glob("*-trial-*"):
                shutil.rmtree(path)
        runs = Runs(search, "rate", search.folder, search.stop_path.exists, gives_way)
        for number, rate in enumerate(search.rates):
            tell(f"Learning rate {rate:g}, {number + 1} of {len(search.rates)}.")
            folder = runs.folder(number, {RATE: rate})
            try:
                loss = runs.wait(number, {RATE: rate}, search.reached)
            finally:
                runs.end(number)
            if loss is None:
                (folder.path / GIVEN_UP).touch(mode=0o600)
            for path in (folder.checkpoints, folder.adapter, folder.model):
                shutil.rmtree(path, ignore_errors=True)
            tell(f"  held-out loss {loss:.4f}" if loss is not None else "  failed")
    return look(search)


def main(arguments: Sequence[str]) -> int:
    """Carry out the search of a folder; returns the exit status."""
    try:
        carry_out(RateSearch.load(Path(arguments[0])))
    except Halted:
        return 0
    except TuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
