"""When Python looks for garbage, and what the C library does with freed memory, in a process that trains."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`'s parameters in malloc.h."""
KEPT = 2**31 - 1
HELD = 32 << 20
"""The largest block, in bytes, that glibc keeps for its next use."""


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is made in the block stays: no look for garbage is taken there, nor at it later on.

    The libraries of a training make half a million objects. Python would go through all of them some five
    times until the first step is done, for 0.3 seconds, and find nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Keep memory that is freed for the next layer, which asks for as much again.

    Else the kernel clears each page anew, in every layer: 5 % of a step on the CPU. Where the C library is
    not glibc, nothing changes.
    """
    for parameter, value in ((MMAP_THRESHOLD, HELD), (TRIM_THRESHOLD, KEPT)):
        _c_library("mallopt", parameter, value)


def return_freed_memory() -> None:
    """Give the system what is kept for the next layer."""
    _c_library("malloc_trim", 0)


def _c_library(name: str, *arguments: int) -> None:
    library: Any = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        getattr(library, name)(*arguments)
