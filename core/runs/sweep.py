"""Tries values of some settings on short runs, ends the worse half early, and finds the best run.

Successive halving (Jamieson and Talwalkar 2016), asynchronous as in ASHA (Li et al. 2020), by Optuna: a run
goes on past a measurement only if its held-out loss is among the better half of those measured there so far.

Every trial is an ordinary run folder, planned for its full length, so that its learning rate is that of the
full run. All figures are read from the runs' own logs, and the search is computed from them anew each time:
whatever was killed, the same command ends in the same table.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.control import request_stop, wait_until_free
from ollama_tune.core.runs.dimensions import STEADY, Dimension, Options, Value, read_dimension
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import RunFolder, State, create_run
from ollama_tune.core.runs.launch import start
from ollama_tune.core.runs.lock import open_lock, seize
from ollama_tune.core.runs.ready import absolute
from ollama_tune.core.runs.trials import NOTES, sweeps_dir, words
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial as Asked

MEASUREMENTS = 8
"""A run measures so often (`training.evaluation_interval` 0)."""
RUNGS = (1, 2, 4)
"""The measurements at which the worse half ends; after the last of them no trial goes on."""
TRIALS = 12
POLL = 0.2
PATIENCE = 600.0
"""Seconds that a worker gets for its checkpoint."""
ATTEMPTS = 3
"""So many workers of a trial may end without a word before it counts as failed."""

Tell = Callable[[str], None]
Reached = Callable[[Sequence[Event]], "float | None"]
"""Finds in a log what a trial is run for."""


class Halted(Exception):
    """A search was asked to end before its end."""


@dataclass(frozen=True)
class Sweep:
    """What is searched: the settings of every run, what varies, and how many values are tried."""

    settings: Settings
    dimensions: tuple[Dimension, ...]
    trials: int

    @property
    def folder(self) -> Path:
        """Where the sweep keeps which runs are its own; the same search has the same folder."""
        said = json.dumps([self.settings.model_dump(), repr(self.dimensions), self.trials], sort_keys=True)
        return sweeps_dir() / hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def grid(self) -> list[dict[str, Value]] | None:
        """Every combination, in an order drawn by the seed; None where numbers are drawn from a range."""
        named = [d for d in self.dimensions if isinstance(d, Options)]
        if len(named) < len(self.dimensions):
            return None
        points = [
            dict(zip((d.path for d in named), values, strict=True))
            for values in itertools.product(*(d.values for d in named))
        ]
        random.Random(self.settings.training.seed).shuffle(points)
        return points


def make_sweep(settings: Settings, over: Sequence[str], trials: int | None) -> Sweep:
    """A search that can be made; raises `UsageError` where it cannot."""
    if not over:
        raise UsageError("Nothing varies.", "Say --over training.learning_rate=1e-5..1e-3:log, for example.")
    if not settings.data.validation_split and not settings.data.validation:
        raise UsageError("Without held-out rows no run is better.", "Set data.validation_split to 0.1.")
    dimensions = tuple(read_dimension(text, settings) for text in over)
    if len({dimension.path for dimension in dimensions}) < len(dimensions):
        raise UsageError("One setting stands twice in --over.", "Name all its values in one.")
    sweep = Sweep(absolute(settings.with_values(STEADY)), dimensions, trials or TRIALS)
    if sweep.grid is None:
        return sweep
    return Sweep(sweep.settings, dimensions, min(trials or len(sweep.grid), len(sweep.grid)))


@dataclass(frozen=True)
class Trial:
    """One try: its values, how many of the run's 8 measurements count, and the held-out loss at the last."""

    number: int
    values: Mapping[str, Value]
    outcome: str
    measured: int = 0
    loss: float | None = None
    run: str = ""


class Runner(Protocol):
    """Carries out the trials."""

    def loss(self, number: int, values: Mapping[str, Value], measurement: int) -> float | None:
        """The held-out loss at a measurement (from 1), once it is known; None where the run failed."""

    def end(self, number: int) -> str:
        """Let the run rest after its last measurement; returns its name."""

    def reason(self, number: int) -> str:
        """Why the run failed."""


def search(sweep: Sweep, runner: Runner, tell: Tell) -> list[Trial]:
    """Carry out all trials, one after the other."""
    study = _study(sweep)
    space = {dimension.path: dimension.distribution() for dimension in sweep.dimensions}
    for point in (sweep.grid or [])[: sweep.trials]:
        study.enqueue_trial(point)
    return [_try(study, study.ask(space), runner, tell, sweep.trials) for _ in range(sweep.trials)]


def _study(sweep: Sweep) -> Study:
    try:
        import optuna
    except ImportError as error:
        raise TuneError(
            "A sweep needs Optuna.", "Install it with `pip install 'ollama-tune[sweep]'`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=sweep.settings.training.seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=2),
    )


def _try(study: Study, asked: Asked, runner: Runner, tell: Tell, trials: int) -> Trial:
    """One trial, up to the measurement after which it does not go on."""
    from optuna.trial import TrialState

    number, values, loss = asked.number, dict(asked.params), None
    tell(f"Trial {number + 1} of {trials}: {words(values)}")
    for measured in RUNGS:
        found = runner.loss(number, values, measured)
        if found is None:
            study.tell(asked, state=TrialState.FAIL)
            tell(f"  failed: {runner.reason(number)}")
            return Trial(number, values, "failed", run=runner.end(number))
        loss = found
        asked.report(loss, measured)
        last = measured == RUNGS[-1]
        ends = last or asked.should_prune()
        going = "measured to the end" if last else "ends here" if ends else "goes on"
        tell(f"  after {measured}/{MEASUREMENTS} of the run: held-out loss {loss:.4f}; {going}")
        if ends:
            break
    if last:
        study.tell(asked, loss)
    else:
        study.tell(asked, state=TrialState.PRUNED)
    return Trial(number, values, "kept" if last else "ended", measured, loss, runner.end(number))


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The best first: those that were measured longer before all others, then by their held-out loss."""
    worst = float("inf")
    return sorted(trials, key=lambda t: (-t.measured, worst if t.loss is None else t.loss, t.number))


def held_out_losses(events: Sequence[Event]) -> list[float]:
    """The held-out loss of every measurement during training, in the order of the steps.

    What was measured first counts, also where a run did those steps again: what was decided by it stays so.
    """
    found: dict[int, float] = {}
    for event in events:
        if event.kind == "evaluation" and event["model"] == "tuned" and event.get("loss") is not None:
            found.setdefault(int(event["step"]), float(event["loss"]))
    return [loss for _, loss in sorted(found.items())]


class Search(Protocol):
    """What trials are made for: the settings that all of them share, and a folder of its own."""

    @property
    def settings(self) -> Settings:
        """Of every run, but for what varies."""

    @property
    def folder(self) -> Path:
        """Where it is kept which runs are whose; the same search has the same folder."""


class Runs:
    """Trials as run folders in `home`, else among all runs; the search's `trials.json` says which is whose.
    Once `stopped` says so, waiting for a run ends in `Halted`; while `after` does, the run rests. What failed
    before is tried `again`, where that is wished: what was missing may be there now."""

    def __init__(
        self,
        sweep: Search,
        label: str,
        home: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
        after: Callable[[], bool] = lambda: False,
        *,
        again: bool = False,
    ) -> None:
        self._sweep, self._label, self._stopped, self._after = sweep, label, stopped, after
        self._again, self._begun = again, set[int]()
        self._home = home or runs_dir()
        self._file = sweep.folder / NOTES
        self._known: dict[str, Any] = read_table(self._file)

    def folder(self, number: int, values: Mapping[str, Value]) -> RunFolder:
        """The run of a trial, made where there is none; it is written down before it is started."""
        known = self._known.get(str(number))
        if known is None or not (self._home / known["run"]).is_dir():
            settings = self._sweep.settings.with_values(dict(values))
            made = create_run(settings, f"{self._label}-trial-{number + 1}", self._home)
            self._known[str(number)] = {"run": made.name, "values": dict(values)}
            write_atomic(self._file, json.dumps(self._known, indent=1))
            return made
        if known["values"] != values:
            raise TuneError(
                f"Trial {number + 1} was begun with other values, by another release of Optuna.",
                f"Remove {self._sweep.folder} to search anew.",
            )
        return RunFolder(self._home / str(known["run"]))

    def folders(self) -> list[RunFolder]:
        """The runs so far."""
        found = [RunFolder(self._home / str(known["run"])) for known in self._known.values()]
        return [folder for folder in found if folder.path.is_dir()]

    def loss(self, number: int, values: Mapping[str, Value], measurement: int) -> float | None:
        """As `Runner.loss`; starts the run where nobody works on it."""

        def reached(events: Sequence[Event]) -> float | None:
            return next(iter(held_out_losses(events)[measurement - 1 : measurement]), None)

        return self.wait(number, values, reached)

    def wait(self, number: int, values: Mapping[str, Value], reached: Reached) -> float | None:
        """What is looked for in the log of a trial, once it is there; None where the run failed or ended.

        Raises `TuneError` where that can be tried again and is no fault of the trial: what all of them need
        is gone.
        """
        folder, crashes = self.folder(number, values), 0
        while True:
            alive = folder.alive()
            events = folder.events()
            found = reached(events)
            if found is not None:
                return found
            if self._stopped():
                raise Halted
            if self._after():
                rest(folder)
            elif not alive:
                state = folder.status(events).state
                crashes += state is State.CRASHED
                failed = state is State.FAILED and (number in self._begun or not self._again)
                if failed or state is State.FINISHED or crashes > ATTEMPTS:
                    if self._again:
                        self._require_there(values)
                    return None
                self._begun.add(number)
                start(folder, "all")
            time.sleep(POLL)

    def _require_there(self, values: Mapping[str, Value]) -> None:
        for name in {"model.source", "data.path"}.difference(values):
            place = Path(str(self._sweep.settings.get(name)))
            if place.is_absolute() and not place.exists():
                way = "Put it back and give the same command: it goes on where it was."
                raise TuneError(f"{place} is gone.", way)

    def reason(self, number: int) -> str:
        """As `Runner.reason`."""
        folder = RunFolder(self._home / str(self._known[str(number)]["run"]))
        return one_line(folder.status().message, 200)

    def end(self, number: int) -> str:
        """As `Runner.end`."""
        name = str(self._known[str(number)]["run"])
        rest(RunFolder(self._home / name))
        return name


def rest(folder: RunFolder) -> None:
    """Have a worker write its checkpoint and end; returns when it has."""
    if folder.alive():
        with contextlib.suppress(UsageError):
            request_stop(folder)
    if not wait_until_free(folder, PATIENCE):
        raise TuneError(f"{folder.name} has not ended yet.", "Give the same command again later.")


@contextlib.contextmanager
def held(sweep: Search) -> Iterator[None]:
    """The sweep's folder for this process alone; raises `BusyError` where another has it."""
    sweep.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_lock(sweep.folder / "lock") as descriptor:
        if not seize(descriptor):
            raise BusyError("This sweep is already going.", "Wait for the other one.")
        yield


def shares(trials: int) -> tuple[float, float, float]:
    """The least, usual and most work of a sweep in full runs, each with the best run's way to its end."""
    least = trials * RUNGS[0] + RUNGS[-1] - RUNGS[0]
    steps = zip(RUNGS, (0, *RUNGS[:-1]), strict=True)
    usual = sum(max(trials / 2**n, 1.0) * (rung - before) for n, (rung, before) in enumerate(steps))
    most = trials * RUNGS[-1]
    rest_of_best = MEASUREMENTS - RUNGS[-1]
    return (
        (least + rest_of_best) / MEASUREMENTS,
        (usual + rest_of_best) / MEASUREMENTS,
        (most + rest_of_best) / MEASUREMENTS,
    )
