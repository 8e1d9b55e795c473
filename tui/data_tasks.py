"""What the wizard's threads do about data: read it, count its tokens, render a row of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.tui import messages
from ollama_tune.tui.state import BUNDLED
from ollama_tune.tui.tasks import IMPORTING

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Problem, Reading, Row

Progress = Callable[[int, int], None]
LINE = 4096
"""Bytes that are shown of a line that is no row."""
SMALL = 256 << 10
"""Bytes of a file up to which the first page would not come earlier than all rows."""


def first_page(path: str, reading: Mapping[str, Any], progress: Progress) -> messages.DatasetChecked | None:
    """The first rows of a data set, in milliseconds; nothing where all of them are read as fast.

    A data set of the hub is fetched first, with `progress`; where that fails there is nothing to read.
    """
    with IMPORTING:
        from ollama_tune.core.data.load import peek

    remote = path != BUNDLED and not Path(path).is_absolute()
    try:
        if not remote and (path == BUNDLED or 0 < _size(path) < SMALL):
            return None
        profile = peek(path, _reading(path, reading), progress)
    except TuneError as error:
        return messages.DatasetChecked(path, reading, error=error) if remote else None
    return messages.DatasetChecked(path, reading, profile) if profile.rows else None


def _size(path: str) -> int:
    """Bytes of a file; 0 for a folder, and where there is nothing."""
    try:
        return Path(path).stat().st_size if Path(path).is_file() else 0
    except (OSError, ValueError):
        return 0


def check_data(
    path: str, reading: Mapping[str, Any], progress: Progress, cancelled: Callable[[], bool]
) -> messages.DatasetChecked:
    """A data set, read and checked; where that failed its columns come with the reason."""
    with IMPORTING:
        from ollama_tune.core.data.load import peek
        from ollama_tune.core.data.rows.background import scan_in_child

    said = _reading(path, reading)
    try:
        profile = scan_in_child(path, said, progress, cancelled)
        return messages.DatasetChecked(path, reading, _with_news(profile, said))
    except TuneError as error:
        failed = messages.DatasetChecked(path, reading, error=error)
    with contextlib.suppress(TuneError):
        return replace(failed, columns=peek(path, said).columns)
    return failed


def _with_news(profile: DatasetProfile, reading: Reading) -> DatasetProfile:
    """The profile, and the word that the hub has another version of the data by now, where it has."""
    with IMPORTING:
        from ollama_tune.core.data.values import OTHER_VERSION, Problem
        from ollama_tune.core.plan.pins import data_news

    news = data_news(profile.source, reading.revision)
    told = (Problem(OTHER_VERSION, news, profile.total, ()),) if news else ()
    return replace(profile, problems=(*profile.problems, *told))


def _reading(path: str, values: Mapping[str, Any]) -> Reading:
    """What the person said, as the data room takes it; `UsageError` where it makes no sense."""
    with IMPORTING:
        from ollama_tune.core.plan.settings import parse

    section = {name.removeprefix("data."): value for name, value in values.items()}
    return parse({"data": {"path": path} | section}).data.reading()


def measure_sample(
    chat: ChatFormat, profile: DatasetProfile, reading: Mapping[str, Any]
) -> messages.RowsMeasured | None:
    """How long the rows are in tokens, estimated from some of them; nothing where all are counted soon."""
    with IMPORTING:
        from ollama_tune.core.data.chat.options import fit_options
        from ollama_tune.core.data.load import sample_rows
        from ollama_tune.core.data.tokens.lengths import is_encoded, sample_lengths

    chat = fit_options(chat, profile.rows)
    if profile.exact and is_encoded(chat, profile.rows):
        return None
    rows = profile.rows
    if not profile.exact:
        rows = sample_rows(profile.source, _reading(profile.source, reading)) or rows
    lengths = sample_lengths(chat, rows, len(rows) if profile.exact else profile.total)
    if not lengths.tokens:
        return None
    return messages.RowsMeasured(replace(lengths, exact=False), last=False, chat=chat)


def measure(
    chat: ChatFormat, rows: Sequence[Row], progress: Progress, cancelled: Callable[[], bool]
) -> messages.RowsMeasured:
    """The rows in tokens."""
    with IMPORTING:
        from ollama_tune.core.data.chat.options import fit_options
        from ollama_tune.core.data.tokens.encoding import encode_in_child
        from ollama_tune.core.data.tokens.sides import measure_rows, pair_numbers, rejected_rows

    chat = fit_options(chat, rows)
    examples, problems = encode_in_child(chat, rows, progress, cancelled)
    if examples and (pairs := pair_numbers(rows)):
        encode_in_child(chat, rejected_rows(rows, pairs), progress, cancelled)
    if examples:
        return messages.RowsMeasured(measure_rows(chat, rows, examples), tuple(problems), chat=chat)
    reason = problems[0].text if problems else "There is no usable row."
    error = TuneError(f"No row can be trained on: {reason}", "Use other data or another model.")
    return messages.RowsMeasured(None, tuple(problems), error)


def rows_of(profile: DatasetProfile, problem: Problem) -> Sequence[Row]:
    """The rows that have a problem, the first few where it is one of rendering, or the lines of the file
    where none of them is a row."""
    with IMPORTING:
        from ollama_tune.core.data.load import profile_rows

    found = profile_rows(profile, problem.kind)
    if found or problem in profile.problems:
        return found or _raw_lines(profile.source, problem.lines)
    lines = set(problem.lines)
    return [row for row in profile.rows if row.line in lines]


def _raw_lines(path: str, numbers: Sequence[int]) -> list[Row]:
    """Lines of a file as they stand there; nothing of a folder or of a file that has no lines."""
    with IMPORTING:
        from ollama_tune.core.data.files.source import byte_lines, open_source
        from ollama_tune.core.data.problems import ProblemLog
        from ollama_tune.core.data.values import Message, Row

    wanted, file = set(numbers), Path(path)
    if not wanted or not file.is_file():
        return []
    source, found = open_source(file), []
    if source.table:
        return []
    for number, line in enumerate(islice(byte_lines(source, ProblemLog()), max(wanted)), 1):
        if number in wanted:
            text = bytes(line[:LINE]).decode("utf-8", "replace").rstrip("\r\n")
            found.append(Row((Message("user", text),), number, file=file.name))
    return found


def render_row(chat: ChatFormat, row: Row, limit: int = 0) -> messages.RowRendered:
    """One row as the model sees it, with what becomes of one of more than `limit` tokens.

    A piece of a record that is no row is shown as it is.
    """
    with IMPORTING:
        from ollama_tune.core.data.chat import mask, notes  # noqa: F401
        from ollama_tune.core.data.tokens import shorten  # noqa: F401
        from ollama_tune.tui.data_report import seen_by, worse_of

    if all(message.role == "user" for message in row.messages):
        return messages.RowRendered(row)
    try:
        return messages.RowRendered(row, *seen_by(chat, row, limit), rejected=worse_of(chat, row))
    except TuneError as error:
        return messages.RowRendered(row, error=error)
