"""Loads a data set into canonical rows, with everything that was found on the way."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ollama_tune.core.data.files.hub import resolve_data
from ollama_tune.core.data.files.read import Item
from ollama_tune.core.data.files.sample import sample_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows import cache
from ollama_tune.core.data.rows.scan import (
    DROPPED,
    SAMPLE,
    Progress,
    checked_row,
    detector_for,
    open_dataset,
    questions_of,
    scan,
)
from ollama_tune.core.data.rows.store import FINDINGS, Store, StoredRows
from ollama_tune.core.data.schemas.detect import KNOWN, Detector, Unusable
from ollama_tune.core.data.schemas.tidy import warn_if_few
from ollama_tune.core.data.values import (
    Column,
    DatasetProfile,
    Message,
    Option,
    Problem,
    Question,
    Reading,
    Row,
)
from ollama_tune.core.errors import TuneError

FIRST_PAGE = 50
"""Rows that are shown before all are read."""


def load_dataset(
    path: str, reading: Reading | None = None, progress: Progress | None = None
) -> DatasetProfile:
    """All rows of a file, folder or hub data set, read, recognised, tidied, checked and kept in the cache.

    Rows keep the order of the file and stay on disk. A second call finds them there, whatever it includes or
    excludes. `progress` is called with (bytes done, bytes in all). Raises `TuneError` when there is no such
    data set, it cannot be read, or no row in it can be used.
    """
    reading = reading or Reading()
    store = stored(path, reading, cache.folder(), progress)
    return profile_of(store, path, reading)


def stored(path: str, reading: Reading, where: Path, progress: Progress | None = None) -> Store:
    """The rows of a data set in a file of the folder `where`, written now unless it is there already."""
    file = resolve_data(path, reading, progress)
    return cache.find(cache.identity(file), reading, where) or scan(file, reading, where, progress)


def peek(path: str, reading: Reading | None = None, progress: Progress | None = None) -> DatasetProfile:
    """What the beginning of a data set tells, within milliseconds for any size that is on this machine.

    `rows` are the usable ones of the first 50, perhaps none, and `total` is estimated; all is exact, as from
    `load_dataset`, where the rows are in the cache. `progress` hears of a download. Raises `TuneError` when
    it cannot be read.
    """
    reading = reading or Reading()
    file = resolve_data(path, reading, progress)
    store = cache.find(cache.identity(file), reading, cache.folder())
    if store is not None:
        return profile_of(store, path, reading)
    log = ProblemLog()
    detector, sample = detector_for(file, reading)
    items = open_dataset(file, reading, log)
    return DatasetProfile(
        source=path,
        rows=tuple(_rows(islice(items.stream, FIRST_PAGE), detector, log)),
        format=items.format,
        schema=detector.schema,
        encoding=items.encoding,
        total=sample.rows_estimate,
        problems=log.problems(),
        questions=questions_of(detector, items.splits, reading),
        columns=detector.columns,
        labels=detector.labels,
        exact=False,
    )


def sample_rows(path: str, reading: Reading | None = None, count: int = 2000) -> list[Row]:
    """Rows from random places all over a data set, to estimate from; about `count`, fewer of a small one.

    Their line is 0 where nobody counted up to them. Raises `TuneError` when the data set cannot be read.
    """
    reading = reading or Reading()
    file = resolve_data(path, reading)
    sample = sample_items(file, count, columns=KNOWN, split=reading.split, validation=reading.validation)
    values = [item.value for item in sample.some]
    return list(_rows(sample.some, Detector(reading, values[:SAMPLE]), ProblemLog()))


def _rows(items: Iterable[Item], detector: Detector, log: ProblemLog) -> Iterator[Row]:
    for item in items:
        try:
            yield checked_row(item, detector, log)[0]
        except Unusable as reason:
            log.set_aside(reason.kind, reason.text, item.line)


def profile_of(store: Store, source: str, reading: Reading) -> DatasetProfile:
    """What a store holds, seen with a person's choice of what to include and exclude."""
    header = store.header
    kinds = {kind: FINDINGS << at for at, kind in enumerate(header["kinds"])}
    out = {kind for kind in kinds if kind in DROPPED and kind not in reading.include}
    out |= {kind for kind in kinds if kind in reading.exclude}
    rows = StoredRows(store, _places(store, sum(kinds[kind] for kind in out)))
    if not len(rows):
        listed = ", ".join(sorted(out))
        raise TuneError(
            f"All rows of {source} are left out, because of {listed}.", "Leave out fewer of them."
        )
    return DatasetProfile(
        source=source,
        format=header["format"],
        schema=header["schema"],
        encoding=header["encoding"],
        rows=rows,
        total=header["total"],
        problems=_problems(header["problems"], set(kinds), out, len(rows)),
        questions=tuple(_question(question, reading) for question in header["questions"]),
        columns=tuple(Column(c["name"], tuple(c["samples"]), c["part"]) for c in header["columns"]),
        labels=tuple(header["labels"]),
        scripts=tuple((script, share) for script, share in header["scripts"]),
    )


def profile_rows(profile: DatasetProfile, kind: str) -> Sequence[Row]:
    """The rows that have a problem of this kind, those that are left out among them.

    Of records that could not be read as rows there is a short visible piece of the first few, as a single
    message. Empty where the problem is not one of rows.
    """
    if not isinstance(profile.rows, StoredRows):
        lines = {line for problem in profile.problems if problem.kind == kind for line in problem.lines}
        return [row for row in profile.rows if row.line in lines]
    store = profile.rows.store
    samples = store.header["samples"].get(kind, [])
    if samples:
        return [Row((Message("user", text),), line) for line, text in samples]
    if kind not in store.header["kinds"]:
        return ()
    bit = FINDINGS << store.header["kinds"].index(kind)
    return StoredRows(store, array("I", [at for at, bits in enumerate(store.column("bits")) if bits & bit]))


def _places(store: Store, out: int) -> Sequence[int]:
    bits = store.column("bits")
    kept = array("I", [at for at, entry in enumerate(bits) if not entry & out]) if out else range(len(bits))
    return kept if len(kept) < len(bits) else range(len(bits))


def _problems(
    found: list[dict[str, Any]], row_kinds: set[str], out: set[str], rows: int
) -> tuple[Problem, ...]:
    """The problems of a store; the rows of the kinds in `out` are set aside, those of other kinds kept."""
    log = ProblemLog()
    warn_if_few(rows, log)
    problems = [Problem(**entry | {"lines": tuple(entry["lines"])}) for entry in found]
    told = [
        replace(problem, switchable=True, severity="error" if problem.kind in out else "warning")
        if problem.kind in row_kinds
        else problem
        for problem in problems
    ]
    return tuple(
        sorted((*told, *log.problems()), key=lambda problem: (problem.severity != "error", -problem.count))
    )


def _question(question: dict[str, Any], reading: Reading) -> Question:
    """The options keep what this reading includes and excludes."""
    options = [
        Option(option["label"], _reading(option["reading"], reading)) for option in question["options"]
    ]
    return Question(question["kind"], question["text"], tuple(options))


def _reading(fields: dict[str, Any], chosen: Reading) -> Reading:
    return replace(Reading.of(fields), include=chosen.include, exclude=chosen.exclude)
