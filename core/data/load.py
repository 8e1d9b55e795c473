"""Loads a data file into canonical rows, with everything that was found on the way."""

from __future__ import annotations

from pathlib import Path

from ollama_tune.core.data.detect import ACCEPTED, KNOWN, Detector, Unusable
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.read import Items, read_items
from ollama_tune.core.data.tidy import tidy, warn_if_few
from ollama_tune.core.data.values import DatasetProfile, Message, Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import asset
from ollama_tune.core.text import one_line

BUNDLED = "bundled"


def dataset_path(path: str) -> Path:
    """The file that a setting's text names: `bundled` is the shipped data set, `~` the home folder."""
    if path == BUNDLED:
        return asset("data/tickets.jsonl")
    if not path.strip():
        raise TuneError("No data file is chosen.", "Choose a file of examples.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise TuneError(f"There is no home folder for {path}.", "Give the whole path.") from error


def load_dataset(path: str) -> DatasetProfile:
    """Read, recognise, tidy and de-duplicate; rows keep the order of the file.

    Raises `TuneError` when there is no such file, it cannot be read, or no row in it can be used.
    """
    file = dataset_path(path)
    log, detector = ProblemLog(), Detector()
    items = read_items(file, log, KNOWN)
    rows, total = _collect(items, detector, log)
    total += sum(problem.count for problem in log.problems() if problem.kind in ("bad-line", "open-quote"))
    if not rows:
        raise _nothing(file, total, detector, log)
    warn_if_few(len(rows), log)
    return DatasetProfile(
        source=path,
        format=items.format,
        schema=detector.schema,
        encoding=items.encoding,
        rows=tuple(rows),
        total=total,
        problems=log.problems(),
    )


def _collect(items: Items, detector: Detector, log: ProblemLog) -> tuple[list[Row], int]:
    rows: dict[tuple[Message, ...], Row] = {}
    total = 0
    for item in items.stream:
        total += 1
        try:
            messages = tidy(detector.convert(item.value, item.line, log), item.line, log)
        except Unusable as reason:
            log.set_aside(reason.kind, reason.text, item.line)
            continue
        if messages in rows:
            log.set_aside(
                "duplicate", "A row that stands earlier in the file already was dropped.", item.line
            )
        else:
            rows[messages] = Row(messages, item.line)
    return list(rows.values()), total


def _nothing(file: Path, total: int, detector: Detector, log: ProblemLog) -> TuneError:
    if total == 0:
        return TuneError(f"{file} holds no row.", "Choose another file.")
    if detector.unknown and not detector.schemas:
        names = detector.unknown.most_common(1)[0][0]
        listed = one_line(", ".join(map(str, names)), 200)
        return TuneError(
            f"The columns of {file.name} are not known: {listed}.", f"Rename them; accepted are: {ACCEPTED}."
        )
    worst = log.problems()[0]
    where = f" (first in line {worst.lines[0]})" if worst.lines else ""
    return TuneError(
        f"None of the {total:,} rows of {file.name} can be used. {worst.text.rstrip('.')}{where}.",
        "Correct the file or choose another one.",
    )
