"""torch without a quarter of its import: the rules for tensors without memory, which no training here asks.

torch imports two modules for nothing but what they register: Python's shape rules of its operations, with
the decompositions those rest on. Compilers and fake tensors need them, a step on real tensors does not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LEFT_OUT = ("torch.distributed._meta_registrations", "torch._meta_registrations")
"""In the order in which torch imports them."""
NEEDED_BY = ("transformers.", "peft.", "bitsandbytes.", "torch._dynamo", "torch._inductor")
"""Beginnings of the names of modules; whoever imports one of them gets the whole of torch first."""


class _Empty(Loader):
    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


class _Finder(MetaPathFinder):
    """Finds empty modules in place of those that are left out, until somebody imports what needs them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python's question where a module is; None for all modules that are found as usual."""
        if fullname.startswith(NEEDED_BY):
            complete_torch()
        return ModuleSpec(fullname, _Empty()) if fullname in LEFT_OUT else None


_FINDER = _Finder()


def import_torch() -> None:
    """Import torch, a quarter faster; as a whole where that is needed already."""
    if "torch" not in sys.modules and not any(name.startswith(NEEDED_BY) for name in sys.modules):
        sys.meta_path.insert(0, _FINDER)
    importlib.import_module("torch")


def complete_torch() -> None:
    """Import what was left out, for those who make tensors without memory; does nothing where nothing was."""
    if _FINDER not in sys.meta_path:
        return
    sys.meta_path.remove(_FINDER)
    for name in LEFT_OUT:
        if sys.modules.pop(name, None) is not None:
            importlib.import_module(name)
