"""The collectives of a run's ranks: weights from the leader to all, gradients from all to the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from ollama_tune.core.train.world import Alone, Ended, Lost

T = TypeVar("T")

COLLECTIVE = timedelta(minutes=10)
PARTING = 5.0
"""Seconds that the ends of all ranks' collectives may be apart."""


class Collectives(Alone):
    """What a rank of a group moves together with the others; whether they live is `Group`'s part."""

    def __init__(self) -> None:
        import torch.distributed

        self._dist: Any = torch.distributed
        self._torch_store: Any = None
        self._colliding = self._aborts = False

    def connect(self, device: str) -> None:
        """Make the collectives: by NCCL, which moves tensors of GPUs only, or by gloo on the CPU."""
        store = self._dist.PrefixStore("collectives", self._torch_store)
        about = {"rank": self.rank, "world_size": self.size, "timeout": COLLECTIVE}
        try:
            self._dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, **about)
        except RuntimeError as error:
            self.blame(error)
        self._aborts = device == "cuda"

    def spread(self, weights: Sequence[Any]) -> None:
        """Give all ranks the leader's weights."""
        from ollama_tune.core.train.flat import broadcast

        self._together(lambda: broadcast(weights))

    def add_gradients(self, weights: Sequence[Any], factor: float = 1.0) -> None:
        """Sum up the gradients of all ranks at the leader, and multiply them with a factor."""
        from ollama_tune.core.train.flat import reduce

        self._together(lambda: reduce(weights, factor, leads=self.leads))

    def anywhere(self, flag: bool, device: str) -> bool:
        """See `Alone.anywhere`."""
        from ollama_tune.core.train.flat import anywhere

        return self._together(lambda: anywhere(flag, device)) if self.lockstep else flag

    def _together(self, work: Callable[[], T]) -> T:
        self._colliding = True
        try:
            found = work()
        except RuntimeError as error:
            self.blame(error)
        finally:
            self._colliding = False
        self.check()  # what was computed by collectives that were given up is worth nothing
        return found

    def blame(self, error: RuntimeError) -> NoReturn:
        """A collective failed: a rank has ended, which its missing signs of life will show."""
        self.confirm()
        if self.leads:
            raise Lost(
                "The processes of the run lost each other.",
                "Resume the run. If it happens at the start, name the network that connects the machines: "
                "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to its interface, as `ip route` shows it.",
                details=str(error)[:2000],
            ) from error
        raise Ended from error

    def disconnect(self) -> None:
        """End the collectives: with NCCL that takes all ranks, of which one may be late, or gone."""
        ending = threading.Thread(target=self._dist.destroy_process_group, daemon=True)
        ending.start()
        ending.join(PARTING)


def give_up() -> None:
    """Let every collective of this process end without result; NCCL only."""
    from torch.distributed.distributed_c10d import _abort_process_group

    _abort_process_group()
