"""What the C library keeps of this process' memory, told to keep less."""

from __future__ import annotations

M_ARENA_MAX = -8
"""glibc's `malloc.h`."""


def one_heap() -> bool:
    """Let all threads that start from now on share one heap; False where the C library is not glibc.

    glibc gives each thread a heap of its own, and what is freed in one is of no use to the others: after the
    wizard's threads have read machine, model and data that was 2 MiB. Python's own lock lets one thread
    allocate at a time anyway.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1


def give_back() -> bool:
    """Give freed memory back to the system, in a millisecond or two; False where there was none to give, or
    the C library is not glibc. After work that needed much for a moment."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
