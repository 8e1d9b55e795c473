"""A worker that gets ready before there is a run: the slow imports are done while a person chooses."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import psutil

from ollama_tune.core.runs.folder import RunFolder, same_process
from ollama_tune.core.runs.launch import nice_worker

POLL = 0.05
PARENT_CHECKS = 20


def wait_for_order(warm: Path, parent: int, created: float) -> tuple[RunFolder, str] | None:
    """Import everything, then wait for `order` in the warm folder; None when the parent is gone.

    An order is claimed by renaming it, so that it is either taken by this process or withdrawn by the
    parent, never both. Output then goes to the run's own log.
    """
    if _gone(parent, created):
        return None
    nice_worker()
    _import_everything()
    (warm / "ready").touch(mode=0o600)
    polls = 0
    while not _claim(warm):
        polls += 1
        if polls % PARENT_CHECKS == 0 and _gone(parent, created):
            shutil.rmtree(warm, ignore_errors=True)
            return None
        time.sleep(POLL)
    order = json.loads((warm / "taken").read_text())
    folder = RunFolder(Path(order["folder"]))
    _enter(folder)
    shutil.rmtree(warm, ignore_errors=True)
    return folder, str(order["stage"])


def _claim(warm: Path) -> bool:
    try:
        (warm / "order").rename(warm / "taken")
    except FileNotFoundError:
        return False
    return True


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


def _import_everything() -> None:
    """All modules of a training run, and one optimizer step, which imports more of torch at first use."""
    import torch
    from transformers.models.auto import modeling_auto  # noqa: F401

    from ollama_tune.core.evaluate import generate  # noqa: F401
    from ollama_tune.core.train import loop, recipe  # noqa: F401

    weight = torch.nn.Parameter(torch.ones(1))
    weight.square().sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW([weight], fused=True).step()
