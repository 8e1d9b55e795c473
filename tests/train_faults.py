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


def stop_at(folder: Path, step: int) -> None:
    """Let the run be asked to stop as soon as this step is told, however soon it would be at its end."""
    (folder / "stop-at").write_text(str(step))


def damage(folder: Path) -> None:
    """Let a weight of the run be damaged in step 8 whenever it is computed at the full learning rate.

    That sends the run back, and at half the rate all goes well.
    """
    (folder / "damage").touch()


def listen_for_stops(folder: Path) -> None:
    """From now on this process, a worker, asks itself to stop at the step that its run's folder names."""
    from ollama_tune.core.runs.events import EventWriter

    write, wish = EventWriter.write, folder / "stop-at"

    def telling(self: EventWriter, kind: str, **data: Any) -> Any:
        event = write(self, kind, **data)
        if kind == "step" and wish.exists() and int(wish.read_text()) == data["step"]:
            wish.unlink()
            (folder / "stop").touch()
        return event

    EventWriter.write = telling  # type: ignore[method-assign]


def listen_for_faults(folder: Path) -> None:
    """From now on this process, a worker, meets the faults that its run's folder asks for."""
    import torch

    listen_for_stops(folder)

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
