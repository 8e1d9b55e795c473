"""A lean import of torch, garbage that is not looked for, and memory that is kept and given back."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from ollama_tune.core.train import lean_torch
from ollama_tune.core.train.housekeeping import lasting
from ollama_tune.core.train.shortage import free_memory

LEAN = """
import importlib.util, sys
from ollama_tune.core.train.lean_torch import LEFT_OUT, import_torch
import_torch()
import torch
def whole():
    return [hasattr(sys.modules[name], "__file__") for name in LEFT_OUT]
weight = torch.ones(4, 4, requires_grad=True)
(torch.ones(2, 4) @ weight).softmax(-1).square().sum().backward()
assert weight.grad is not None and whole() == [False, False]
importlib.util.find_spec("transformers")
assert whole() == [False, False], "looking for a package imports nothing"
import peft.parts
assert whole() == [True, True] and torch._meta_registrations is sys.modules[LEFT_OUT[1]]
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    inside = torch.nn.functional.scaled_dot_product_attention(*torch.empty(3, 1, 2, 5, 8).unbind())
    assert inside.shape == (1, 2, 5, 8) and torch.linalg.inv(torch.empty(3, 3)).shape == (3, 3)
"""


def test_torch_is_imported_without_what_only_others_need_until_they_come(tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    for name in ("__init__.py", "parts.py"):
        (tmp_path / "peft" / name).touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{LEAN}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_torch_that_is_there_stays_whole() -> None:
    import torch

    finders = list(sys.meta_path)
    lean_torch.import_torch()
    lean_torch.complete_torch()
    assert sys.meta_path == finders and torch._meta_registrations.__file__


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
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        found[asked] = [int(figure) for figure in said.split()]
    kept, given_back = found["keep"]
    assert kept > found[""][0] + 40 and given_back < kept - 40
