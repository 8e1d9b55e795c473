"""Losses that are infinite or no number, in a model that really overflows when its adapter grows too far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter_config import WEIGHTS
from ollama_tune.core.runs.events import Event, effective
from ollama_tune.core.train.checkpoint import newest, publish
from ollama_tune.core.train.guard import NotFinite, not_finite
from ollama_tune.core.train.loop import Trainer
from ollama_tune.core.train.recovery import Rows
from ollama_tune.core.train.session import Stopped
from tests.core.loop_parts import Run, finished_run
from tests.overflow import build_overflowing
from tests.train_faults import DAMAGED, damage, listen_for_faults

FAST: dict[str, Any] = {"learning_rate": 0.03, "warmup": 0.0, "schedule": "constant", "dropout": 0.0}
SETTINGS = FAST | {"epochs": 2.0, "evaluation_interval": 3, "early_stopping": 0}
"""At this rate the second layer overflows in step 6 and, from half of it, in step 11; a quarter goes well."""


@pytest.fixture(scope="module")
def overflowing(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_overflowing(model_folder, tmp_path_factory.mktemp("overflowing") / "model")


@pytest.fixture(scope="module")
def undisturbed(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(overflowing, tmp_path_factory.mktemp("home"), **SETTINGS)


def told(run: Run) -> list[tuple[Any, ...]]:
    """Steps (those without a loss by a minus), what was gone back to, in order."""
    found: list[tuple[Any, ...]] = []
    for event in run.folder.events():
        if event.kind == "step":
            found.append(("step", event["step"] if event["loss"] is not None else -event["step"]))
        elif event.kind == "warning":
            found.append(("back", event.get("back_to")))
    return found


def story(events: list[Event]) -> list[tuple[Any, ...]]:
    """The history that counts, without times."""
    names = ("step", "loss", "gradient_norm", "learning_rate", "exact_match")
    kinds = ("step", "evaluation")
    return [(e.kind, *(e.get(name) for name in names)) for e in effective(events) if e.kind in kinds]


def test_what_is_not_finite_and_what_is_the_scalers_business() -> None:
    assert not_finite(2.0, 1.0, None) is None
    assert not_finite(math.nan, 1.0, None) == not_finite(math.inf, math.nan, 2.0**16) == "loss"
    assert not_finite(2.0, math.inf, None) == not_finite(2.0, math.nan, None) == "gradient"
    assert not_finite(2.0, math.inf, 2.0**16) is None
    assert not_finite(2.0, math.nan, 0.5) == "gradient", "smaller factors did not help: it is no overflow"


def test_a_step_is_left_out_then_the_run_goes_back_with_half_the_rate(undisturbed: Run) -> None:
    first = [("step", step) for step in (1, 2, 3, 4, 5)]
    left_out, again = [("back", None), ("step", 6), ("step", 7), ("back", 3)], [("step", 4), ("step", 5)]
    halved = [*again, *[("step", step) for step in (6, 7, 8, 9, 10)], ("back", 3)]
    end = [("step", step) for step in range(4, 13)]
    assert [abs_step(entry) for entry in told(undisturbed)] == [*first, *left_out, *halved, *end]
    steps = [event for event in effective(undisturbed.folder.events()) if event.kind == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert [event["learning_rate"] for event in steps] == pytest.approx([0.03] * 3 + [0.0075] * 9)
    assert all(event["loss"] is not None for event in steps)
    assert undisturbed.trainer.state.rate_factor == 0.25
    assert all(torch.isfinite(weight).all() for weight in undisturbed.path.weights.values())


def abs_step(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return (entry[0], abs(entry[1])) if entry[0] == "step" else entry


def test_the_person_is_told_plainly(undisturbed: Run) -> None:
    warnings = [event for event in undisturbed.folder.events() if event.kind == "warning"]
    assert "In step 6 the " in warnings[0]["what"] and "changed nothing" in warnings[0]["what"]
    for warning, rate in zip(warnings[1:], ("0.015", "0.0075"), strict=True):
        assert "went back to the checkpoint of step 3" in warning["what"] and rate in warning["what"]
    assert all(warning["fix"] for warning in warnings)


@pytest.mark.parametrize("calls", [12, 16, 24])
def test_a_run_that_is_killed_meanwhile_comes_to_the_same(
    overflowing: Path, undisturbed: Run, calls: int
) -> None:
    """Left at the n-th micro-batch as a kill leaves it, without another word."""
    run, loss, left = Run(overflowing, **SETTINGS), None, calls
    loss = run.path.loss

    def counted(batch: Any) -> Any:
        nonlocal left
        left -= run.model.training
        if left < 0:
            raise KeyboardInterrupt
        return loss(batch)

    run.path.loss = counted
    with pytest.raises(KeyboardInterrupt):
        run.trainer.run()
    again = Run(overflowing, run.folder, **SETTINGS)
    found, _ = newest(run.folder)
    again.session.emit("start", stage="train", resumed_from=found.state.step if found else None)
    if found:
        again.trainer.restore(found)
    again.trainer.run()
    assert story(run.folder.events()) == story(undisturbed.folder.events())


def test_a_run_that_is_stopped_after_going_back_keeps_the_lower_rate(
    overflowing: Path, undisturbed: Run
) -> None:
    run = Run(overflowing, **SETTINGS)
    save = run.trainer._save

    def stopping(reason: str, **options: Any) -> bool:
        saved = save(reason, **options)
        if reason == "not_finite":
            run.folder.stop_path.touch()
        return saved

    run.trainer._save = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        run.trainer.run()
    run.folder.stop_path.unlink()
    found, _ = newest(run.folder)
    assert found is not None and (found.state.step, found.state.rate_factor) == (3, 0.5)
    assert found.state.not_finite == [6, 8]
    again = Run(overflowing, run.folder, **SETTINGS)
    again.resume()
    again.trainer.run()
    assert story(run.folder.events()) == story(undisturbed.folder.events())


def test_the_run_ends_when_going_back_three_times_did_not_help_and_can_be_resumed(overflowing: Path) -> None:
    hopeless = SETTINGS | {"learning_rate": 1.0}
    run = Run(overflowing, **hopeless)
    with pytest.raises(NotFinite, match="although the run went back 3 times") as caught:
        run.trainer.run()
    assert "below 0.12" in caught.value.fix
    assert [entry for entry in told(run) if entry[0] == "back"] == [("back", None)] + [("back", 0)] * 3
    found, damaged = newest(run.folder)
    assert found is not None and not damaged and found.state.rate_factor == 0.125
    assert all(torch.isfinite(weight).all() for weight in run.path.weights.values())
    again = Run(overflowing, run.folder, **hopeless)
    again.resume()
    with pytest.raises(NotFinite):
        again.trainer.run()


def test_a_weight_that_was_damaged_in_memory_is_mended_by_the_checkpoint(model_folder: Path) -> None:
    run = Run(model_folder, evaluation_interval=3, early_stopping=0)
    step, damaged = run.trainer._step, []

    def poisoned() -> None:
        if run.trainer.state.step == 4 and not damaged:
            damaged.append(next(iter(run.path.weights.values())).data.fill_(math.nan))
        step()

    run.trainer._step = poisoned  # type: ignore[method-assign]
    run.trainer.run()
    assert told(run)[4:7] == [("back", 3), ("step", 4), ("step", 5)]
    steps = [event for event in effective(run.folder.events()) if event.kind == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert all(event["loss"] is not None for event in steps)
    assert all(torch.isfinite(weight).all() for weight in run.path.weights.values())


def test_a_stop_right_after_a_weight_was_damaged_writes_no_checkpoint(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(model_folder, evaluation_interval=3, early_stopping=0)
    monkeypatch.setattr(Trainer, "compute", Trainer.compute)  # what the faults change is put back at the end
    damage(run.folder.path)
    listen_for_faults(run.folder.path)
    failing = Trainer.compute

    def stopping(trainer: Trainer, window: Rows, step: int) -> Any:
        if trainer.state.step == DAMAGED and trainer.state.rate_factor == 1.0:
            run.folder.stop_path.touch()
        return failing(trainer, window, step)

    monkeypatch.setattr(Trainer, "compute", stopping)
    with pytest.raises(Stopped):
        run.trainer.run()
    assert not all(torch.isfinite(weight).all() for weight in run.path.weights.values())
    assert told(run)[-2:] == [("step", DAMAGED), ("back", None)]
    with pytest.raises(TuneError, match="not published"):
        publish(run.folder, run.path)
    monkeypatch.setattr(Trainer, "compute", failing)
    run.folder.stop_path.unlink()
    again = Run(model_folder, run.folder, evaluation_interval=3, early_stopping=0)
    assert again.resume() == [] and again.trainer.state.step == 6
    again.trainer.run()
    assert [entry for entry in told(run) if entry[0] == "back"] == [("back", None), ("back", 6)]
    publish(run.folder, again.path)
    assert all(torch.isfinite(weight).all() for weight in load_file(run.folder.adapter / WEIGHTS).values())


def test_an_infinite_gradient_under_float16s_scaler_is_no_alarm(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(model_folder, epochs=0.5)
    monkeypatch.setattr(run.trainer, "_new_scaler", lambda: torch.amp.GradScaler("cpu", init_scale=2.0**127))
    run.trainer._scaler = run.trainer._new_scaler()
    run.trainer.run()
    steps = [event for event in run.folder.events() if event.kind == "step"]
    assert steps[0]["gradient_norm"] is None and steps[0]["loss"] is not None
    assert run.trainer._scaler.get_scale() < 2.0**127
    assert not [event for event in run.folder.events() if event.kind == "warning"]
