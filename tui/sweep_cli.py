"""`ollama-tune sweep`: which values of some settings are best, found with a fraction of the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.shell import assignments, end_json, interruption, out, say

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.core.runs.sweep import Sweep, Trial

BAR = 40
OUTCOMES = {
    "kept": "measured to the end",
    "ended": "ended early",
    "failed": "failed",
}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--over", multiple=True, metavar="FIELD=VALUES", help="What varies; any number.")
@click.option("--rates", type=click.Choice(["3", "5"]), help="Only the learning rate, by so many short runs.")
@click.option(
    "--trials", type=click.IntRange(1, 1000), help="How many.  [default: all combinations, else 12]"
)
@click.option(
    "--set", "values", multiple=True, metavar="FIELD=VALUE", help="Change a setting for all of them."
)
@click.option("--dry-run", is_flag=True, help="Say what would be tried and how long it takes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end, progress to stderr.")
def sweep(
    file: Path,
    over: tuple[str, ...],
    rates: str | None,
    trials: int | None,
    values: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try values of some settings on short runs, and train the best run to its end.

    FIELD=LOW..HIGH draws numbers between two (with :log on a logarithmic scale), FIELD=A,B,C takes those
    named. Each trial is an ordinary run that is measured after 1/8, 2/8 and 4/8 of its steps; the half with
    the higher held-out loss ends there (successive halving by Optuna). The run that is best at last
    goes on to its full length, without early stopping and without answers in between.

    A sweep that was stopped or killed goes on with the same command, and ends in the same table.

    The cheap way is --rates 3: short runs of a few dozen steps with a third of the file's learning rate, with
    that rate and with three times it (--rates 5: a ninth and nine times too), of which only the logs are
    kept. It needs no Optuna, trains nothing to its end, and waits while one of your runs works; the wizard
    offers the same.

    \b
    --json prints one object:
      outcome, folder     "ok", the sweep's folder
      trials              best first: trial, run, values, outcome ("kept": measured
                          to the end, "ended", "failed"), measured (of 8), loss
      best                the run that went on to its full length
    With --dry-run: outcome, trials, combinations (or null), full_run_seconds,
    seconds (least, usual, most), spread.
    With --rates: outcome, folder, steps, rates (rate, state, step, steps, loss,
    held_out: [step, loss] pairs), best, reason; with --dry-run too: outcome,
    rates (numbers), steps, seconds, spread.

    \b
    Examples:
      ollama-tune sweep run.yaml --over training.learning_rate=1e-5..1e-3:log --dry-run
      ollama-tune sweep run.yaml --over training.learning_rate=1e-4,3e-4,1e-3 --json
      ollama-tune sweep run.yaml --over training.learning_rate=1e-5..1e-3:log \\
          --over training.rank=8,16,32 --trials 12
      ollama-tune sweep run.yaml --rates 3 --dry-run
    """
    from ollama_tune.core.plan.room import settings_here

    if rates is not None and (over or trials):
        raise UsageError("--rates tries learning rates alone.", "Leave --over and --trials out.")
    settings, _ = settings_here(file, assignments(values))
    if rates is None:
        _try_values(settings, over, trials, dry_run, as_json)
    else:
        _try_rates(settings, int(rates), dry_run, as_json)


def _try_values(
    settings: Settings, over: Sequence[str], trials: int | None, dry_run: bool, as_json: bool
) -> None:
    """The trials, each a run of its own, and the best one to its end."""
    from ollama_tune.core.runs.sweep import make_sweep

    wanted = make_sweep(settings, over, trials)
    if dry_run:
        _say_plan(wanted, as_json)
        return
    try:
        found, folder = _carry_out(wanted, partial(click.echo, err=as_json))
    except KeyboardInterrupt as error:
        _rest(wanted)
        raise interruption(error, "Stopped.", "The same command goes on where it was.") from None
    _say_result(wanted, found, folder, as_json)


def _try_rates(settings: Settings, points: int, dry_run: bool, as_json: bool) -> None:
    """The short runs, in this process; what they cost is said before."""
    from ollama_tune.core.plan.prepare import prepare_settings
    from ollama_tune.core.runs.rates import carry_out, make_search, outcome
    from ollama_tune.tui.rates import cost_line, outcome_line, seconds_of, table_lines, tried_json

    found = prepare_settings(settings)
    search = make_search(settings, found.plan.work.steps, points=points)
    seconds, spread = seconds_of(search, found.spec, found.lengths, found.machine)
    if dry_run:
        cost = {"steps": search.short, "seconds": seconds, "spread": spread}
        say(cost_line(search, seconds, spread), as_json, {"outcome": "ok", "rates": search.rates, **cost})
        return
    tell = partial(click.echo, err=as_json)
    tell(cost_line(search, seconds, spread))
    try:
        tried = carry_out(search, tell)
    except KeyboardInterrupt as error:
        raise interruption(error, "Stopped.", "The same command goes on where it was.") from None
    best = outcome(search, tried)
    for line in ("", *table_lines(search, tried, best), ""):
        tell(line)
    if best is None:
        raise TuneError("Every short run failed.", f"Their logs are in {search.folder}.")
    told = {"outcome": "ok", "folder": str(search.folder), "steps": search.short}
    rows = [tried_json(point) for point in tried]
    say(outcome_line(best), as_json, {**told, "rates": rows, "best": best.rate, "reason": best.reason})


def _carry_out(wanted: Sweep, tell: Callable[[str], None]) -> tuple[list[Trial], RunFolder]:
    """All trials, best first, and the best one's run, which has come to its end."""
    from ollama_tune.core.plan.room import check_run
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.core.runs.sweep import Runs, held, ranked, search

    with held(wanted):
        tell(f"Sweep folder: {wanted.folder}")
        if remark := check_run(wanted.settings):
            tell(f"! {remark}")
        found = ranked(search(wanted, Runs(wanted, "sweep", again=True), tell))
        if found[0].loss is None:
            raise TuneError("Every trial failed.", f"See `ollama-tune attach {found[0].run}`.")
        for line in ("", *table_lines(found), "", *chart_lines(found), ""):
            tell(line)
        folder = find_run(found[0].run)
        tell(f"The best is trial {found[0].number + 1}, {folder.name}. It goes on to its full length.")
        _complete(folder, tell)
    return found, folder


def _complete(folder: RunFolder, tell: Callable[[str], None]) -> None:
    """Train the best run to its end; one that has got there is left as it is."""
    from ollama_tune.core.runs.folder import State
    from ollama_tune.core.runs.launch import start
    from ollama_tune.tui.follow import Follower, follow

    if folder.status().state is State.FINISHED:
        return
    seen = len(folder.events())
    if not folder.alive():
        start(folder, "all")
    follow(folder, Follower(tell), skip=seen)


def _rest(wanted: Sweep) -> None:
    """Have the run that is going write a checkpoint and end."""
    from ollama_tune.core.runs.sweep import Runs, rest

    for folder in Runs(wanted, "sweep").folders():
        rest(folder)


def table_lines(trials: Sequence[Trial]) -> list[str]:
    """The trials as a table, best first."""
    from ollama_tune.core.runs.sweep import MEASUREMENTS
    from ollama_tune.core.runs.trials import words

    wide = max(len(words(trial.values)) for trial in trials)
    lines = [f"{'trial':>5}  {'values':<{wide}}  {'of the run':>10}  {'held-out loss':>13}  {'':<19}  run"]
    for trial in trials:
        loss = "-" if trial.loss is None else f"{trial.loss:.4f}"
        part, outcome = f"{trial.measured}/{MEASUREMENTS}", OUTCOMES[trial.outcome]
        values = f"{words(trial.values):<{wide}}"
        lines.append(f"{trial.number + 1:>5}  {values}  {part:>10}  {loss:>13}  {outcome:<19}  {trial.run}")
    return lines


def chart_lines(trials: Sequence[Trial]) -> list[str]:
    """The last held-out loss of each trial as a bar; that of a run that ended early is of an earlier step."""
    known = [(trial, trial.loss) for trial in trials if trial.loss is not None]
    top = max((loss for _, loss in known), default=0.0) or 1.0
    lines = ["held-out loss, shorter is better"]
    for trial, loss in known:
        sign = "#" if trial.outcome == "kept" else "-"
        lines.append(f"{trial.number + 1:>5}  {sign * max(round(BAR * loss / top), 1):<{BAR}}  {loss:.4f}")
    return [*lines, "       # measured to the end   - ended early"]


def _say_plan(wanted: Sweep, as_json: bool) -> None:
    """What would be tried, and for how long."""
    from ollama_tune.core.plan.prepare import prepare_settings
    from ollama_tune.core.runs.sweep import shares
    from ollama_tune.core.runs.trials import words
    from ollama_tune.core.text import human_seconds

    work = prepare_settings(wanted.settings).plan.work
    least, usual, most = (share * work.seconds for share in shares(wanted.trials))
    points = wanted.grid and wanted.grid[: wanted.trials]
    if as_json:
        seconds = {"least": least, "usual": usual, "most": most}
        told = {"trials": wanted.trials, "combinations": points, "full_run_seconds": work.seconds}
        end_json(0, outcome="ok", **told, seconds=seconds, spread=work.spread)
    count = "1 trial" if wanted.trials == 1 else f"{wanted.trials} trials"
    out(f"{count}; one full run takes about {human_seconds(work.seconds)}.")
    for number, point in enumerate(points or [], 1):
        out(f"{number:>5}  {words(point)}")
    for dimension in () if points else wanted.dimensions:
        out(f"  {dimension}")
    between = f"{human_seconds(least)} to {human_seconds(most)}"
    out(f"All of it, with the best run to its end: about {human_seconds(usual)} ({between}).")


def _say_result(wanted: Sweep, found: Sequence[Trial], folder: RunFolder, as_json: bool) -> None:
    from ollama_tune.core.runs.folder import State

    state = folder.status().state
    if state is not State.FINISHED:
        what = f"The best run, {folder.name}, did not reach its end ({state.value})."
        raise TuneError(what, "Give the same command again: it goes on there.")
    if as_json:
        rows = [_row(trial) for trial in found]
        end_json(0, outcome="ok", folder=str(wanted.folder), trials=rows, best=rows[0]["run"])
    out(f"Best run: {folder.name}. Measure it with `ollama-tune evaluate {folder.name}`.")


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number + 1,
        "run": trial.run,
        "values": dict(trial.values),
        "outcome": trial.outcome,
        "measured": trial.measured,
        "loss": trial.loss,
    }
