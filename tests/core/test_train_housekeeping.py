"""Garbage that is not looked for, and memory that is kept and given back."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from ollama_tune.core.train.housekeeping import lasting
from ollama_tune.core.train.shortage import free_memory


def test_what_stays_is_not_looked_at_again_until_memory_is_short() -> None:
    class Loop:
        itself: object = None

    gc.collect()
    with lasting():
        assert not gc.isenabled()
        loop = Loop()
        loop.itself, seen = loop, weakref.ref(loop)
        del loop
    assert gc.isenabled() and gc.get_freeze_count() > 0
    gc.collect()
    assert seen() is not None
    free_memory()
    assert seen() is None


FREED = """
import sys
import psutil
from ollama_tune.core.train.housekeeping import keep_freed_memory, return_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
blocks = [bytearray(b"x" * (8 << 20)) for _ in range(8)]
del blocks
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(kept >> 20, psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_and_given_back_when_asked() -> None:
    found = {}
    for asked in ("", "keep"):
        command = [sys.executable, "-c", FREED, *filter(None, [asked])]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
        found[asked] = [int(figure) for figure in said.split()]
    kept, given_back = found["keep"]
    assert kept > found[""][0] + 40 and given_back < kept - 40
