"""Two to four runs side by side: the settings that differ, what came of them, and which came out best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings, field_paths
from ollama_tune.core.runs.events import Event, back_to
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes, human_count, human_seconds, one_line
from ollama_tune.tui.run_summary import RunSummary, folder_size
from ollama_tune.tui.run_view import RunView

LETTERS = "ABCD"
BEST = "★"
NONE = "–"
POINTS = 240
"""A curve is compared by at most so many points."""
SMOOTH = 0.02
"""Half the width of the moving mean, as a share of a run's steps."""
SAME_ROWS = ("data.path", "data.split", "data.validation", "data.subset", "data.revision", "data.form",
             "data.columns", "data.labels", "data.include", "data.exclude", "data.validation_split",
             "data.seed")  # fmt: skip
"""Where one of these differs, the runs were measured on other rows."""


@dataclass(frozen=True)
class Point:
    """A place of a curve: how far the run was, counted in three ways, and the loss there."""

    step: float
    tokens: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Compared:
    """A run with what it is compared by. `tokens` and `seconds` are those of its steps, `elapsed` is all of
    its training; `settings` is None where run.yaml cannot be read."""

    folder: RunFolder
    state: str
    settings: Settings | None
    summary: RunSummary
    train: tuple[Point, ...]
    held: tuple[Point, ...]
    tokens: float
    seconds: float
    elapsed: float
    peak: int
    size: int

    @property
    def speed(self) -> float | None:
        """Useful tokens a second, evaluations left out."""
        return self.tokens / self.seconds if self.seconds > 0 else None


def read_compared(folder: RunFolder) -> Compared:
    """Read a run's whole log; slow for a long one, so a window does it in a thread."""
    events, view = folder.events(), RunView()
    view.fold(events)
    steps = effective_steps(events)
    train, places = _curve(steps)
    held = [
        _at(places, step, point.loss)
        for step, point in sorted(view.validation.items())
        if step and isinstance(point.loss, (int, float)) and math.isfinite(point.loss)
    ]
    return Compared(
        folder=folder,
        state=folder.state(view.last, paused=view.paused).value,
        settings=_settings(folder),
        summary=RunSummary.of(view),
        train=tuple(train),
        held=tuple(held),
        tokens=places[-1].tokens if places else 0.0,
        seconds=places[-1].seconds if places else 0.0,
        elapsed=view.elapsed,
        peak=max((int(_number(event, "peak", 0)) for event in events if event.kind == "memory"), default=0),
        size=folder_size(folder.path),
    )


def effective_steps(events: Sequence[Event]) -> list[Event]:
    """The steps of a run, each as it was done last, in their order; damaged lines are left out."""
    kept: dict[int, Event] = {}
    for event in events:
        with contextlib.suppress(TypeError, ValueError):
            step = back_to(event)
            if step is not None:
                kept = {at: old for at, old in kept.items() if at <= step}
        if event.kind == "step" and isinstance(event.get("step"), int):
            kept[event["step"]] = event
    return [kept[at] for at in sorted(kept)]


def _settings(folder: RunFolder) -> Settings | None:
    try:
        return folder.settings()
    except TuneError:
        return None


def _curve(steps: Sequence[Event]) -> tuple[list[Point], list[Point]]:
    """The smoothed losses in at most `POINTS` points, and the place of every step."""
    places, tokens, seconds = [], 0.0, 0.0
    for event in steps:
        tokens += _number(event, "useful_tokens", 0.0)
        seconds += _number(event, "seconds", 0.0)
        places.append(Point(event["step"], tokens, seconds, _number(event, "loss", math.nan)))
    sums, counts = [0.0], [0]
    for place in places:
        known = math.isfinite(place.loss)
        sums.append(sums[-1] + (place.loss if known else 0.0))
        counts.append(counts[-1] + known)
    reach, found = round(SMOOTH * len(places)), []
    for index in range(0, len(places), max(-(-len(places) // POINTS), 1)):
        near = min(reach, index, len(places) - 1 - index)
        first, last = index - near, index + near + 1
        if counts[last] > counts[first]:
            mean = (sums[last] - sums[first]) / (counts[last] - counts[first])
            place = places[index]
            found.append(Point(place.step, place.tokens, place.seconds, mean))
    return found, places


def _number(event: Event, name: str, default: float) -> float:
    value = event.get(name)
    return float(value) if isinstance(value, (int, float)) else default


def _at(places: Sequence[Point], step: int, loss: float) -> Point:
    """The place of a measurement: that of its step, or of the nearest one before."""
    index = min(step, len(places)) - 1
    place = places[index] if index >= 0 else Point(step, 0.0, 0.0, loss)
    return Point(step, place.tokens, place.seconds, loss)


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is about, a cell for each run, and which run is best in it, if one is."""

    label: str
    cells: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True)
class Metric:
    """A figure that runs are compared by; of two the `better` one is the higher (1) or the lower (-1), or
    none is (0)."""

    key: str
    label: str
    value: Callable[[Compared], float | None]
    words: Callable[[float], str]
    better: int
    held_out: bool = False


METRICS = (
    Metric("best_loss", "Best held-out loss", lambda r: r.summary.best_loss, "{:.4f}".format, -1, True),
    Metric("best_step", "at step", lambda r: r.summary.best_step, "{:,.0f}".format, 0),
    Metric("last_loss", "Training loss, last", lambda r: r.train[-1].loss if r.train else None,
           "{:.4f}".format, 0),
    Metric("preferred", "Better answers preferred", lambda r: r.summary.preferred, "{:.0%}".format, 1, True),
    Metric("exact_match_before", "Exact answers before", lambda r: r.summary.before, "{:.1%}".format, 0),
    Metric("exact_match_after", "Exact answers after", lambda r: r.summary.after, "{:.1%}".format, 1, True),
    Metric("steps", "Steps", lambda r: r.summary.step or None, "{:,.0f}".format, 0),
    Metric("tokens", "Tokens seen", lambda r: r.tokens or None, human_count, 0),
    Metric("tokens_per_second", "Tokens a second", lambda r: r.speed, human_count, 1),
    Metric("elapsed_seconds", "Time", lambda r: r.elapsed or None, human_seconds, -1),
    Metric("peak_memory_bytes", "Peak memory", lambda r: r.peak or None, human_bytes, -1),
    Metric("size_bytes", "Size on disk", lambda r: r.size or None, human_bytes, -1),
)  # fmt: skip


def differing(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, by dotted path; nothing of a run without settings."""
    found = {}
    for path in field_paths():
        values = [run.settings.get(path) if run.settings is not None else None for run in runs]
        known = [value for run, value in zip(runs, values, strict=True) if run.settings is not None]
        if any(value != known[0] for value in known):
            found[path] = values
    return found


def remarks(runs: Sequence[Compared]) -> list[str]:
    """Why losses or exact answers of these runs say less than they seem to."""
    changed, said = differing(runs), []
    if any(path in changed for path in SAME_ROWS):
        said.append("The held-out rows are not the same: losses and exact answers cannot be compared.")
    elif other_losses(runs):
        said.append("Preferences (DPO) have a loss of their own, by beta: compare exact answers, not losses.")
    elif "model.source" in changed or "model.revision" in changed:
        said.append("Other models cut text into other tokens: compare exact answers rather than losses.")
    if "evaluation.rows" in changed:
        said.append("Exact answers were counted on different numbers of rows.")
    unread = [LETTERS[number] for number, run in enumerate(runs) if run.settings is None]
    if unread:
        said.append(f"The run.yaml of {' and '.join(unread)} cannot be read: its settings are not compared.")
    return said


def other_losses(runs: Sequence[Compared]) -> bool:
    """Whether the losses are of different kinds: of answers and of preferences, or those by other betas."""
    changed = differing(runs)
    kinds = {run.settings.training.objective for run in runs if run.settings is not None}
    return len(kinds) > 1 or (kinds == {"dpo"} and "training.beta" in changed)


def setting_rows(runs: Sequence[Compared]) -> list[Row]:
    """The settings that differ, each by its dotted path."""
    rows = []
    for path, values in differing(runs).items():
        shown = _ends(values) if path == "data.path" else values
        cells = [
            NONE if run.settings is None else _said(value) for run, value in zip(runs, shown, strict=True)
        ]
        rows.append(Row(path, tuple(cells)))
    return rows


def _ends(values: list[Any]) -> list[str]:
    """The ends of paths, as long as it takes to tell different ones apart."""
    paths = [str(value or "") for value in values]
    parts = [path.split("/") for path in paths]
    for length in range(1, max(map(len, parts))):
        ends = ["/".join(names[-length:]) for names in parts]
        if len(set(ends)) == len(set(paths)):
            return ends
    return paths


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return one_line(", ".join(f"{name}={part}" for name, part in value.items()), 200) or NONE
    if isinstance(value, list):
        return one_line(", ".join(map(str, value)), 200) or NONE
    if value is None or value == "":
        return NONE
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return one_line(text, 200)


def metric_rows(runs: Sequence[Compared]) -> list[Row]:
    """What came of the runs, with the best of each line."""
    rows = [Row("State", tuple(run.state for run in runs))]
    for metric in METRICS:
        values = [metric.value(run) for run in runs]
        if any(value is not None for value in values):
            cells = tuple(NONE if value is None else metric.words(value) for value in values)
            rows.append(Row(metric.label, cells, best_of(metric, runs)))
    return rows


def best_of(metric: Metric, runs: Sequence[Compared]) -> int | None:
    """Which run is best by a figure; None where that cannot be said or two are alike."""
    values = [metric.value(run) for run in runs]
    known = [(metric.better * value, number) for number, value in enumerate(values) if value is not None]
    incomparable = metric.held_out and any(path in differing(runs) for path in SAME_ROWS)
    incomparable = incomparable or (metric.key == "best_loss" and other_losses(runs))
    if not metric.better or len(known) < 2 or incomparable:
        return None
    known.sort(reverse=True)
    alike = metric.words(abs(known[0][0])) == metric.words(abs(known[1][0]))
    return None if alike else known[0][1]


def comparison_json(runs: Sequence[Compared]) -> dict[str, Any]:
    """The comparison for programs: figures as numbers, settings as they stand in run.yaml, the name of the
    best run by each figure. Keys may be added, none is taken away or changed."""
    best = {metric.key: best_of(metric, runs) for metric in METRICS}
    return {
        "runs": [
            {
                "name": run.folder.name,
                "path": str(run.folder.path),
                "state": run.state,
                **{metric.key: metric.value(run) for metric in METRICS},
                "advice": vars(run.summary.advice) if run.summary.advice else None,
                "validation": [vars(point) for point in run.held],
            }
            for run in runs
        ],
        "settings_that_differ": differing(runs),
        "best": {key: runs[number].folder.name for key, number in best.items() if number is not None},
        "remarks": remarks(runs),
    }


def comparison_lines(runs: Sequence[Compared]) -> list[str]:
    """The comparison as plain lines: the runs by their letters, then the table."""
    lines = []
    for letter, run in zip(LETTERS, runs, strict=False):
        advice = run.summary.advice
        lines.append(f"{letter}  {one_line(run.folder.name, 100)}")
        if advice is not None:
            lines.append(f"   {advice.sign} {advice.sentence}")
    settings = setting_rows(runs) or [Row("no setting differs", ("",) * len(runs))]
    rows = [Row("settings that differ", tuple(LETTERS[: len(runs)])), *settings,
            Row("", ("",) * len(runs)), Row("what came of it", tuple(LETTERS[: len(runs)])),
            *metric_rows(runs)]  # fmt: skip
    lines += ["", *table_lines(rows, label=30, cell=24)]
    return [*lines, *(f"! {remark}" for remark in remarks(runs))]


def table_lines(rows: Sequence[Row], label: int, cell: int) -> list[str]:
    """Rows as text, the best cell with a star and its letter at the end of the line."""
    width = min(max((len(text) for row in rows for text in row.cells), default=1) + 4, cell)
    return [line_of(row, label, width) for row in rows]


def line_of(row: Row, label: int, cell: int) -> str:
    """One row: its label, its cells, and in words which run is best."""
    cells = []
    for number, text in enumerate(row.cells):
        star = f" {BEST}" if number == row.best else ""
        cells.append(f"{one_line(text, cell - 1 - len(star))}{star}".ljust(cell))
    best = f"best {LETTERS[row.best]}" if row.best is not None else ""
    return f"{one_line(row.label, label):<{label}} {''.join(cells)}{best}".rstrip()
