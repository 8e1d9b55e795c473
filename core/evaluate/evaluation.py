"""Is my model better? Measures a run's model and another on the same rows and says so with figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ollama_tune.core.data.values import Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.figures import Kind, Losses, Metric, chosen_metrics, confusion
from ollama_tune.core.evaluate.kept import Kept, open_kept
from ollama_tune.core.evaluate.material import Rows, read_rows
from ollama_tune.core.evaluate.metrics import similarity, wilson_interval
from ollama_tune.core.evaluate.overlap import without_thoughts
from ollama_tune.core.evaluate.records import labels_of, statistics
from ollama_tune.core.evaluate.resample import (
    LEAST,
    Difference,
    Interval,
    exponential,
    exponential_change,
    interval,
    mcnemar,
    paired,
)
from ollama_tune.core.evaluate.sides import Measured, Side, Tell, measure, prepare, sides_of
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_rows, one_line

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.figures import Array

FEW = 30
"""Fewer rows than this say little."""
Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Wish:
    """What is to be evaluated: other data than the run's, against what, on how many rows (0: all), by which
    metrics (none named: the usual ones), with answers of how many tokens (0: as the run measured)."""

    data: str | None = None
    against: str = "base"
    limit: int = 200
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Result:
    """One metric: the figure of each model (None where it cannot be measured), over how many rows, and the
    difference where both have one."""

    metric: Metric
    rows: int
    models: tuple[Interval | None, Interval | None]
    difference: Difference | None

    @property
    def verdict(self) -> Verdict | None:
        """What the difference means for the tuned model; None without one."""
        if self.difference is None:
            return None
        if not self.difference.clear:
            return "no clear difference"
        return "better" if (self.difference.value < 0) == self.metric.lower_is_better else "worse"


@dataclass(frozen=True)
class Pair:
    """A row beside both models' answers (None where one was not asked), and how good the tuned one's is."""

    number: int
    answers: tuple[str | None, str | None]
    score: float
    gain: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found. `confusions` are the tables of both models, by the labels of the rows."""

    run: str
    wish: Wish
    rows: Rows
    sides: tuple[Side, Side]
    results: tuple[Result, ...]
    confusions: tuple[list[list[int]] | None, list[list[int]] | None]
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]
    max_new_tokens: int


def evaluate(folder: RunFolder, wish: Wish, tell: Tell = lambda _line: None) -> Evaluation:
    """Measure both models on the same rows; what was measured before is not measured again.

    `tell` gets lines of progress, none of which holds a row. Raises `UsageError` for a wish that cannot be
    met, `BusyError` while another evaluation of the run goes on, and `TuneError` where measuring fails.
    """
    settings = folder.settings()
    sides = sides_of(folder, wish.against)
    rows = read_rows(settings, wish.data, wish.limit)
    metrics, remarks = chosen_metrics(wish.metrics, rows.references, bool(rows.labels))
    longest = wish.max_new_tokens or settings.evaluation.max_new_tokens
    with open_kept(folder.path / "evaluation") as kept:
        tell(f"Measuring on {len(rows.rows):,} of {rows.total:,} rows.")
        measured = _prepared(sides, rows, {metric.kind for metric in metrics}, longest, kept)
        measure(measured, kept, tell)
        results = tuple(filter(None, (_result(metric, measured, rows) for metric in metrics)))
        kept.prune(measured[0].used() | measured[1].used())
    if not results:
        raise TuneError("No row could be measured.", "Choose other data or other metrics.")
    remarks += _remarks(folder, wish, measured, results, longest)
    tables = (_confusion(measured[0], rows), _confusion(measured[1], rows))
    pairs = tuple(_pairs(measured, rows))
    return Evaluation(folder.name, wish, rows, sides, results, tables, pairs, tuple(remarks), longest)


def _prepared(
    sides: tuple[Side, Side], rows: Rows, kinds: set[Kind], longest: int, kept: Kept
) -> tuple[Measured, Measured]:
    first = prepare(sides[0], rows, kinds & sides[0].kinds, longest, kept)
    shared = first.tasks if sides[0].folder == sides[1].folder else None
    return first, prepare(sides[1], rows, kinds, longest, kept, shared)


def _result(metric: Metric, measured: tuple[Measured, Measured], rows: Rows) -> Result | None:
    """A metric over the rows that both models have, or over those of the tuned one alone."""
    able = [side for side in measured if metric.kind in side.side.kinds]
    common = [row for row in range(len(rows.rows)) if all(side.record(metric.kind, row) for side in able)]
    if not common or measured[1] not in able:
        return None
    tables = [_statistics(metric, side, common, rows) for side in able]
    figures = [_figure(metric, table) for table in tables]
    if len(able) == 1:
        return Result(metric, len(common), (None, figures[0]), None)
    alike = metric.kind != "loss" or bool((tables[0][:, 1] == tables[1][:, 1]).all())
    difference = _difference(metric, *tables) if alike else None
    return Result(metric, len(common), (figures[0], figures[1]), difference)


def _statistics(metric: Metric, side: Measured, common: Sequence[int], rows: Rows) -> Array:
    records = [side.record(metric.kind, row) or {} for row in common]
    if metric.kind != "loss":
        return statistics(metric, records, [rows.rows[row] for row in common], rows.labels)
    tokens = {task.row: task.tokens for task in side.tasks.tasks if task.kind == "loss"}
    losses = [-sum(record["logs"]) for record in records]
    return metric.statistics(Losses(losses, [tokens[row] for row in common]))


def _figure(metric: Metric, table: Array) -> Interval:
    """A figure; the interval of a share is Wilson's, because none or all right are no certainty."""
    if not metric.shares:
        found = interval(table, metric.log or metric.value, metric.bounds)
        return exponential(found) if metric.log else found
    hits, count = int(table[:, 0].sum()), len(table)
    return Interval(hits / count, *wilson_interval(hits, count))


def _difference(metric: Metric, first: Array, second: Array) -> Difference:
    found = paired(first, second, metric.log or metric.value, metric.bounds)
    if metric.log:
        return exponential_change(found, float(metric.value(first.sum(0)[None])[0]))
    if not metric.shares:
        return found
    p = mcnemar(first[:, 0], second[:, 0])
    return Difference(found.value, found.low, found.high, p, "McNemar")


def _confusion(side: Measured, rows: Rows) -> list[list[int]] | None:
    found = {row: record for row in range(len(rows.rows)) if (record := side.record("labels", row))}
    asked = [rows.rows[row] for row in found]
    return confusion(labels_of(list(found.values()), asked, rows.labels)) if found else None


def _pairs(measured: tuple[Measured, Measured], rows: Rows) -> list[Pair]:
    """The rows that the tuned model has answered, in order."""
    found = []
    for number, row in enumerate(rows.rows):
        other, own = (side.record("answers", number) for side in measured)
        if own is None:
            continue
        score = _alike(own, row)
        before = _alike(other, row) if other else score
        texts = (other["text"] if other else None, own["text"])
        found.append(Pair(number, texts, score, score - before))
    return found


def _alike(record: dict[str, Any], row: Row) -> float:
    return similarity(without_thoughts(record["text"], row.answer), row.answer)


def _remarks(
    folder: RunFolder,
    wish: Wish,
    measured: tuple[Measured, Measured],
    results: Sequence[Result],
    longest: int,
) -> list[str]:
    """What a reader of the figures should know."""
    said = []
    for why in dict.fromkeys(why for side in measured for why in side.tasks.left_out):
        count = max(side.tasks.left_out.get(why, 0) for side in measured)
        said.append(f"{why} This is so with {human_rows(count)}.")
    aside = measured[1].rows.set_aside
    said += [f"Set aside: {problem.text} This is so with {human_rows(problem.count)}." for problem in aside]
    said += _cut_off(measured, longest)
    if learned := measured[1].rows.learned:
        verb = "row stands" if learned == 1 else "rows stand"
        said.append(f"{learned:,} {verb} in the data that the run learned from; that flatters its figures.")
    fewest = min(result.rows for result in results)
    if fewest < LEAST:
        said.append(
            f"Fewer than {LEAST} rows give no interval, but of a share, and no test finds a difference."
        )
    elif fewest < FEW:
        said.append("These are few rows: only large differences show.")
    said += [why for result in results if (why := _without_interval(result))]
    if fewest >= LEAST and any(result.metric.name == "macro_f1" for result in results):
        said += _rare_labels(measured[1].rows)
    other = measured[0].side.folder
    if other is not None and any(r.metric.kind == "loss" and r.difference is None for r in results):
        said.append("The two models cut the answers into other tokens, so their losses are not compared.")
    if other is not None and other != folder and wish.data is None and not _same_split(folder, other):
        said.append(f"{other.name} kept other rows apart; it may have learned some of these.")
    return said


def _cut_off(measured: tuple[Measured, Measured], longest: int) -> list[str]:
    """How many answers of each model did not come to their end."""
    found = []
    for side in measured:
        records = (side.record("answers", row) for row in range(len(side.rows.rows)))
        count = sum(record["end"] == "length" for record in records if record)
        if count:
            found.append(f"{count:,} of the {side.side.title} model")
    where = f"{longest:,} token{'s' * (longest > 1)}, or where a model reads no more"
    return [f"Answers were cut off, at {where}: {', '.join(found)}."] if found else []


def _without_interval(result: Result) -> str:
    """Why there is no interval, where it is not that there are too few rows."""
    found = [*filter(None, (*result.models, result.difference))]
    if result.rows < LEAST or result.metric.log or all(one.known for one in found):
        return ""
    if not all(math.isfinite(one.value) for one in found):
        return f"{result.metric.title} has no interval where it is infinite."
    return f"{result.metric.title} has no interval where all rows say the same."


def _rare_labels(rows: Rows) -> list[str]:
    """Labels on which macro F1 hangs too much, because it weighs all labels alike."""
    counts = Counter(rows.references)
    none = [label for label in rows.labels if not counts[label]]
    few = [label for label in rows.labels if 0 < counts[label] < LEAST]
    said = []
    if none:
        said.append(f"None of these rows has {_named(none)}, so nothing is known of how well it is found.")
    if few:
        said.append(f"Fewer than {LEAST} rows have {_named(few)}, which count for much in macro F1.")
    return said


def _named(labels: Sequence[str]) -> str:
    names = ", ".join(f"`{one_line(label, 40)}`" for label in labels[:3])
    more = f" and {len(labels) - 3:,} more" if len(labels) > 3 else ""
    return f"the label{'s' * (len(labels) > 1)} {names}{more}"


def _same_split(one: RunFolder, other: RunFolder) -> bool:
    data = [folder.settings().data for folder in (one, other)]
    return data[0] == data[1]
