"""`ollama-tune runs` and `ollama-tune compare`: what was tried, and what made the difference."""

from __future__ import annotations

import json

import click

from ollama_tune.core.errors import UsageError
from ollama_tune.tui.shell import out

MOST = 4


RUNS_EPILOG = """\b
Examples:
  ollama-tune runs
  ollama-tune runs --json

\b
With --json one list is printed, newest run first; of each run:
  name, state, stage, step, total_steps, model, path, ollama_name
  loss, validation_loss      of the last step, of the last measurement
  best_loss, best_step       the lowest loss on held-out rows
  exact_match_before, _after from 0 to 1
  advice                     what the curves mean: kind, sign, sentence, advice
  size_bytes, updated        on disk; Unix time of the last event
  trial                      of a sweep: sweep (its name), number, values; or null
"""
COMPARE_EPILOG = """\b
Examples:
  ollama-tune compare RUN OTHER
  ollama-tune compare RUN OTHER --json

\b
With --json one object is printed:
  runs                  name, path, state, figures, advice, validation (loss by
                        step, tokens and seconds) of each
  settings_that_differ  dotted path: the value in each run
  best                  figure: the name of the run that is best in it
  remarks               why figures cannot be compared
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""


@click.command(epilog=RUNS_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def runs(as_json: bool) -> None:
    """List the runs: their state, best held-out loss, size on disk, model, and what their curves mean.

    The runs of a sweep stand together, the best first, each with the values that it tries.
    """
    from ollama_tune.tui.printing import run_rows, runs_lines

    rows = run_rows()
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(runs_lines(rows)))


@click.command(epilog=COMPARE_EPILOG)
@click.argument("names", nargs=-1, metavar="RUN RUN [RUN [RUN]]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compare(names: tuple[str, ...], as_json: bool) -> None:
    """Lay two to four runs side by side: the settings that differ, and what came of them."""
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.tui.comparing import comparison_json, comparison_lines, read_compared

    if not 2 <= len(names) <= MOST:
        raise UsageError(f"{len(names)} runs were named.", "Name two to four: see `ollama-tune runs`.")
    compared = [read_compared(find_run(name)) for name in names]
    if as_json:
        click.echo(json.dumps(comparison_json(compared), indent=2))
        return
    for line in comparison_lines(compared):
        out(line)
