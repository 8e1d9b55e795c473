"""Rows as token ids: held in memory, mapped from a file of the cache folder, or a choice of either.

A file holds, for each example, its ids (32 bit each) and one byte a token that tells whether it is trained;
then the places, lengths, rows and lines of all examples, and a JSON note. It is named by what decides its
content, so a second call finds it, and memory stays flat for any number of rows.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

from ollama_tune.core.data.values import Example, Problem
from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import atomic_file
from ollama_tune.core.paths import cache_dir

MAGIC = b"OTUNTOK1"
KEPT_FILES = 24
KEPT_BYTES = 12 << 30
"""The cache holds at most that much; the files unused for longest go first."""
_TABLES = ("Q", "Q", "I", "I", "I", "I")
_TAIL = struct.Struct("<QQ8s")


class Examples(Sequence[Example]):
    """Examples of which lengths can be had without reading them.

    `counts` are their tokens, `trained` the trained ones, `rows` the number (from 0) of the row that each
    comes from; a row may give several. A name (`key`) is empty where the content has none. `sides` are the
    single rows where each example is a pair of two.
    """

    key: str = ""
    sides: Examples | None = None
    counts: Sequence[int]
    trained: Sequence[int]
    rows: Sequence[int]

    @abstractmethod
    def raw(self, index: int) -> tuple[bytes, bytes]:
        """The ids (32 bit, native) and a byte a token, 1 where it is trained."""

    @abstractmethod
    def get(self, index: int) -> Example:
        """One example; `index` is not negative."""

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        found = range(len(self))[index]
        return [self.get(i) for i in found] if isinstance(found, range) else self.get(found)

    @cached_property
    def supervised(self) -> Sequence[int]:
        """How many tokens of each are learned; nothing stands before the first to predict it from."""
        return array("I", (count - self.raw(i)[1][0] for i, count in enumerate(self.trained)))


class Held(Examples):
    """Examples in memory, with their texts."""

    def __init__(self, examples: Sequence[Example], rows: Sequence[int] | None = None) -> None:
        self._examples = examples
        self.counts = array("I", (len(example.ids) for example in examples))
        self.trained = array("I", (sum(example.trained) for example in examples))
        self.rows = range(len(examples)) if rows is None else rows

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """As of every kind."""
        example = self._examples[index]
        return array("I", example.ids).tobytes(), bytes(example.trained)

    def get(self, index: int) -> Example:
        """As of every kind."""
        return self._examples[index]


class Stored(Examples):
    """Examples in the bytes of a file; their `text` and `offsets` are empty."""

    def __init__(self, block: bytes | mmap.mmap, key: str = "") -> None:
        """Raises `ValueError` where the bytes are not a whole store."""
        self.key = key
        self._bytes = memoryview(block)
        note_size, count, magic = _TAIL.unpack(self._bytes[-_TAIL.size :])
        note_end = len(self._bytes) - _TAIL.size
        sizes = [count * array(kind).itemsize for kind in _TABLES]
        start = note_end - note_size - sum(sizes)
        if magic != MAGIC or start < len(MAGIC) or bytes(self._bytes[: len(MAGIC)]) != MAGIC:
            raise ValueError("not a whole store of tokens")
        tables = []
        for kind, size in zip(_TABLES, sizes, strict=True):
            tables.append(self._bytes[start : start + size].cast(cast(Any, kind)))
            start += size
        self._places, self.lines, self.counts, self.trained, self._first, self.rows = tables
        self.note: dict[str, Any] = json.loads(bytes(self._bytes[start:note_end]))

    @property
    def problems(self) -> list[Problem]:
        """What was met when the rows were encoded."""
        found = self.note["problems"]
        return [Problem(**problem | {"lines": tuple(problem["lines"])}) for problem in found]

    @cached_property
    def supervised(self) -> Sequence[int]:
        """How many tokens of each are learned."""
        return array("I", (count - first for count, first in zip(self.trained, self._first, strict=True)))

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """As of every kind."""
        start, count = self._places[index], self.counts[index]
        middle, end = start + 4 * count, start + 5 * count
        return bytes(self._bytes[start:middle]), bytes(self._bytes[middle:end])

    def get(self, index: int) -> Example:
        """As of every kind."""
        ids, trained = self.raw(index)
        return Example("", tuple(array("I", ids)), tuple(map(bool, trained)), (), self.lines[index])


class Picked(Examples):
    """Examples chosen from others, in an order of their own; `places` are (source, index)."""

    def __init__(self, sources: Sequence[Examples], places: Sequence[tuple[int, int]]) -> None:
        self._sources = sources
        self._which = bytes(source for source, _ in places)
        self._where = array("I", (index for _, index in places))
        self.counts = array("I", (sources[source].counts[index] for source, index in places))
        self.trained = array("I", (sources[source].trained[index] for source, index in places))
        self.rows = array("I", (sources[source].rows[index] for source, index in places))

    @cached_property
    def supervised(self) -> Sequence[int]:
        """How many tokens of each are learned."""
        pairs = zip(self._which, self._where, strict=True)
        return array("I", (self._sources[source].supervised[index] for source, index in pairs))

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """As of every kind."""
        return self._sources[self._which[index]].raw(self._where[index])

    def get(self, index: int) -> Example:
        """As of every kind."""
        return self._sources[self._which[index]].get(self._where[index])


def counted(examples: Sequence[Example]) -> Examples:
    """The examples, with their lengths at hand."""
    return examples if isinstance(examples, Examples) else Held(examples)


class Writer:
    """Takes examples one by one and writes them to a file; only their places stay in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tables = [array(kind) for kind in _TABLES]
        self._at = file.write(MAGIC)

    def add(self, example: Example, row: int) -> None:
        """The next example, of a row."""
        trained = bytes(example.trained)
        facts = (self._at, example.line, len(example.ids), sum(trained), trained[0] if trained else 0, row)
        for table, fact in zip(self._tables, facts, strict=True):
            table.append(fact)
        self._at += self._file.write(array("I", example.ids).tobytes() + trained)

    def finish(self, problems: Sequence[Problem]) -> None:
        """Write what comes after the last example."""
        for table in self._tables:
            self._file.write(table.tobytes())
        note = json.dumps({"problems": [asdict(problem) for problem in problems]}).encode()
        self._file.write(note + _TAIL.pack(len(note), len(self._tables[0]), MAGIC))


Write = Callable[[Callable[[Example, int], None]], Sequence[Problem]]
"""Gives its examples, each with the number of its row, to a function; returns the problems met."""


def store(key: str, write: Write) -> tuple[Examples, list[Problem]]:
    """What `write` gives: from the cache, written there first if need be; in memory where that fails."""
    found = find(key)
    if found is None:
        with contextlib.suppress(OSError, TuneError):
            path = _path(key)
            with atomic_file(path) as file:
                writer = Writer(file)
                writer.finish(write(writer.add))
            _forget_old(path)
            found = find(key)
    return (found, found.problems) if found is not None else hold(write)


def hold(write: Write) -> tuple[Examples, list[Problem]]:
    """What `write` gives, in memory."""
    examples, rows = [], array("I")

    def add(example: Example, row: int) -> None:
        examples.append(example)
        rows.append(row)

    problems = write(add)
    return Held(examples, rows), list(problems)


def find(key: str) -> Stored | None:
    """What was written under that name; None where nothing whole is there."""
    try:
        path = _path(key)
        with path.open("rb") as file:
            block = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = Stored(block, key)
        os.utime(path)
    except (OSError, TuneError, ValueError, KeyError, struct.error):
        return None
    return found


def can_keep() -> bool:
    """Whether a file can be written to the cache."""
    try:
        return os.access(_path("").parent, os.W_OK | os.X_OK)
    except (OSError, TuneError):
        return False


def _path(key: str) -> Path:
    folder = cache_dir() / "tokens"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{key}.tokens"


def _forget_old(newest: Path) -> None:
    """Keep the cache within its bounds; a file in use lives on until its last reader ends."""
    total = 0
    for number, (path, size) in enumerate(_by_age(newest.parent)):
        total += size
        if path != newest and (number >= KEPT_FILES or total > KEPT_BYTES):
            with contextlib.suppress(OSError):
                path.unlink()


def _by_age(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files and their sizes, the last used first."""
    with contextlib.suppress(OSError):
        files = [(path.stat().st_mtime, path, path.stat().st_size) for path in folder.glob("*.tokens")]
        yield from ((path, size) for _, path, size in sorted(files, reverse=True))
