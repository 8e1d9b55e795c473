"""What a process knows of the others of its run before it meets them; alone, there is nothing to wait for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ollama_tune.core.errors import TuneError

T = TypeVar("T")

ATTEMPT = "OLLAMA_TUNE_ATTEMPT"
"""How often the ranks of this launch began again in fresh processes: each time with keys of their own."""
PLACE = "OLLAMA_TUNE_LOCAL_RANK"
"""A rank's number on its machine, for the fresh process that follows it."""
NCCL_WATCH = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0"}
"""What keeps torch's watchdog from ending a process whose collective failed."""


def own_gpu(visible: str | None, place: int) -> str:
    """What the process of this number on its machine shall see of the GPUs that CUDA_VISIBLE_DEVICES names.

    Nothing where there are fewer of them than processes: a GPU that was left out on purpose is not taken.
    """
    if visible is None or not visible.strip():
        return str(place) if visible is None else ""
    seen = [name.strip() for name in visible.split(",") if name.strip()]
    if len(seen) == 1:
        return seen[0]
    return seen[place] if place < len(seen) else ""


class Lost(TuneError):
    """A rank ended or hangs."""


class LostMemory(Lost):
    """Memory ran out on a rank that holds a part of the model, which the others wait for."""


class Ended(Exception):
    """The leader is done with this rank."""


@dataclass(frozen=True)
class World:
    """What torchrun tells a process about itself; `agent` where its launcher serves the store."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    agent: bool
    prefix: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> World | None:
        """By RANK, WORLD_SIZE and the like; None where there is one process."""
        if int(environment.get("WORLD_SIZE", "1")) < 2 or "RANK" not in environment:
            return None
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0"), environment.get(ATTEMPT, "0")
        return cls(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get(PLACE) or environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT", "29500")),
            agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            prefix=f"ollama-tune/{'/'.join(attempt)}",
        )

    def take_place(self) -> None:
        """Let this process see its own GPU only, as the first one; to be called before torch is imported.

        A launcher may have given it that one already. Libraries take LOCAL_RANK for the number of the GPU
        (torch's `init_device_mesh` does), so it is 0 from here on. Torch's remarks on each wait that takes
        longer than a second are kept out of the log; that a rank is lost is noticed by its signs of life, and
        NCCL's own watch, which would end this process before it has told so, is off.
        """
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.update(NCCL_WATCH)
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(seen, self.local_rank)
        os.environ[PLACE] = str(self.local_rank)
        os.environ["LOCAL_RANK"] = "0"


class Alone:
    """A run of one process: there is nobody to wait for."""

    rank, size, local_size = 0, 1, 1
    leads, lockstep = True, False

    @property
    def ended(self) -> bool:
        """True where the leader is done with this rank."""
        return False

    @property
    def wish(self) -> str | None:
        """Who asked another rank to end: as good as if this one had been asked."""
        return None

    def check(self) -> None:
        """Raise `Lost` where a rank is lost, `Ended` where the leader is done with this one."""

    def confirm(self) -> None:
        """Make sure that all ranks live, although this process was told to end; else raise `Lost`."""

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do the work after the leader, and on each machine one rank first: it finds what those stored."""
        return work()

    def anywhere(self, flag: bool, device: str) -> bool:
        """Whether any of the ranks that compute in step says so."""
        return flag

    def one_by_one(self, work: Callable[[], T]) -> T:
        """Do the work after the rank before this one on this machine, for want of memory to do it at once."""
        return work()

    def meet(self, name: str, value: str) -> list[str]:
        """Wait for all ranks to come to this place; what each of them brings."""
        return [value]

    def told(self) -> dict[str, Any]:
        """Further fields of a `memory` event."""
        return {}

    def leave(self, *, whole: bool = False) -> None:
        """Let all followers end; `whole` where nobody is in the middle of anything."""

    def restart(self) -> None:
        """Let all ranks begin again in fresh processes; this one does so afterwards."""
