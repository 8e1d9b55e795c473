"""Finds rows that say nearly the same: MinHash signatures, bands of equal hashes, exact comparison, clusters.

Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3. Two texts are near-duplicates when their sets of shingles, three words in a row
(four characters of Chinese or Japanese), have a Jaccard index of at least 0.7.
"""

from __future__ import annotations

import functools
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Hashes = NDArray[np.uint32]
    Places = NDArray[np.int64]

THRESHOLD = 0.7
BANDS, DEPTH = 16, 4
"""One of 16 bands of 4 hashes agrees with probability 1 - (1 - J^4)^16 for an index J: 0.99 at 0.7."""
AGREE = 36
"""Of 64 hashes 45 agree on average at an index of 0.7; 36 or fewer at less than one pair in a hundred."""
LONGEST = 100_000
"""Characters of a text that are compared."""
BATCH = 1 << 18
"""Characters worked on at once; their arrays fit a processor's cache."""
MOST = 1_000_000
"""Rows compared; more would take 128 bytes each."""
EXACT = 100_000
"""So many pairs are compared exactly, in some ten seconds; beyond that, on data of one mould, by hashes."""
BLOCK = 1 << 15
"""Pairs looked at together."""

Texts = Callable[[Iterable[int]], Iterable[str]]
"""Gives the texts of the rows with these numbers."""

_PRIME = 0x100000001B3
_MIX = 0x9E3779B97F4A7C15
_SINGLE, _WORD = 2, 1


@functools.cache
def _classes() -> NDArray[np.uint8]:
    """Of each code point: 0 for a blank or sign, 1 for a letter or digit, 2 for one that is a word itself."""
    table = np.zeros(0x110000, np.uint8)
    table[:0x10000] = np.fromiter(map(str.isalnum, map(chr, range(0x10000))), np.uint8, 0x10000)
    table[0x10000:0x1F000] = _WORD
    for first, last in ((0x3041, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
        table[first : last + 1] *= _SINGLE
    table[0x20000:0x323B0] = _SINGLE
    return table


@functools.lru_cache(4)
def _powers(count: int) -> tuple[Words, Words]:
    """The powers of an odd number and of its inverse, modulo 2^64."""
    one, other = (np.full(count, number, np.uint64) for number in (_PRIME, pow(_PRIME, -1, 2**64)))
    return np.multiply.accumulate(one), np.multiply.accumulate(other)


@functools.cache
def _factors() -> tuple[Hashes, Hashes]:
    """The 64 hash functions a * x + b modulo 2^32, the same in every run."""
    chance = random.Random(20240607)  # numpy's takes 1.5 MiB and 12 ms to import
    factors = np.array([[chance.getrandbits(32) for _ in range(BANDS * DEPTH)] for _ in range(2)], np.uint32)
    return factors[0] | np.uint32(1), factors[1]


def shingles(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """Hashes of the shingles of all texts in a row, and where each text's begin (one entry more than texts).

    A text of one or two words has one shingle, a text without any word none.
    """
    words, single, bounds = _words([text[:LONGEST].lower() for text in texts])
    count = len(words)
    if not count:
        return np.zeros(0, np.uint32), np.zeros(len(texts) + 1, np.int64)
    sizes = np.diff(bounds)
    end = np.repeat(bounds[1:], sizes)
    place = np.arange(count)

    def ahead(steps: int) -> tuple[Words, NDArray[np.bool_]]:
        inside = place + steps < end
        return np.where(inside, np.roll(words, -steps), np.uint64(0)), inside

    (second, _), (third, full), (fourth, more) = ahead(1), ahead(2), ahead(3)
    signs = single & np.roll(single, -1) & np.roll(single, -2) & more
    mixed = (words * np.uint64(3) + second) * np.uint64(_MIX) + third
    mixed = mixed * np.uint64(_PRIME) + np.where(signs, fourth, np.uint64(0))
    mixed ^= mixed >> np.uint64(29)
    hashes = ((mixed * np.uint64(_MIX)) >> np.uint64(32)).astype(np.uint32)
    kept = full | (place == np.repeat(bounds[:-1], sizes))
    return hashes[kept], np.concatenate(([0], np.cumsum(kept)))[bounds]


def _words(texts: Sequence[str]) -> tuple[Words, NDArray[np.bool_], Places]:
    """A hash of every word, whether it is a single sign, and where each text's words begin."""
    joined = "\n".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) + 1 for text in texts])
    kinds = _classes()[codes]
    before = np.concatenate(([np.uint8(0)], kinds[:-1]))
    starts = np.flatnonzero((kinds == _SINGLE) | ((kinds == _WORD) & (before != _WORD)))
    bounds = np.concatenate(([0], np.searchsorted(starts, ends)))
    if not len(starts):
        return np.zeros(0, np.uint64), np.zeros(0, np.bool_), bounds
    powers, inverse = _powers(1 << len(codes).bit_length())
    values = (codes + np.uint64(1)) * powers[: len(codes)]
    values[kinds == 0] = 0
    words = np.add.reduceat(values, starts) * inverse[starts]
    words ^= words >> np.uint64(32)
    return words * np.uint64(_MIX), kinds[starts] == _SINGLE, bounds


class Signatures:
    """Collects texts and keeps 128 bytes of each: the hashes of its bands, and one byte of each MinHash."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._characters = 0
        self._bands = [bytearray() for _ in range(BANDS)]
        self._bytes = bytearray()
        self.rows = 0

    def add(self, text: str) -> None:
        """The next row's text; rows after the first million are not compared."""
        if self.rows >= MOST:
            return
        self.rows += 1
        self._texts.append(text[:LONGEST])
        self._characters += len(self._texts[-1])
        if self._characters >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._texts:
            return
        hashes, bounds = shingles(self._texts)
        smallest = _smallest(hashes, bounds)
        bands = smallest.reshape(BANDS, DEPTH, -1)
        mixed = bands[:, 0]
        for depth in range(1, DEPTH):
            mixed = (mixed * np.uint32(0x85EBCA6B)) ^ (mixed >> np.uint32(15)) ^ bands[:, depth]
        for band, keys in zip(self._bands, mixed, strict=True):
            band += keys.tobytes()
        self._bytes += smallest.astype(np.uint8).T.tobytes()
        self._texts, self._characters = [], 0

    def clusters(self, texts: Texts) -> Places:
        """For each row the place of the first row of its cluster, its own if it has no near-duplicate.

        `texts` gives the texts of rows once more, for the exact comparison.
        """
        self._flush()
        finder = _Clusters(np.frombuffer(self._bytes, np.uint8).reshape(-1, BANDS * DEPTH), texts)
        for band in self._bands:
            finder.join(np.frombuffer(band, np.uint32))
        for table in (_classes, _powers):
            table.cache_clear()  # 2 MiB, made again in some ms
        return finder.roots()


def _smallest(hashes: Hashes, bounds: Places) -> Hashes:
    """MinHashes (64, texts); all ones for a text without shingles."""
    found = np.full((BANDS * DEPTH, len(bounds) - 1), np.uint32(0xFFFFFFFF))
    filled = np.flatnonzero(np.diff(bounds))
    if len(filled):
        starts = bounds[filled]
        for at, (factor, addend) in enumerate(zip(*_factors(), strict=True)):
            found[at, filled] = np.minimum.reduceat(hashes * factor + addend, starts)
    return found


class _Clusters:
    """Joins pairs that agree in a band and in their shingles; a cluster is named by its first row."""

    def __init__(self, signatures: NDArray[np.uint8], texts: Texts) -> None:
        self._signatures, self._texts = signatures, texts
        self._parents = array("q", range(len(signatures)))
        self._empty = (signatures == 0xFF).all(axis=1)
        self._different = np.zeros(0, np.uint64)
        self._left = EXACT

    def _root(self, at: int) -> int:
        parents = self._parents
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    def roots(self) -> Places:
        """The first row of each row's cluster."""
        found: Places = np.frombuffer(self._parents, np.int64)
        while not np.array_equal(above := found[found], found):
            found = above
        return above

    def join(self, keys: Hashes) -> None:
        """Compare rows that have the same key, each with the one before it and the first of them."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.concatenate(([False], ordered[1:] == ordered[:-1]))
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
        cases = np.flatnonzero(same & ~self._empty[order])
        for start in range(0, len(cases), BLOCK):
            part = cases[start : start + BLOCK]
            firsts = np.concatenate((order[part - 1], order[first[part]]))
            self._compare(firsts, np.concatenate((order[part], order[part])))

    def _compare(self, left: Places, right: Places) -> None:
        roots = self.roots()
        apart = roots[left] != roots[right]
        left, right = left[apart], right[apart]
        near = self._agreement(left, right) >= AGREE
        pairs = distinct((left[near].astype(np.uint64) << np.uint64(32)) | right[near].astype(np.uint64))
        pairs = pairs[~np.isin(pairs, self._different, assume_unique=True)]
        left, right = _upper(pairs), (pairs & np.uint64(2**32 - 1)).astype(np.int64)
        if self._left > 0:
            self._left -= len(pairs)
            alike = self._exactly(left, right)
            self._different = distinct(np.concatenate((self._different, pairs[~alike])))
        else:
            alike = self._agreement(left, right) >= THRESHOLD * BANDS * DEPTH
        for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
            first, second = sorted((self._root(one), self._root(other)))
            self._parents[second] = first

    def _agreement(self, left: Places, right: Places) -> Any:
        """How many of the 64 hashes of each pair are the same."""
        return np.count_nonzero(self._signatures[left] == self._signatures[right], axis=1)

    def _exactly(self, left: Places, right: Places) -> NDArray[np.bool_]:
        """Whether the sets of shingles of each pair have an index of at least 0.7."""
        alike = np.zeros(len(left), np.bool_)
        for start in range(0, len(left), 256):
            part = slice(start, start + 256)
            one, other = self._sets(left[part]), self._sets(right[part])
            both = np.concatenate((one, other))
            both.sort()
            shared = np.bincount(_upper(both[1:][both[1:] == both[:-1]]), minlength=len(left[part]))
            total = np.bincount(_upper(both), minlength=len(left[part])) - shared
            alike[part] = shared >= THRESHOLD * np.maximum(total, 1)
        return alike

    def _sets(self, rows: Places) -> Words:
        """The distinct shingles of each of these rows, the number of the pair above those of the shingle."""
        hashes, bounds = shingles(list(self._texts(rows.tolist())))
        pair = np.repeat(np.arange(len(rows), dtype=np.uint64), np.diff(bounds))
        return distinct((pair << np.uint64(32)) | hashes)


def distinct(numbers: NDArray[Any]) -> NDArray[Any]:
    """Sorted, each once; `numpy.unique` is several times slower and imports `numpy.ma`, 1 MiB."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def _upper(numbers: Words) -> Any:
    return (numbers >> np.uint64(32)).astype(np.int64)
