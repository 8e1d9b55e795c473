"""What an evaluation found, for people (Markdown with charts) and for programs (JSON), in one folder."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.evaluation import Evaluation, Pair, Result
from ollama_tune.core.evaluate.figures import Metric
from ollama_tune.core.evaluate.resample import DRAWS, LEAST, SEED, Difference, Interval
from ollama_tune.core.evaluate.svg import Bar, bars, confusion_chart
from ollama_tune.core.files import atomic_folder, write_atomic
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_rows, one_line, visible

SHOWN = 5
"""Rows of the best and of the worst that a report shows."""
LONGEST = 2000
"""Characters of a text that a report shows."""
MAIN = ("accuracy", "exact_match", "chrf", "rouge_l", "token_f1", "loss")
"""The metric that a report begins with: the first of these that is there and says something."""
SAYS_NOTHING = 0.05
"""A share of the largest figure below this for both models tells little about which is better."""


def main_result(evaluation: Evaluation) -> Result:
    """The result that answers whether the model is better; a score of next to 0 for both says nothing."""
    by_name = {result.metric.name: result for result in evaluation.results}
    telling = [by_name[name] for name in MAIN if name in by_name]
    said = [r for r in telling if any(one and one.value >= _least(r.metric) for one in r.models)]
    return (said or telling or list(evaluation.results))[0]


def _least(metric: Metric) -> float:
    top = metric.bounds[1]
    return SAYS_NOTHING * top if math.isfinite(top) else 0.0


def figure(result: Result, value: float, *, signed: bool = False) -> str:
    """A figure of a metric in a few characters: `62.0 %`, `1.2034`; a difference (`signed`) with its sign."""
    sign = "+" if signed else ""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "-")
    if result.metric.unit == "%":
        return f"{100 * value:{sign}.1f}" + ("" if signed else " %")
    if result.metric.unit == "nats":
        return f"{value:{sign}.3f}" if signed else f"{value:.4f}"
    if abs(value) >= 1e6:
        return f"{value:{sign}.1e}"
    places = 2 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0
    return f"{value:{sign},.{places}f}"


def difference(result: Result) -> str:
    """`+12.0 (+4.0 to +20.0)`, or `-` where the models are not compared."""
    found = result.difference
    if found is None:
        return "-"
    return f"{figure(result, found.value, signed=True)} ({_ends(result, found) or 'no interval'})"


def _ends(result: Result, found: Interval) -> str:
    """`+4.0 to +20.0`, with signs for a difference; nothing where the rows tell no interval."""
    ends = (figure(result, value, signed=isinstance(found, Difference)) for value in (found.low, found.high))
    return " to ".join(ends) if found.known else ""


def _interval(result: Result, found: Interval) -> str:
    ends = _ends(result, found)
    return f"95 % interval {ends}" if ends else "no interval"


def sentence(result: Result) -> str:
    """What a result means, in words: `exact match is better: +12.0 points, 95 % interval +4.0 to +20.0 …`."""
    metric, found = result.metric, result.difference
    own = result.models[1]
    assert own is not None
    if found is None:
        found_on = f"{figure(result, own.value)} on {human_rows(result.rows)}"
        return f"{metric.title}: {found_on}, {_interval(result, own)}."
    unit = {"%": " points", "nats": " nats a token"}.get(metric.unit, "")
    verdict = f"is {result.verdict}" if found.clear else f"shows {result.verdict}"
    change = f"{figure(result, found.value, signed=True)}{unit}"
    test = {"McNemar": "McNemar's exact test"}.get(found.test, "paired randomisation test")
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    return f"{metric.title} {verdict}: {change}, {_interval(result, found)} ({test}, {p})."


def report_json(evaluation: Evaluation) -> dict[str, Any]:
    """The report for programs, without any row; keys may be added, none is taken away or changed.

    `metrics` hold for each model value, low and high (95 % interval) or null, in the unit of the metric:
    shares as 0 to 1, losses in nats; `difference` is the second model's value less the first's, with the
    `p` of the named test and the verdict for the second model. Confusion tables have right labels as rows.
    """
    rows = evaluation.rows
    models = [{"title": side.title, "name": side.name, "tuned": side.tuned} for side in evaluation.sides]
    return {
        "version": 1,
        "run": evaluation.run,
        "data": {"source": rows.source, "rows": len(rows.rows), "of": rows.total},
        "models": models,
        "main": main_result(evaluation).metric.name,
        "metrics": [_result_json(result) for result in evaluation.results],
        "labels": list(rows.labels),
        "confusion": list(evaluation.confusions),
        "remarks": list(evaluation.remarks),
        "method": {
            "sampling": "greedy",
            "max_new_tokens": evaluation.max_new_tokens,
            "interval": "95 % jackknife over rows with Student's t; Wilson for shares of one model",
            "draws": DRAWS,
            "seed": SEED,
            "ollama_tune": version("ollama-tune"),
        },
    }


def _result_json(result: Result) -> dict[str, Any]:
    metric, found = result.metric, result.difference
    compared = found and {
        **_interval_json(found),
        "p": found.p,
        "test": found.test,
        "verdict": result.verdict,
    }
    return {
        "name": metric.name,
        "unit": {"%": "share", "nats": "nats"}.get(metric.unit, ""),
        "better": "lower" if metric.lower_is_better else "higher",
        "rows": result.rows,
        "models": [one and _interval_json(one) for one in result.models],
        "difference": compared,
        "sentence": sentence(result),
        "signature": metric.signature,
    }


def _interval_json(found: Interval) -> dict[str, float | None]:
    named = {"value": found.value, "low": found.low, "high": found.high}
    return {name: value if math.isfinite(value) else None for name, value in named.items()}


def extremes(evaluation: Evaluation) -> tuple[list[Pair], list[Pair]]:
    """The tuned model's best and worst rows; of equal ones those where it gained, or lost, most."""
    pairs = evaluation.pairs
    best = sorted(pairs, key=lambda pair: (-pair.score, -pair.gain, pair.number))
    worst = sorted(pairs, key=lambda pair: (pair.score, pair.gain, pair.number))
    half = min(SHOWN, (len(pairs) + 1) // 2)
    return best[:half], worst[: min(half, len(pairs) - half)]


def _row_json(evaluation: Evaluation, pair: Pair) -> dict[str, Any]:
    row = evaluation.rows.rows[pair.number]
    return {
        "line": row.line,
        "file": row.file,
        "question": row.prompt[-1].content[:LONGEST],
        "wanted": row.answer[:LONGEST],
        "answers": [answer and answer[:LONGEST] for answer in pair.answers],
        "similarity": round(pair.score, 4),
        "gain": round(pair.gain, 4),
    }


def write_report(evaluation: Evaluation, folder: RunFolder, output: Path | None) -> Path:
    """Write `report.md`, `report.json` and the charts into a new folder, whole or not at all.

    Without `output` that is `evaluation/<time>` in the run's folder. Raises `UsageError` for a place where
    something is already.
    """
    path = _place(folder, output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(path) as part:
            for name, content in _files(evaluation).items():
                write_atomic(part / name, content)
    except OSError as error:
        what = f"The report cannot be written to {path}: {error.strerror}."
        raise TuneError(what, "Name another folder with --output; all answers are kept.") from error
    return path


def check_output(output: Path | None) -> None:
    """Raise `UsageError` where a report would take the place of something."""
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already.", "Name a new folder with --output.")


def _place(folder: RunFolder, output: Path | None) -> Path:
    if output is not None:
        check_output(output)
        return output.absolute()
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    places = (
        folder.path / "evaluation" / f"{stamp}{number}" for number in ("", *(f"-{n}" for n in range(2, 99)))
    )
    return next(place for place in places if not place.exists())


def _files(evaluation: Evaluation) -> dict[str, str]:
    best, worst = extremes(evaluation)
    tree = report_json(evaluation) | {
        "best": [_row_json(evaluation, pair) for pair in best],
        "worst": [_row_json(evaluation, pair) for pair in worst],
    }
    charts = _charts(evaluation)
    text = _markdown(evaluation, list(charts), best, worst)
    return {"report.json": json.dumps(tree, indent=2) + "\n", "report.md": text, **charts}


def _charts(evaluation: Evaluation) -> dict[str, str]:
    """Each file's name and SVG."""
    titles = [side.title for side in evaluation.sides]
    charts = {}
    for name, title, units, top in (
        ("figures.svg", "Shares up to 100 %, the higher the better, with 95 % intervals", "%", 1.0),
        ("scores.svg", "Scores from 0 to 100, the higher the better", "", 100.0),
        ("loss.svg", "Loss in nats a token, the lower the better", "nats", 0.0),
    ):
        groups: list[tuple[str, list[Bar | None]]] = [
            (result.metric.title, [_bar(result, one) for one in result.models])
            for result in evaluation.results
            if result.metric.unit == units and result.metric.name != "perplexity"
        ]
        if groups:
            charts[name] = bars(title, titles, groups, top)
    for title, table in zip(titles, evaluation.confusions, strict=True):
        if table:
            name = f"Labels of the {title} model"
            charts[f"confusion-{title}.svg"] = confusion_chart(name, evaluation.rows.labels, table)
    return charts


def _bar(result: Result, one: Interval | None) -> Bar | None:
    if one is None or not math.isfinite(one.value):
        return None
    low, high = (one.low, one.high) if one.known else (one.value, one.value)
    return Bar(one.value, low, high, figure(result, one.value))


def _markdown(
    evaluation: Evaluation, charts: Sequence[str], best: Sequence[Pair], worst: Sequence[Pair]
) -> str:
    rows, (other, tuned) = evaluation.rows, evaluation.sides
    lines = [
        f"# Is {_inline(evaluation.run)} better?",
        "",
        f"**{sentence(main_result(evaluation))}**",
        "",
        f"Measured on {len(rows.rows):,} of {rows.total:,} rows of {_inline(rows.source)}. "
        f"{_capital(tuned.title)} is {_inline(tuned.name)}; {other.title} is {_inline(other.name)}. Answers "
        f"are the likeliest ones, of at most {evaluation.max_new_tokens:,} tokens.",
        "",
        *_table(evaluation),
        "",
        *(f"- {sentence(result)}" for result in evaluation.results),
        "",
        *(f"![{name.removesuffix('.svg')}]({name})\n" for name in charts),
        *_remark_lines(evaluation),
    ]
    for title, pairs in (("Best rows", best), ("Worst rows", worst)):
        lines += [f"## {title} of the tuned model", ""] if pairs else []
        for pair in pairs:
            lines += _row_lines(evaluation, pair)
    return "\n".join(lines + _how(evaluation)) + "\n"


def _table(evaluation: Evaluation) -> list[str]:
    other, tuned = evaluation.sides
    lines = [
        f"| metric | {other.title} | {tuned.title} | difference (95 % interval) | verdict | rows |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for result in evaluation.results:
        cells = [figure(result, one.value) if one else "-" for one in result.models]
        lines.append(
            f"| {result.metric.title} | {cells[0]} | {cells[1]} | {difference(result)} | "
            f"{result.verdict or '-'} | {result.rows:,} |"
        )
    return lines


def _remark_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.remarks:
        return []
    return ["## To be known", "", *(f"- {visible(remark)}" for remark in evaluation.remarks), ""]


def _row_lines(evaluation: Evaluation, pair: Pair) -> list[str]:
    """A row as blocks that no text of it can leave."""
    row = evaluation.rows.rows[pair.number]
    where = f"{_inline(row.file)}, line {row.line:,}" if row.file else f"Line {row.line:,}"
    lines = [f"### {where}, similarity {pair.score:.0%}", ""]
    texts = [("Question", row.prompt[-1].content), ("Wanted", row.answer)]
    texts += [
        (f"Answer of the {side.title} model", answer)
        for side, answer in zip(evaluation.sides, pair.answers, strict=True)
        if answer is not None
    ]
    for title, text in texts:
        lines += [f"{title}:", "", *_block(text), ""]
    return lines


def _block(text: str) -> list[str]:
    shown = visible(text[:LONGEST], keep_newlines=True) + (" …" if len(text) > LONGEST else "")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", shown, fence]


def _inline(text: str) -> str:
    """A name from outside as code, which Markdown leaves alone."""
    return "`" + one_line(text, 200).replace("`", "'") + "`"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _how(evaluation: Evaluation) -> list[str]:
    """How the figures came about, so that somebody else can have them again."""
    lines = [
        "## How it was measured",
        "",
        "- Intervals: 95 %, Student's t times the jackknife's standard error over the rows, on the scale of "
        "log-odds for figures with a largest value and of logarithms for the others, both models without the "
        "same row; Wilson's for the shares of one model. Fewer than "
        f"{LEAST} rows tell none. Perplexities have the ends of the loss, as exponentials; their difference "
        "has no interval and is as clear as that of the losses.",
        "- Tests: McNemar's exact one for exact match and accuracy, else approximate randomisation over the "
        f"rows ({DRAWS:,} draws, seed {SEED}). A difference counts as clear where p < 0.05 and its interval "
        "does not hold 0; of twenty such differences of equal models one would look clear by chance.",
    ]
    if evaluation.rows.labels:
        lines.append(
            "- The answer to a row with labels is the label with the largest probability, its end mark "
            "included and not divided by its length: what the model is likeliest to say, of all labels."
        )
    signed = [f"{r.metric.title} `{r.metric.signature}`" for r in evaluation.results if r.metric.signature]
    lines += [f"- sacrebleu: {'; '.join(signed)}."] if signed else []
    return lines
