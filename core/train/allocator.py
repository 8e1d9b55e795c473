"""A model of PyTorch's caching allocator for CUDA: how much it reserves for a sequence of requests.

After c10/cuda/CUDACachingAllocator: two pools (requests up to 1 MiB, and larger), segments that are never
given back while the card has room, the smallest free block that fits, split and merged again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from ollama_tune.core.train.memtrace import BLOCK, Event

MIB = 1 << 20
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_REQUEST = 10 * MIB
"""From here on a request gets a segment of its own, in steps of 2 MiB."""
_GAP = 1 << 50
"""Segments lie that far apart, so that blocks of two segments never touch."""


class _Pool:
    """Blocks of one pool by address; `free` holds (size, address) in order."""

    def __init__(self, *, small: bool, expandable: bool) -> None:
        self.reserved = 0
        self._small = small
        self._expandable = expandable
        self._free: list[tuple[int, int]] = []
        self._size_at: dict[int, int] = {}
        self._ending_at: dict[int, int] = {}
        self._segments = 0

    def take(self, size: int) -> tuple[int, int]:
        """A block of at least `size` bytes: its address and size."""
        index = bisect_left(self._free, (size, 0))
        if index == len(self._free):
            self._grow(size)
            index = bisect_left(self._free, (size, 0))
        found, address = self._free[index]
        self._remove(found, address)
        rest = found - size
        if rest >= BLOCK if self._small else rest > SMALL_REQUEST:
            self._put(rest, address + size)
            found = size
        return address, found

    def give_back(self, address: int, size: int) -> None:
        """Free a block and merge it with free neighbours."""
        after = self._size_at.get(address + size)
        if after is not None:
            self._remove(after, address + size)
            size += after
        before = self._ending_at.get(address)
        if before is not None:
            length = self._size_at[before]
            self._remove(length, before)
            address, size = before, size + length
        self._put(size, address)

    def _put(self, size: int, address: int) -> None:
        insort(self._free, (size, address))
        self._size_at[address] = size
        self._ending_at[address + size] = address

    def _remove(self, size: int, address: int) -> None:
        del self._free[bisect_left(self._free, (size, address))]
        del self._size_at[address]
        del self._ending_at[address + size]

    def _grow(self, size: int) -> None:
        """Ask the driver for memory: a new segment, or pages at the end of the one that grows."""
        if self._expandable:
            page = SMALL_SEGMENT if self._small else LARGE_SEGMENT
            start = self._ending_at.get(self.reserved)
            missing = size - (self._size_at[start] if start is not None else 0)
            added = -(-missing // page) * page
            address = self.reserved
        else:
            added = self._segment(size)
            self._segments += 1
            address = self._segments * _GAP
        self.reserved += added
        self.give_back(address, added)

    def _segment(self, size: int) -> int:
        if self._small:
            return SMALL_SEGMENT
        return LARGE_SEGMENT if size < LARGE_REQUEST else -(-size // SMALL_SEGMENT) * SMALL_SEGMENT


class CachingAllocator:
    """What PyTorch would have reserved after the events so far; nothing is ever given back.

    `allocated` counts blocks, as `torch.cuda.memory_allocated` does, `requested` what was asked for: a
    block is not split for a rest of up to 1 MiB.
    """

    def __init__(self, *, expandable: bool = False) -> None:
        self._small = _Pool(small=True, expandable=expandable)
        self._large = _Pool(small=False, expandable=expandable)
        self._blocks: dict[int, tuple[_Pool, int, int, int]] = {}
        self.requested = self.allocated = 0
        self.peak_requested = self.peak_allocated = 0

    @property
    def reserved(self) -> int:
        """Bytes held from the driver."""
        return self._small.reserved + self._large.reserved

    def replay(self, events: Iterable[Event]) -> None:
        """Serve allocations and releases in order; a number must be free when it is allocated."""
        for event in events:
            if event.size:
                pool = self._small if event.size <= SMALL_REQUEST else self._large
                address, size = pool.take(event.size)
                self._blocks[event.number] = (pool, address, size, event.size)
                self._count(event.size, size)
            else:
                pool, address, size, requested = self._blocks.pop(event.number)
                pool.give_back(address, size)
                self._count(-requested, -size)

    def _count(self, requested: int, size: int) -> None:
        self.requested += requested
        self.allocated += size
        self.peak_requested = max(self.peak_requested, self.requested)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
