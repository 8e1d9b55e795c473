"""Gets a worker ready before there is a run: the slow imports, and the model that will likely be trained.

Its folder is how it is talked to. The parent puts there `prepare` (the settings of a run that is likely) and
`order` (the run), the worker puts `ready` when the imports are done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.identity import same_process
from ollama_tune.core.runs.launch import nice_worker
from ollama_tune.core.train.housekeeping import lasting
from ollama_tune.core.train.prepared import Overtaken, Prepared

POLL = 0.05
PARENT_CHECKS = 20
"""Polls between two looks whether the parent is still there."""


@dataclass(frozen=True)
class Order:
    """The run to work on, and what was loaded for it while nobody waited."""

    folder: RunFolder
    stage: str
    prepared: Prepared


def wait_for_order(warm: Path, parent: int, created: float) -> Order | None:
    """Import the libraries, then wait for `order` in the warm folder; None when the parent is gone.

    An order is claimed by renaming it, so that it is either taken by this process or withdrawn by the
    parent, never both. Output then goes to the run's own log.
    """
    if _gone(parent, created):
        return None
    nice_worker()
    _import_libraries()
    (warm / "ready").touch(mode=0o600)
    prepared = Prepared()
    polls = 0
    while not _claim(warm, "order"):
        _prepare(warm, prepared)
        polls += 1
        if polls % PARENT_CHECKS == 0 and _gone(parent, created):
            shutil.rmtree(warm, ignore_errors=True)
            return None
        time.sleep(POLL)
    order = json.loads((warm / "order.taken").read_text())
    folder = RunFolder(Path(order["folder"]))
    _enter(folder)
    shutil.rmtree(warm, ignore_errors=True)
    return Order(folder, str(order["stage"]), prepared)


def _claim(warm: Path, name: str) -> bool:
    try:
        (warm / name).rename(warm / f"{name}.taken")
    except FileNotFoundError:
        return False
    return True


def _prepare(warm: Path, prepared: Prepared) -> None:
    """Load what the newest draft names; a newer one or an order ends that, and a failure leaves nothing."""
    if not _claim(warm, "prepare"):
        return

    def overtaken() -> bool:
        return any((warm / name).exists() for name in ("order", "prepare"))

    with contextlib.suppress(Overtaken, TuneError, OSError, RuntimeError, MemoryError, ValueError):
        draft = json.loads((warm / "prepare.taken").read_text(encoding="utf-8"))
        prepared.load(parse(draft) if draft is not None else None, overtaken)


def _gone(pid: int, created: float) -> bool:
    """True when the process ended or its number belongs to another one now."""
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return ended or not same_process(process, created)
    except psutil.NoSuchProcess:
        return True


def _enter(folder: RunFolder) -> None:
    os.chdir(folder.path)
    log = os.open(folder.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _import_libraries() -> None:
    """What every run on the fast path needs; a draft that takes the general one brings in the rest."""
    with lasting():
        import torch  # noqa: F401

        from ollama_tune.core.train import loop, recipe  # noqa: F401
        from ollama_tune.core.train.fast import decode, path  # noqa: F401
