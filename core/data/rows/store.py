"""Rows in one file on disk: a JSON line a row, then columns of numbers, then what is known of all rows.

The file is written once, under a temporary name, and never changed after that. A row is read when it is
looked at, so that a million rows take no memory; the columns are mapped into memory, not read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

from ollama_tune.core.data.rows.keys import Keys
from ollama_tune.core.data.values import Message, Row, ToolCall
from ollama_tune.core.errors import TuneError

COLUMNS = {
    "offset": "Q",
    "bits": "Q",
    "question": "Q",
    "conversation": "Q",
    "line": "I",
    "file": "I",
    "group": "I",
    "label": "I",
    "characters": "I",
}
"""Name and type code (`array`) of each column: where the row's line begins (one entry more than rows), its
findings, hashes of its question and conversation, its line and file, the cluster of its near-duplicates and
its label (0: none), and how long its texts are."""

HELD_OUT, PAIR, FINDINGS = 1, 2, 4
"""The first of the `bits`: a row of a validation split, a pair of answers, and then the kinds of findings."""

_TRAILER = struct.Struct("<QQ8s")
_MAGIC = b"OTROWS\x02\n"
_BLOCK = 256
_NEAR = 4 << 20
_LARGEST = 2**32 - 1


class Damaged(Exception):
    """A file of rows is not whole."""


class Writer:
    """Writes rows one after another; `columns` may be changed until `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self.columns = {name: array(code) for name, code in COLUMNS.items()}
        self.columns["offset"].append(0)
        self._file, self._end = file, 0

    def __len__(self) -> int:
        return len(self.columns["line"])

    def add(self, row: Row, keys: Keys, bits: int, file: int, label: int, characters: int) -> None:
        """One row and its numbers; `file` and `label` are places in lists that the header holds."""
        line = packed(row)
        self._file.write(line)
        self._end += len(line)
        columns = self.columns
        columns["offset"].append(self._end)
        columns["bits"].append(bits)
        columns["question"].append(keys.question)
        columns["conversation"].append(keys.conversation)
        columns["line"].append(min(row.line, _LARGEST))
        columns["file"].append(file)
        columns["group"].append(0)
        columns["label"].append(label)
        columns["characters"].append(min(characters, _LARGEST))

    def messages(self, places: Iterable[int]) -> Iterator[tuple[Message, ...]]:
        """Rows that were written, read back."""
        self._file.flush()
        descriptor, offsets = self._file.fileno(), self.columns["offset"]
        for at in places:
            line = os.pread(descriptor, offsets[at + 1] - offsets[at], offsets[at])
            yield unpacked(line)[0]

    def finish(self, header: dict[str, Any]) -> None:
        """Write the columns and the header, a JSON object."""
        self._file.write(bytes(-self._end % 8))
        for column in self.columns.values():
            self._file.write(column)
            self._file.write(bytes(-len(column) * column.itemsize % 8))
        text = json.dumps(header | {"rows": len(self)}).encode()
        at = self._file.tell()
        self._file.write(text + _TRAILER.pack(at, len(text), _MAGIC))


class Store:
    """A file of rows, opened: its header, its columns, and rows by their place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if size < _TRAILER.size:
            raise Damaged(path)
        at, length, magic = _TRAILER.unpack(os.pread(self._descriptor, _TRAILER.size, size - _TRAILER.size))
        if magic != _MAGIC or at + length + _TRAILER.size != size:
            raise Damaged(path)
        self.header: dict[str, Any] = json.loads(os.pread(self._descriptor, length, at))
        self._columns = self._map(at)

    def _map(self, end: int) -> dict[str, memoryview]:
        count = self.header["rows"]
        mapped = memoryview(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))
        views = {}
        for name, code in reversed(COLUMNS.items()):
            size = (count + (name == "offset")) * array(code).itemsize
            end -= size + -size % 8
            views[name] = mapped[end : end + size].cast(cast(Any, code))
        return views

    def __len__(self) -> int:
        return int(self.header["rows"])

    def column(self, name: str) -> memoryview:
        """The numbers of all rows, one of `COLUMNS`, without a copy (`numpy.asarray` takes it as it is)."""
        return self._columns[name]

    def row(self, at: int) -> Row:
        """The row at that place of all rows, those that are set aside among them."""
        offsets = self._columns["offset"]
        return self._row(at, os.pread(self._descriptor, offsets[at + 1] - offsets[at], offsets[at]))

    def block(self, places: Sequence[int]) -> Iterator[Row]:
        """Several rows; those that stand together on disk are read at once."""
        offsets = self._columns["offset"]
        start, end = offsets[min(places)], offsets[max(places) + 1]
        if end - start > _NEAR:
            yield from map(self.row, places)
            return
        text = os.pread(self._descriptor, end - start, start)
        for at in places:
            yield self._row(at, text[offsets[at] - start : offsets[at + 1] - start])

    def _row(self, at: int, line: bytes) -> Row:
        messages, tools, rejected = unpacked(line)
        columns = self._columns
        file = self.header["files"][columns["file"][at]]
        held_out = bool(columns["bits"][at] & HELD_OUT)
        return Row(messages, columns["line"][at], tools, file, held_out, rejected)


class StoredRows(Sequence[Row]):
    """Some of the rows of a store, by their places in it, in order; a slice is again such rows.

    A kind of rows that is not what the store holds says in `seen` what it makes of each. Can be sent to
    another process, which opens the same file.
    """

    def __init__(self, store: Store, places: Sequence[int]) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> StoredRows: ...
    def __getitem__(self, at: int | slice) -> Row | StoredRows:
        if isinstance(at, slice):
            return type(self)(self.store, self.places[at])
        return self.seen(self.store.row(self.places[at]))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self.places), _BLOCK):
            yield from map(self.seen, self.store.block(self.places[start : start + _BLOCK]))

    def seen(self, row: Row) -> Row:
        """A row of the store as one of these."""
        return row

    @property
    def key(self) -> str:
        """A name that is the same for the same rows of the same files, and for no others."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            repr(self.places).encode() if isinstance(self.places, range) else array("I", self.places)
        )
        return f"{self.store.path.stem}-{digest.hexdigest()}"

    @property
    def characters(self) -> int:
        """How long the texts of these rows are together."""
        column = self.store.column("characters")
        return sum(column) if len(self) == len(column) else sum(column[at] for at in self.places)

    def chosen(self, numbers: Iterable[int]) -> StoredRows:
        """Those with these numbers among these rows, counted from 0."""
        return type(self)(self.store, array("I", (self.places[number] for number in numbers)))

    def pairs(self) -> list[int]:
        """The numbers of those that are pairs of answers, without reading them."""
        bits = self.store.column("bits")
        return [number for number, at in enumerate(self.places) if bits[at] & PAIR]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), str(self.store.path), self.places)


class RejectedRows(StoredRows):
    """Pairs of a store, each with its worse answer in place of the better one."""

    def seen(self, row: Row) -> Row:
        """The pair's worse answer alone."""
        return worse(row)

    @property
    def key(self) -> str:
        """As of the pairs, and other than theirs."""
        return f"{super().key}-rejected"


def worse(row: Row) -> Row:
    """A pair as the row of its worse answer alone."""
    return replace(row, messages=row.rejected, rejected=())


def _reopened(kind: type[StoredRows], path: str, places: Sequence[int]) -> StoredRows:
    try:
        return kind(Store(Path(path)), places)
    except (OSError, Damaged) as error:
        raise TuneError(
            "The rows that were read are gone from the cache.", "Read the data again.", details=repr(error)
        ) from error


def packed(row: Row) -> bytes:
    """A row as a line of JSON: `messages` and, where there are any, `tools` and the turns of a pair that
    stand after the `shared` ones in place of the others: `rejected`."""
    record: dict[str, Any] = {"messages": [_turn(message) for message in row.messages]}
    if row.tools:
        record["tools"] = row.tools
    if row.rejected:
        record["shared"] = row.shared
        record["rejected"] = [_turn(message) for message in row.rejected[row.shared :]]
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    if message.name or message.tool_call_id:
        turn |= {"name": message.name, "tool_call_id": message.tool_call_id}
    if not message.train:
        turn["train"] = False
    return turn


def unpacked(line: bytes) -> tuple[tuple[Message, ...], str, tuple[Message, ...]]:
    """The messages and tools of such a line, and the whole conversation with the worse answer of a pair."""
    record = json.loads(line)
    messages = tuple(map(_message, record["messages"]))
    other = tuple(map(_message, record.get("rejected", ())))
    return messages, record.get("tools", ""), (*messages[: record["shared"]], *other) if other else ()


def _message(turn: dict[str, Any]) -> Message:
    if "tool_calls" in turn:
        turn["tool_calls"] = tuple(ToolCall(*call) for call in turn["tool_calls"])
    return Message(**turn)
