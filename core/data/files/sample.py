"""Looks into a data set of any size within milliseconds: its first rows, some from everywhere, how many."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ollama_tune.core.data.files import compression
from ollama_tune.core.data.files.columnar import sample_columnar
from ollama_tune.core.data.files.encodings import WIDE
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.read import open_items, used_parts
from ollama_tune.core.data.files.sample_ways import Longer, Way, way_for
from ollama_tune.core.data.files.source import CHUNK, Source, failed, open_source
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError

FIRST = 50
"""Items of the first page."""
SMALL = 2**20
"""Bytes of a file that is simply read."""
BLOCK = 2**19
"""Bytes of a block in which the rows are counted."""
BLOCKS = 64
"""Blocks over the whole file: some 20,000 rows of a usual file, for an error below 1 %."""
WINDOW = 2**13
"""Bytes read at a random place; eight times as much again where a row is longer."""
LONGEST_WINDOW = 2**22
FILES = 20
"""Files of a folder that are looked into, the first and the largest."""


@dataclass(frozen=True)
class Sample:
    """A glance at a data set: `first` its first items, `some` from random places, in the file's order.

    An item from a random place has line 0, because nobody counted up to there. `rows_estimate` is exact for
    small files and for tables; `bytes` is the size on the disk.
    """

    first: list[Item]
    some: list[Item]
    rows_estimate: int
    bytes: int
    format: str
    encoding: str


def sample_items(
    path: Path,
    count: int,
    seed: int = 0,
    columns: Iterable[str] = (),
    *,
    split: str = "",
    validation: str = "",
) -> Sample:
    """The first 50 items and `count` from random places, every row as likely as any other.

    A packed file and an Arrow stream are read from their start only, of a table a few row groups. Raises
    `TuneError` as `read_items` does.
    """
    known = frozenset(name.strip().lower() for name in columns)
    if path.is_dir():
        return _folder(path, count, seed, known, (split, validation))
    return _file(open_source(path), count, random.Random(seed), known)


def _folder(path: Path, count: int, seed: int, known: frozenset[str], splits: tuple[str, str]) -> Sample:
    used, _ = used_parts(path, ProblemLog(), *splits)
    parts = [part for part, _ in used]
    sizes = [_size(part.path) for part in parts]
    looked = sorted({0, *sorted(range(len(parts)), key=lambda i: -sizes[i])[:FILES]})
    total, seen = max(sum(sizes), 1), max(sum(sizes[i] for i in looked), 1)
    found, failure = [], None
    for i in looked:
        share = -(-count * sizes[i] // seen)
        try:
            one = _file(open_source(parts[i].path), share, random.Random(seed + i), known)
        except TuneError as error:
            failure = failure or error
            continue
        found.append(_in_file(one, parts[i].name, used[i][1]))
    if not found:
        raise failure or TuneError(f"No file in {path} can be read.", "Choose another folder.")
    rows = sum(one.rows_estimate for one in found) * total / max(sum(one.bytes for one in found), 1)
    some = [item for one in found for item in one.some][:count]
    named = f"{found[0].format} ({len(parts)} files)" if len(parts) > 1 else found[0].format
    return Sample(found[0].first, some, round(rows), total, named, found[0].encoding)


def _in_file(sample: Sample, name: str, held_out: bool) -> Sample:
    def placed(items: list[Item]) -> list[Item]:
        return [replace(item, file=name, held_out=held_out or item.held_out) for item in items]

    return replace(sample, first=placed(sample.first), some=placed(sample.some))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _file(source: Source, count: int, rng: random.Random, known: frozenset[str]) -> Sample:
    items = open_items(source, ProblemLog(), known)
    first = list(itertools.islice(items.stream, FIRST))
    try:
        some, rows = _rest(source, items.stream, first, count, rng, known)
    except compression.failures() as error:
        raise failed(source.path, error) from error
    return Sample(first, some, max(rows, len(first)), source.size, items.format, items.encoding)


def _rest(
    source: Source,
    stream: Iterator[Item],
    first: list[Item],
    count: int,
    rng: random.Random,
    known: frozenset[str],
) -> tuple[list[Item], int]:
    """The random items and the number of rows, in the way that the format allows."""
    if source.table:
        return sample_columnar(source, count, rng)
    if source.size <= SMALL and not source.packed:
        items = [*first, *stream]
        picked = sorted(rng.sample(range(len(items)), min(count, len(items))))
        return [items[i] for i in picked], len(items)
    way = way_for(source, first, known)
    if source.packed or source.encoding in WIDE:
        some = [*first, *itertools.islice(stream, max(count - len(first), 0))][:count]
        return some, _estimate(way, *_beginning(source), source.size)
    with source.path.open("rb") as file:
        descriptor = file.fileno()
        some = _picked(descriptor, source.size, way, count, rng) or [*first, *itertools.islice(stream, count)]
        return some[:count], _estimate(way, _blocks(descriptor, source.size, rng), 0, source.size)


def _beginning(source: Source) -> tuple[list[bytes], int]:
    """The first mebibytes of text, and the bytes on the disk they came from."""
    blocks: list[bytes] = []
    with source.path.open("rb", buffering=0) as raw, compression.unpacked(raw, source.packed) as file:
        while len(blocks) < 32 and (data := file.read(CHUNK)):
            blocks.append(data)
        consumed = min(raw.tell(), source.size)
    if source.encoding in WIDE:
        return [b"".join(blocks).decode(source.encoding, "replace").encode("utf-8", "replace")], consumed
    return [b"".join(blocks)], consumed


def _blocks(descriptor: int, size: int, rng: random.Random) -> Iterator[bytes]:
    """Blocks from all over a file: the whole of a small one, else one from each part."""
    if size <= BLOCK * BLOCKS:
        places = list(range(0, size, BLOCK))
    else:
        part = (size - BLOCK) / BLOCKS
        places = [int((i + rng.random()) * part) for i in range(BLOCKS)]
    return (os.pread(descriptor, BLOCK, at) for at in places)


def _estimate(way: Way, blocks: Iterable[bytes], consumed: int, size: int) -> int:
    """The rows in the blocks, scaled up to the size of the file by the bytes that held them."""
    rows = measured = 0
    for block in blocks:
        found, length = way.count(block)
        rows, measured = rows + found, measured + length
    return round(rows * size / max(consumed or measured, 1))


def _picked(descriptor: int, size: int, way: Way, count: int, rng: random.Random) -> list[Item]:
    """For each of `count` places, one from each part of the file, the first row that begins after it.

    A row is as likely as the one before it is long, which on the whole is no preference.
    """
    found = []
    for i in range(count):
        at = int((i + rng.random()) * size / count)
        length = WINDOW
        while length <= LONGEST_WINDOW:
            try:
                found.append(Item(0, way.find(os.pread(descriptor, length, at))))
                break
            except Longer:
                if at + length >= size:
                    break
                length *= 8
    return found
