"""Reads a data set from its first record to its last, once, and writes its rows to a store."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ollama_tune.core.data.files.read import Item, Items, read_items
from ollama_tune.core.data.files.sample import Sample, sample_items
from ollama_tune.core.data.files.splits import pick, split_in
from ollama_tune.core.data.problems import ProblemLog, RowLog
from ollama_tune.core.data.rows import cache
from ollama_tune.core.data.rows.clean import TEXTS, findings
from ollama_tune.core.data.rows.keys import keys_of
from ollama_tune.core.data.rows.rated import BadAnswer, Rated
from ollama_tune.core.data.rows.store import FINDINGS, HELD_OUT, PAIR, Store, Writer
from ollama_tune.core.data.schemas.detect import ACCEPTED, KNOWN, Detector, Unusable
from ollama_tune.core.data.schemas.preferences import other_side
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.data.values import Option, Question, Reading, Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import atomic_file
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.data.rows.wholes import Found

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

NEWS_EVERY = 0.1
"""Seconds between two calls of it."""
MOST_KINDS = 61
"""Kinds of findings that have a bit of their own in a row."""
BY_DESIGN = 0.5
"""A finding of more than this share of the rows belongs to the task: one letter answers a choice of four."""
_DESIGNED = frozenset(("short-answer", "echo"))
SAMPLE = 500
"""Records from all over the data set that are looked at before the first is converted."""
DROPPED = ("duplicate",)
"""Kinds whose rows are left out unless a person includes them."""


def scan(path: Path, reading: Reading, where: Path, progress: Progress | None = None) -> Store:
    """Read all of a file or folder into a store in the folder `where`.

    Raises `TuneError` when it cannot be read, when no row can be used, or when the disk is full; nothing is
    left of the store then. A file that changes meanwhile is read as it was met, and that is told.
    """
    files = cache.identity(path)
    target = where / f"{cache.name_of(files, reading)}.rows"
    try:
        with atomic_file(target) as out, tempfile.TemporaryFile() as aside:
            _Scan(path, reading, files, progress).write(out, Rated(aside))
    except OSError as error:
        reason = error.strerror or str(error)
        raise TuneError(
            f"The rows of {path.name} cannot be kept in {where}: {reason}.",
            "Make room there, or set OLLAMA_TUNE_HOME to another folder.",
            details=repr(error),
        ) from error
    cache.prune(where, target)
    return Store(target)


class _Scan:
    def __init__(
        self, path: Path, reading: Reading, files: cache.Identity, progress: Progress | None
    ) -> None:
        self._path, self._reading, self._files, self._progress = path, reading, files, progress
        self._bytes = sum(file[1] for file in files)
        self._began = time.time()

    def write(self, out: BinaryIO, rated: Rated) -> None:
        """All rows, twice where only all of them tell what their labels are, or which answers are pairs."""
        detector, sample = detector_for(self._path, self._reading)
        while True:
            pass_ = _Pass(self._path, self._reading, detector, Writer(out), rated)
            pass_.read(lambda rows: self._told(rows / max(sample.rows_estimate, 1)))
            again = detector.revised()
            if again is not None:
                rated.restart()
            elif rated.match():
                again = detector.again()
            else:
                break
            detector = again
            out.seek(0)
            out.truncate()
        if cache.identity(self._path) != self._files:
            text = "The data changed while it was read; read it again once it is complete."
            pass_.log.warn("changed", text)
        pass_.finish(self._began)

    def _told(self, share: float) -> None:
        if self._progress is not None:
            self._progress(int(min(share, 1.0) * self._bytes), self._bytes)


def detector_for(path: Path, reading: Reading) -> tuple[Detector, Sample]:
    """A detector that has looked all over the data set, for what a single record cannot tell; and at what."""
    split, validation = reading.split, reading.validation
    sample = sample_items(path, SAMPLE, columns=KNOWN, split=split, validation=validation)
    return Detector(reading, [item.value for item in (*sample.first, *sample.some)]), sample


def open_dataset(path: Path, reading: Reading, log: ProblemLog) -> Items:
    """The records of the splits that a person chose."""
    return read_items(path, log, KNOWN, split=reading.split, validation=reading.validation)


class Checked(NamedTuple):
    """A record as a row, its label if it has one, and whether its answer is marked as good."""

    row: Row
    label: str | None
    good: bool


def checked_row(item: Item, detector: Detector, log: ProblemLog) -> Checked:
    """A record as a row; what is found goes into the log. Raises `Unusable`, with the row where its answer is
    marked as bad (`BadAnswer`)."""
    found = detector.convert(item.value, item.line, log)
    if found.good is False:
        messages = tidy(found.messages, item.line, ProblemLog())
        raise BadAnswer(Row(messages, item.line, found.tools, item.file, item.held_out))
    messages = tidy(found.messages, item.line, log)
    for kind in findings(messages, found.label is not None):
        log.warn(kind, TEXTS[kind], item.line)
    rejected = other_side(messages, found, item.line, log)
    row = Row(messages, item.line, found.tools, item.file, item.held_out, rejected)
    return Checked(row, found.label, bool(found.good))


def questions_of(detector: Detector, splits: Sequence[str], reading: Reading) -> tuple[Question, ...]:
    """What the data leaves open; of splits only where one that could be learned is not."""
    if not splits:
        return detector.questions
    picked = pick(splits, reading.split, reading.validation, ProblemLog())
    unused = [name for name in splits if picked.of(name) is None]
    if all(split_in(name) in ("validation", "test") for name in unused):
        return detector.questions
    names = sorted(splits, key=lambda name: name != picked.training)
    options = tuple(Option(one_line(name, 80), replace(reading, split=name)) for name in names)
    text = "The data has several parts. Which of them is learned?"
    return (Question("split", text, options), *detector.questions)


class _Pass:
    """One reading of all records."""

    def __init__(
        self, path: Path, reading: Reading, detector: Detector, writer: Writer, rated: Rated
    ) -> None:
        from ollama_tune.core.data.rows.wholes import Wholes

        self.log = RowLog()
        self._path, self._reading, self._detector, self._writer = path, reading, detector, writer
        self._rated = rated
        self._items = open_dataset(path, reading, self.log)
        self._wholes = Wholes()
        self._kinds: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._unusable = self._read = 0

    def read(self, told: Callable[[int], None]) -> None:
        """Take every record; `told` hears now and then how many were read."""
        news = time.monotonic()
        for item in self._items.stream:
            self._read += 1
            try:
                self._take(item)
            except Unusable as reason:
                self._unusable += 1
                self.log.take(item.line)
                self.log.set_aside(reason.kind, reason.text, item.line, sample=_sample(item.value))
            if self._read % 64 == 0 and time.monotonic() - news > NEWS_EVERY:
                news = time.monotonic()
                told(self._read)

    def _take(self, item: Item) -> None:
        try:
            row, name, good = checked_row(item, self._detector, self.log)
        except BadAnswer as bad:
            self._rated.bad(bad)
            return
        if good:
            row = self._rated.good(row, self.log)
        keys = keys_of(row.messages, row.tools, row.rejected)
        bits = (HELD_OUT if row.held_out else 0) | (PAIR if row.rejected else 0)
        for kind in self.log.take(row.line):
            bits |= self._bit(kind)
        label = 0 if name is None else _place(self._labels, name) + 1
        characters = sum([len(message.content) + len(message.reasoning) for message in row.messages])
        self._writer.add(row, keys, bits, _place(self._files, row.file), label, characters)
        self._wholes.add(row, keys)

    def _bit(self, kind: str) -> int:
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            return 0
        return FINDINGS << _place(self._kinds, kind)

    def finish(self, began: float) -> None:
        """Judge the whole and write what is known of it."""
        writer, log = self._writer, self.log
        total = self._read + log.set_aside_count - self._unusable
        if not len(writer):
            raise self._nothing(total)
        self._detector.finish(log)
        for found in self._wholes.findings(writer, bool(self._detector.labels)):
            self._tell(found)
        self._forget_designed()
        questions = questions_of(self._detector, self._items.splits, self._reading)
        header = {
            "began": began,
            "format": self._items.format,
            "encoding": self._items.encoding,
            "schema": self._detector.schema,
            "total": total,
            "files": list(self._files),
            "row_labels": list(self._labels),
            "labels": self._detector.labels,
            "kinds": list(self._kinds),
            "problems": [asdict(problem) for problem in log.problems(self._kinds)],
            "samples": log.samples(),
            "questions": [asdict(question) for question in questions],
            "columns": [asdict(column) for column in self._detector.columns],
            "scripts": self._wholes.scripts.shares(),
        }
        writer.finish(header)

    def _tell(self, found: Found) -> None:
        places = found.places
        count = len(places) or found.count
        if not count:
            return
        lines, bits = self._writer.columns["line"], self._writer.columns["bits"]
        self.log.add(found.kind, found.text, count, (lines[at] for at in places[:5]), found.severity)
        if len(places):
            bit = self._bit(found.kind)
            for at in places.tolist():
                bits[at] |= bit

    def _forget_designed(self) -> None:
        """What more than half of the rows have is no slip."""
        for problem in self.log.problems():
            if problem.kind in _DESIGNED and problem.count > BY_DESIGN * len(self._writer):
                self.log.remove(problem.kind)
                mask = ~self._bit(problem.kind) & (2**64 - 1)
                bits = self._writer.columns["bits"]
                self._writer.columns["bits"] = array("Q", (entry & mask for entry in bits))

    def _nothing(self, total: int) -> TuneError:
        path, detector = self._path, self._detector
        if total == 0:
            return TuneError(f"{path} holds no row.", "Choose another file.")
        if detector.unknown and not detector.schemas:
            names = detector.unknown.most_common(1)[0][0]
            listed = one_line(", ".join(map(str, names)), 200)
            return TuneError(
                f"The columns of {path.name} are not known: {listed}.",
                f"Rename them; accepted are: {ACCEPTED}.",
            )
        worst = self.log.problems()[0]
        where = f" (first in line {worst.lines[0]})" if worst.lines else ""
        return TuneError(
            f"None of the {total:,} rows of {path.name} can be used. {worst.text.rstrip('.')}{where}.",
            "Correct the file or choose another one.",
        )


def _place(places: dict[str, int], name: str) -> int:
    return places.setdefault(name, len(places))


def _sample(value: Any) -> str:
    return str(value)[:1000] if isinstance(value, (dict, list, str)) else str(value)
