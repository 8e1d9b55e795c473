"""`ollama-tune data`: what a data set holds and what will be learned of it, without training anything."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.shell import out

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Reading
    from ollama_tune.tui.data_report import Report, RowView

PARTS = ("question", "answer", "system", "context", "text", "label", "conversation", "chosen", "rejected")
FORMS = ("chat", "classification", "text")
_NEXT_LABEL = re.compile(r",(?=[^,=]+=)")
EXACT_UP_TO = 20_000
"""More rows than these are measured by a sample."""

EPILOG = """\b
Examples:
  ollama-tune data rows.jsonl --model Qwen/Qwen3-4B-Instruct-2507
  ollama-tune data table.csv --columns question=Frage,answer=Antwort
  ollama-tune data texts.csv --labels 0=negative,1=positive
  ollama-tune data rows.jsonl --row 12 --json

\b
With --json one object is printed:
  outcome    `ok`; an error is {"outcome": "error", "code", "what", "fix"}
  format, schema, encoding, rows, usable
  first      role and content of each message of the first usable row
  warnings   sentences, with line numbers
  problems   kind, text, count, lines, severity, switchable
  questions  what the file leaves open: kind, text, options, taken; settings: of
             each option, as a run.yaml and --set take them
  columns    name, samples, part;  labels
  lengths    tokens of the rows (with --model)
  row        messages, notes, examples: text, ids, trained (with --row); of a pair
             of answers also rejected, the messages with the worse one

The exit status is 0, 1 when nothing can be trained on, 2 for wrong usage.
"""


@click.command(epilog=EPILOG)
@click.argument("file")
@click.option("--model", help="Count tokens as this model: `bundled`, a folder or a hub id.")
@click.option("--columns", multiple=True, metavar="PART=NAME,…", help=f"Parts: {', '.join(PARTS)}.")
@click.option("--labels", multiple=True, metavar="VALUE=NAME,…", help="Names of labels that are numbers.")
@click.option("--form", type=click.Choice(FORMS), help="What the rows are; default: told by their content.")
@click.option("--split", default="", help="The split (or file of a folder) to train on.")
@click.option("--validation", default="", help="The split (or file) to measure on.")
@click.option("--subset", default="", help="The configuration of a hub data set that has several.")
@click.option("--revision", default="", help="Branch, tag or commit of a hub data set.")
@click.option("--include", multiple=True, metavar="KIND", help="Use the rows of this kind of problem.")
@click.option("--exclude", multiple=True, metavar="KIND", help="Leave out the rows of this kind of problem.")
@click.option("--row", type=click.IntRange(min=1), metavar="N", help="Show the exact text of row N.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def data(file: str, model: str | None, row: int | None, as_json: bool, **options: Any) -> None:
    """Say what a file, a folder or a hub data set holds, and what would be learned of it.

    Nothing is asked: what a file leaves open is answered the likeliest way, and said.
    """
    from ollama_tune.tui import data_report

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        report = make_report(file, _reading(**options), model, row)
        text = json.dumps(data_report.as_json(report), indent=2) if as_json else ""
    if as_json:
        out(text)
        return
    _print_anything()
    for line in data_report.lines(report):
        out(line)


def make_report(file: str, reading: Reading, model: str | None, number: int | None) -> Report:
    """Read a data set; with a model also measure its rows, and render the row with that number."""
    from ollama_tune.core.data.chat.options import fit_options
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.tui.data_report import Report

    profile = load_dataset(file, reading)
    report = Report(profile)
    if number is not None and number > profile.usable:
        raise UsageError(
            f"There is no row {number:,}.", f"Give a number from 1 to {profile.usable:,}: the usable rows."
        )
    if model is None and number is None:
        return report
    chat = fit_options(_chat(model or "bundled"), profile.rows)
    if model is not None:
        report = _measured(report, chat)
    return report if number is None else replace(report, view=_view(chat, profile, number))


def _reading(columns: tuple[str, ...], labels: tuple[str, ...], form: str | None, **others: Any) -> Reading:
    from ollama_tune.core.data.schemas.columns import ALIASES
    from ollama_tune.core.data.values import Reading

    parts = {*PARTS, *ALIASES}
    next_part = re.compile(rf",(?=(?:{'|'.join(sorted(parts))})=)")
    pairs = [_column(pair, parts) for text in columns for pair in next_part.split(text)]
    named = {value: name for text in labels for value, name in map(_label, _NEXT_LABEL.split(text))}
    return Reading(
        columns=tuple(sorted(pairs)), labels=tuple(sorted(named.items())), form=form or "", **others
    )


def _column(text: str, parts: Container[str]) -> tuple[str, str]:
    part, equals, name = text.partition("=")
    if not equals or part not in parts or not name:
        raise UsageError(
            f"--columns {text!r} cannot be read.",
            f"Write PART=NAME, such as question=Frage; the parts are {', '.join(PARTS)}.",
        )
    return part, name


def _label(text: str) -> tuple[str, str]:
    value, _, name = (part.strip() for part in text.partition("="))
    if not value or not name:
        raise UsageError(
            f"--labels {text!r} cannot be read.", "Write VALUE=NAME, such as 0=negative,1=positive."
        )
    return value, name


def _chat(model: str) -> ChatFormat:
    """The chat form of a model; its weights need not be there."""
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.models.chat_templates import chosen_template
    from ollama_tune.core.models.describe import describe

    folder = Path(model).expanduser()
    if not (folder / "tokenizer.json").is_file():
        folder = describe(model, None).folder
    return ChatFormat.from_folder(folder, template=chosen_template(folder, None))


def _measured(report: Report, chat: ChatFormat) -> Report:
    """Lengths of all rows, or of a sample of very many; `TuneError` where the model takes none of them."""
    from ollama_tune.core.data.tokens.lengths import encode_rows, sample_lengths
    from ollama_tune.core.data.tokens.sides import measure_rows

    rows = report.profile.rows
    if len(rows) > EXACT_UP_TO:
        return replace(report, lengths=sample_lengths(chat, rows, len(rows)))
    examples, problems = encode_rows(chat, rows)
    if not examples:
        reason = problems[0].text if problems else ""
        raise TuneError(f"No row can be trained on: {reason}", "Use other data or another model.")
    return replace(report, lengths=measure_rows(chat, rows, examples), problems=tuple(problems))


def _view(chat: ChatFormat, profile: DatasetProfile, number: int) -> RowView:
    from ollama_tune.tui.data_report import RowView, seen_by, worse_of

    row = profile.rows[number - 1]
    return RowView(number, row, *seen_by(chat, row), worse_of(chat, row))


def _print_anything() -> None:
    """A terminal whose encoding lacks a character shows a question mark instead."""
    with contextlib.suppress(AttributeError, OSError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
