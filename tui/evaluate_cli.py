"""`ollama-tune evaluate`: is the tuned model better, and how sure is that?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.tui.shell import end_json, interruption, out

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.evaluation import Evaluation

EPILOG = """\b
Examples:
  ollama-tune evaluate 2026-11-21-1130-kitchen
  ollama-tune evaluate RUN --data test.jsonl --limit 0 --json
  ollama-tune evaluate RUN --against ollama:llama3.2 --metrics chrf,rouge_l

\b
Metrics: loss, perplexity, exact_match, token_f1, rouge_l, bleu, chrf; for rows
with a fixed set of labels accuracy and macro_f1 (by the likeliest label).

\b
An evaluation that was stopped goes on where it was: give the command again.
With --json one object is printed, without any row of the data:
  run, data, models, main (the metric to look at first), labels, confusion,
  remarks, method, folder (of the report)
  metrics   name, unit (share: 0 to 1), better, rows, models (value, low, high
            or null), difference (value, low, high, p, test, verdict), sentence
An error is {"outcome": "error", "what": ..., "fix": ...}.
"""


@click.command(epilog=EPILOG)
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--data", metavar="DATA", help="Measure on all rows of this file, folder or hub data set.")
@click.option("--against", default="base", show_default=True, help="base, another run, or ollama:NAME.")
@click.option(
    "--limit", type=click.IntRange(0), default=200, show_default=True, help="Measure on so many rows; 0: all."
)
@click.option("--metrics", metavar="NAMES", help="Separated by commas. [default: those that fit the data]")
@click.option("--max-tokens", type=click.IntRange(1, 32_768), help="The longest answer. [default: the run's]")
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="A new folder for the report.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; progress goes to standard error.")
def evaluate(run: str | None, as_json: bool, output: Path | None, **options: Any) -> None:
    """Measure the tuned model of a run beside another on rows that it has not learned.

    Without a name it is the newest run. The rows are those that the run kept apart. Every figure comes with
    a 95 % interval, every difference with a test. A report with charts and the best and worst rows is
    written into the run's folder.
    """
    try:
        found, folder = _evaluated(run, output, options, partial(click.echo, err=as_json))
    except KeyboardInterrupt as error:
        raise interruption(error, "Stopped.", "The same command goes on where it was.") from None
    if as_json:
        from ollama_tune.core.evaluate.report import report_json

        end_json(0, outcome="ok", **report_json(found), folder=str(folder))
    for line in result_lines(found):
        out(line)
    out(f"Report: {folder / 'report.md'}")


def _evaluated(
    run: str | None, output: Path | None, options: dict[str, Any], tell: Any
) -> tuple[Evaluation, Path]:
    from ollama_tune.core.evaluate.evaluation import Wish, evaluate
    from ollama_tune.core.evaluate.report import check_output, write_report
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(run)
    check_output(output)
    named = tuple(filter(None, (options["metrics"] or "").replace(" ", "").split(",")))
    wish = Wish(options["data"], options["against"], options["limit"], named, options["max_tokens"] or 0)
    found = evaluate(folder, wish, tell)
    return found, write_report(found, folder, output)


def result_lines(found: Evaluation) -> list[str]:
    """The answer in a sentence, and all metrics as a table of at most 80 columns."""
    from ollama_tune.core.evaluate.report import difference, figure, main_result, sentence
    from ollama_tune.core.text import one_line, visible

    other, tuned = found.sides
    lines = [
        "",
        *_wrapped(sentence(main_result(found))),
        "",
        f"{'metric':<12}{other.title:>9}{tuned.title:>10}  {'difference (95 % interval)':<33} verdict",
    ]
    for result in found.results:
        cells = [figure(result, one.value) if one else "-" for one in result.models]
        line = f"{result.metric.title:<12}{cells[0]:>9}{cells[1]:>10}  {difference(result):<33} "
        lines.append(f"{line}{_SHORT.get(str(result.verdict), '-')}")
    rows = f"{len(found.rows.rows):,} of {found.rows.total:,} rows"
    lines += ["", f"On {rows}; {other.title}: {one_line(other.name, 50)}."]
    for remark in found.remarks:
        lines += _wrapped(f"! {visible(remark)}")
    return lines


_SHORT = {"better": "better", "worse": "worse", "no clear difference": "not clear"}


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 80)
