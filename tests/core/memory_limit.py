"""A device with little memory, simulated on the CPU, and errors at chosen moments."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


class DeviceLimit(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is entered; raises when an operation goes above `limit`.

    What the exception's traceback keeps alive stays counted, as on a real device.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.live = self.peak = self.raised = 0
        self._known: set[int] = set()
        self._host = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            self._count(tensor, older=True)
        result = function(*args, **(kwargs or {}))
        before = self.live
        for tensor in tree_iter(result):
            self._count(tensor)
        self.peak = max(self.peak, self.live)
        if self.limit is not None and before < self.live > self.limit:
            self.raised += 1
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return result

    def _count(self, tensor: Any, *, older: bool = False) -> None:
        """Count a storage once, views or not; one that was there before this was entered is free."""
        if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self._known:
            return
        storage = tensor.untyped_storage()
        size = 0 if older or self._host else storage.nbytes()
        self._known.add(storage._cdata)
        self.live += size
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Tensors made in here lie in the computer's memory, not on the device."""
        self._host = True
        yield
        self._host = False


class Fault:
    """Raises out of memory at the calls with these numbers (from 1), whoever calls it."""

    def __init__(self, *moments: int) -> None:
        self.moments = set(moments)
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        if self.calls in self.moments:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
