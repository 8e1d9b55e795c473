"""Errors for want of memory at chosen moments of a small run, and what to compare afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.runs.events import Event
from tests.core.loop_parts import Run
from tests.core.memory_limit import DeviceLimit, Fault
from tests.core.train_parts import curve

SETTINGS: dict[str, Any] = {"batch_size": 4, "gradient_accumulation_steps": 2, "dropout": 0.0}
TOLERANCE = 2e-5
"""Relative difference of losses and gradient norms: the sums of a split batch are added in another order."""


def needed(model: Path, rows: int, recompute: Recompute) -> int:
    """Bytes that the steps of a run need with so many rows at once, besides what was there before."""
    run = Run(model, **SETTINGS)
    run.trainer.state.micro_batch = rows
    run.path.recompute(recompute)
    with DeviceLimit() as device:
        for _ in range(run.trainer.plan.total_steps):
            run.trainer._step()
    return device.peak


def shortages(run: Run) -> list[Event]:
    return [event for event in run.folder.events() if event.kind == "out_of_memory"]


def told(run: Run) -> list[tuple[str, int, int | None, int | None, bool]]:
    fields = ("work", "step", "batch_before", "batch_after", "kept")
    return [tuple(event[name] for name in fields) for event in shortages(run)]


def validation(run: Run) -> list[float]:
    return [event["loss"] for event in run.folder.events() if event.kind == "evaluation"]


def assert_same_run(run: Run, undisturbed: Run) -> None:
    """The same losses at every step and evaluation, to rounding."""
    wanted, found = curve(undisturbed.folder.events()), curve(run.folder.events())
    assert list(found) == list(wanted) == [1, 2, 3, 4, 5, 6]
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=TOLERANCE), step
    assert validation(run) == pytest.approx(validation(undisturbed), rel=TOLERANCE)


def in_forward(run: Run, fault: Fault) -> None:
    """The second layer's forward pass; it is called in training only."""
    layer = run.model.get_base_model().model.layers[1]
    layer.register_forward_pre_hook(lambda *_: fault() if run.model.training else None)


def in_backward(run: Run, fault: Fault) -> None:
    layer = run.model.get_base_model().model.layers[1]
    layer.register_full_backward_hook(lambda *_: fault())


def before_the_update(run: Run, fault: Fault) -> None:
    run.trainer._optimizer.register_step_pre_hook(fault)


def after_the_update(run: Run, fault: Fault) -> None:
    run.trainer._optimizer.register_step_post_hook(fault)
