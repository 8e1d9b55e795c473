"""Records what tensor operations allocate and free, as PyTorch's CUDA allocator would count it.

Works on fake tensors (the simulation) and on real ones (to check the simulation).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ollama_tune.core.errors import TuneError
from ollama_tune.core.train.workspaces import is_suspicious, workspaces

BLOCK = 512
"""PyTorch rounds every request up to a multiple of this many bytes."""

Workspaces = Callable[[str, tuple[Any, ...]], list[int]]


class NotSimulated(TuneError):
    """The installed libraries cannot build or run this model on fake tensors."""


def rounded(size: int) -> int:
    """Bytes that the allocator counts for a request."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Event:
    """One allocation (`size` in bytes) or, with size 0, the release of an earlier one, by its number."""

    number: int
    size: int


@dataclass
class Section:
    """The events of one stretch of a step; `layer` is None outside the decoder's layers."""

    kind: str
    layer: int | None
    events: list[Event] = field(default_factory=list)


class Trace:
    """Allocations in order, what is live by part, and each phase's peak by part (bytes).

    A phase starts with what is live at that moment. `part` names what new allocations are for.
    """

    def __init__(self) -> None:
        self.part = "weights"
        self.live: Counter[str] = Counter()
        self.total = 0
        self.peaks: dict[str, Counter[str]] = {}
        self.sections: list[Section] = [Section("start", None)]
        self._phase = "start"
        self._highest = 0
        self._blocks: list[tuple[str, int]] = []

    def phase(self, name: str, part: str) -> None:
        """Begin a phase whose new allocations are for `part`."""
        self._phase, self.part = name, part
        known = self.peaks.get(name)
        self._highest = sum(known.values()) if known else -1
        self._note()

    def section(self, kind: str, layer: int | None = None) -> None:
        """Begin a stretch of events."""
        self.sections.append(Section(kind, layer))

    def allocate(self, size: int, part: str | None = None) -> int:
        """Count an allocation; returns its number."""
        name, count = part or self.part, rounded(size)
        number = len(self._blocks)
        self._blocks.append((name, count))
        self.live[name] += count
        self.total += count
        self.sections[-1].events.append(Event(number, count))
        self._note()
        return number

    def free(self, number: int) -> None:
        """Count the release of an allocation."""
        name, count = self._blocks[number]
        self.live[name] -= count
        self.total -= count
        self.sections[-1].events.append(Event(number, 0))

    def move(self, number: int, part: str) -> None:
        """Say that an allocation is for another part than it seemed."""
        name, count = self._blocks[number]
        self._blocks[number] = (part, count)
        self.live[name] -= count
        self.live[part] += count

    def _note(self) -> None:
        if self.total > self._highest:
            self._highest = self.total
            self.peaks[self._phase] = self.live.copy()


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storage of every tensor that an operator returns, until nothing refers to it any more.

    Views share a storage, so they count once. Temporaries inside an operator come from the table in
    `workspaces`; operators that may need an entry there and have none are collected in `unknown`.

    While a dispatch mode is on, autograd adds gradients up out of place; without one it adds in place
    where nothing else holds the first. Such a sum therefore takes over the first one's allocation.
    """

    def __init__(self, trace: Trace, table: Workspaces = workspaces) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.unknown: set[str] = set()
        self._table = table
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._taken_over: weakref.ref[Any] | None = None

    def track(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count a tensor's storage from now on, unless it is counted already."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known and storage.nbytes():
            self._keep(storage, self.trace.allocate(storage.nbytes(), part))

    def move(self, tensor: torch.Tensor, part: str) -> None:
        """Say that a tensor is for another part than it seemed when it was made."""
        known = self._known.get(tensor.untyped_storage()._cdata)
        if known is not None:
            self.trace.move(known[0], part)

    def note_gradient(self, weight: torch.Tensor) -> None:
        """A hook for trained weights: their gradients are a part of their own."""
        if weight.grad is not None:
            self.move(weight.grad, "gradients")

    def stop(self) -> None:
        """Count nothing more: what dies from now on dies with the model."""
        self._known.clear()

    def _keep(self, storage: Any, number: int) -> None:
        key = storage._cdata
        self._known[key] = number, weakref.ref(storage, lambda _: self._dead(key))

    def _dead(self, key: int) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self.trace.free(known[0])

    def _take_over(self, first: torch.Tensor, total: torch.Tensor) -> None:
        """Let a sum of gradients use its first summand's allocation, as adding in place does."""
        storage = first.untyped_storage()
        number, self._taken_over = self._known.pop(storage._cdata)
        self._keep(total.untyped_storage(), number)

    def _check_taken_over(self) -> None:
        """A summand that is still held was not added to in place: count it after all."""
        storage = self._taken_over() if self._taken_over else None
        self._taken_over = None
        if storage is not None:
            self._keep(storage, self.trace.allocate(storage.nbytes()))

    def _adds_in_place(self, name: str, args: tuple[Any, ...]) -> bool:
        if name != "aten.add" or torch.is_grad_enabled() or not isinstance(args[1], torch.Tensor):
            return False
        first, second = args[0], args[1]
        storage = first.untyped_storage()
        whole = storage.nbytes() == first.numel() * first.element_size()
        alike = first.shape == second.shape and first.dtype == second.dtype
        return whole and alike and storage._cdata in self._known

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and count what it allocates."""
        self._check_taken_over()
        name = str(func).rpartition(".")[0]
        if is_suspicious(name):
            self.unknown.add(name)
        held = [self.trace.allocate(size, "workspaces") for size in self._table(name, args)]
        out = func(*args, **(kwargs or {}))
        if self._adds_in_place(name, args):
            self._take_over(args[0], out)
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.track(tensor)
        for number in held:
            self.trace.free(number)
        return out
