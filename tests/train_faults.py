"""Faults that a worker meets when a test asks for them by a file in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = {
    "oom": "CUDA out of memory. Tried to allocate 20.00 MiB.",
    "gpu": "CUDA error: device-side assert triggered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
}

DAMAGED = 7


def ask_for_fault(folder: Path, fault: str) -> None:
    """Let the run's worker meet it at its next step; may be asked for before it starts."""
    (folder / "fault.part").write_text(fault)
    (folder / "fault.part").rename(folder / "fault")


def damage(folder: Path) -> None:
    """Let a weight of the run be damaged in step 8 whenever it is computed at the full learning rate.

    That sends the run back, and at half the rate all goes well.
    """
    (folder / "damage").touch()


def listen_for_faults(folder: Path) -> None:
    """From now on this process, a worker, meets the faults that its run's folder asks for."""
    import torch

    from ollama_tune.core.train.loop import Trainer

    compute: Callable[[Any, Any, int], Any] = Trainer.compute
    wish, damaged = folder / "fault", (folder / "damage").exists()

    def failing(trainer: Any, window: Any, step: int) -> Any:
        if damaged and trainer.state.step == DAMAGED and trainer.state.rate_factor == 1.0:
            trainer._weights[0].data.fill_(torch.nan)
        if not os.path.exists(wish):  # noqa: PTH110
            return compute(trainer, window, step)
        fault = wish.read_text()
        wish.unlink()
        kind = torch.OutOfMemoryError if fault == "oom" else RuntimeError
        raise kind(WORDS[fault])

    Trainer.compute = failing  # type: ignore[method-assign]
