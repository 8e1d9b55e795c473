"""Several ranks of one run on this box, forked from a process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ollama_tune.core.runs.folder import RunFolder
from tests.ports import free_port
from tests.train_faults import listen_for_stops

PRELOADED = [
    "torch.distributed.fsdp",
    "ollama_tune.core.train.recipe",
    "ollama_tune.core.train.leader",
    "ollama_tune.core.train.fast.decode",
    "ollama_tune.core.train.fast.path",
]


class Ranks:
    """Processes that work on a run as under torchrun, but without its launcher: rank 0 serves the store.

    `fault` is what one of them meets: see `_meet`; `more` goes into their environment.
    """

    def __init__(self, folder: RunFolder, size: int, fault: str = "", **more: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        about = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": str(free_port())}
        about |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        about |= {"OLLAMA_TUNE_HOME": os.environ["OLLAMA_TUNE_HOME"], "HF_HUB_OFFLINE": "1"}
        about |= more
        self.folder = folder
        self.processes: list[BaseProcess] = []
        for rank in range(size):
            own = about | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_work, args=(folder, own, fault))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 400.0) -> list[int | None]:
        """The exit statuses once all have ended."""
        for process in self.processes:
            process.join(seconds)
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return found


def _work(folder: RunFolder, environment: dict[str, str], fault: str) -> None:
    os.environ.update(environment)
    with folder.log_path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from ollama_tune.core.train.worker import serve

    listen_for_stops(folder.path)
    if fault and environment["RANK"] == "1":
        _meet(fault)
    sys.exit(serve(folder, "train"))


def _meet(fault: str) -> None:
    """What this rank meets.

    In its second step it runs out of memory (`short`) or fails (`broken`); it hears late that the run is over
    (`late`), when a leader that does not wait for it is gone; it comes some seconds after the leader
    (`slow`); or it reads `other rows`.
    """
    from ollama_tune.core.train import recipe
    from ollama_tune.core.train.compute import Computer
    from ollama_tune.core.train.group import CONFIRM, Group

    begin, hear, join, read = Computer.begin, Group._hear_end, Group.join, recipe.load_dataset

    def late(self: Group) -> None:
        if not self._ended and self._heart_store.has("end"):
            time.sleep(CONFIRM + 1.0)
        hear(self)

    def slow(self: Group) -> None:
        time.sleep(CONFIRM + 1.0)
        join(self)

    def other(path: str, *about: Any) -> Any:
        written = Path(path).read_text().splitlines()
        changed = Path(path).with_name("changed.jsonl")
        changed.write_text("\n".join(reversed(written)))
        return read(str(changed), *about)

    changes: dict[str, tuple[Any, str, Any]] = {
        "late": (Group, "_hear_end", late),
        "slow": (Group, "join", slow),
        "other rows": (recipe, "load_dataset", other),
    }
    setattr(*changes.get(fault) or (Computer, "begin", _failing(fault, begin)))


def _failing(fault: str, begin: Any) -> Any:
    import torch

    steps: list[int] = []

    def failing(self: Any, window: Any, step: int, rank: int = 0) -> Any:
        steps.append(step)
        if len(steps) == 2:
            words = "CUDA out of memory. Tried to allocate 20.00 MiB."
            raise torch.OutOfMemoryError(words) if fault == "short" else ValueError("a row of the data")
        return begin(self, window, step, rank)

    return failing
