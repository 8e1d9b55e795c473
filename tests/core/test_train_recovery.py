"""Out of memory at every moment of a run: the curve is that of an undisturbed run, and no row is lost."""

from __future__ import annotations

import contextlib
import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.train.path import STEPS_DOWN
from ollama_tune.core.train.session import Stopped
from ollama_tune.core.train.shortage import Offload
from tests.core.loop_parts import TRAIN, Run, finished_run
from tests.core.memory_limit import OUT_OF_MEMORY, DeviceLimit, Fault
from tests.core.recovery_parts import (
    SETTINGS,
    after_the_update,
    assert_same_run,
    before_the_update,
    in_backward,
    in_forward,
    needed,
    shortages,
    told,
)
from tests.core.train_parts import curve


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(model_folder, tmp_path_factory.mktemp("home"), **SETTINGS)


@pytest.mark.parametrize(
    ("place", "moments"),
    [
        (in_forward, (1,)),
        (in_forward, (4, 9)),
        (in_backward, (2,)),
        (in_backward, (5, 6)),
        (before_the_update, (1,)),
        (before_the_update, (3,)),
    ],
)
def test_an_error_anywhere_in_a_step_changes_no_loss(
    model_folder: Path, undisturbed: Run, place: Any, moments: tuple[int, ...]
) -> None:
    run = Run(model_folder, **SETTINGS)
    fault = Fault(*moments)
    place(run, fault)
    run.trainer.run()
    assert fault.calls > max(moments)
    assert_same_run(run, undisturbed)
    assert {(e["work"], e["wish"], e["kept"]) for e in shortages(run)} == {("training", "20.00 MiB", False)}
    assert len(shortages(run)) == len(moments)
    assert all(e["allocated"] > 0 and e["free"] > 0 for e in shortages(run))
    assert run.trainer.state.micro_batch is None


def test_an_error_after_the_update_does_not_update_twice(model_folder: Path, undisturbed: Run) -> None:
    run = Run(model_folder, **SETTINGS)
    after_the_update(run, Fault(1, 4))
    run.trainer.run()
    assert curve(run.folder.events()) == curve(undisturbed.folder.events())
    assert shortages(run) == []


def test_an_error_between_two_states_of_the_optimizer_leaves_no_half_state(
    model_folder: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, zeros, fault = Run(model_folder, **SETTINGS), torch.zeros_like, Fault(4)

    def failing(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        fault()
        return zeros(tensor, **options)

    monkeypatch.setattr(torch, "zeros_like", failing)
    run.trainer.run()
    assert fault.calls > 4 and told(run) == [("training", 1, 4, 2, False)]
    assert_same_run(run, undisturbed)


def test_an_error_in_clipping_with_a_scaled_loss_is_done_again(
    model_folder: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler of float16: gradients are unscaled by then, which torch allows once a step."""
    run, clip, fault = Run(model_folder, **SETTINGS), torch.nn.utils.clip_grad_norm_, Fault(2)

    def failing(*arguments: Any) -> Any:
        fault()
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing)
    monkeypatch.setattr(run.trainer, "_new_scaler", lambda: torch.amp.GradScaler("cpu", init_scale=256.0))
    run.trainer._scaler = run.trainer._new_scaler()
    run.trainer.run()
    assert told(run) == [("training", 2, 4, 2, False)]
    assert run.trainer._scaler.get_scale() == 256.0
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize(
    ("enough", "too_little", "recompute"),
    [
        ((2, "none"), (4, "none"), None),
        ((1, "none"), (2, "none"), None),
        ((1, "layers"), (1, "mlp"), "layers"),
    ],
)
def test_a_device_with_little_memory_gives_the_same_curve(
    model_folder: Path, undisturbed: Run, enough: Any, too_little: Any, recompute: str | None
) -> None:
    limit = (needed(model_folder, *enough) + needed(model_folder, *too_little)) // 2
    run = Run(model_folder, **SETTINGS)
    seen: list[list[int]] = []
    compute = run.trainer.compute

    def noted(window: Any, step: int) -> Any:
        result = compute(window, step)
        seen.append([row for batch in window for row in batch])
        return result

    run.trainer.compute = noted  # type: ignore[method-assign]
    with DeviceLimit(limit) as device:
        run.trainer.run()
    assert device.raised == len([event for event in shortages(run) if event["wish"]]) > 0
    assert_same_run(run, undisturbed)
    steps = [[row for batch in run.trainer.plan.window(step) for row in batch] for step in range(6)]
    assert seen == steps
    assert sorted(row for step in seen[:3] for row in step) == list(range(len(TRAIN)))
    assert min(event["batch_after"] for event in shortages(run)) == enough[0]
    assert run.trainer.state.recompute == recompute
    gc.collect()
    assert device.live < 100_000  # the adapter's moments


def to_host(model: Any, device: DeviceLimit) -> Offload:
    """An offload whose copies count as the computer's memory."""

    class ToHost(Offload):
        SMALL = 1

        def to_host(self, tensor: Any) -> Any:
            with device.host():
                return tensor.clone()

        def to_device(self, tensor: Any, device: Any) -> Any:
            return tensor.clone()

    return ToHost(model)


def test_offload_is_the_rung_after_checkpointing(model_folder: Path, undisturbed: Run) -> None:
    run, device = Run(model_folder, **SETTINGS), DeviceLimit()
    run.path._offload, run.trainer.recovery.steps_down = to_host(run.model, device), STEPS_DOWN

    def full(*_: Any) -> None:
        if run.model.training and run.trainer.state.step == 2 and run.trainer.state.recompute != "offload":
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    run.model.get_base_model().model.layers[1].register_forward_pre_hook(full)
    with device:
        run.trainer.run()
    changes = [event["change"] for event in shortages(run)]
    words = ["2 rows at once", "1 row at once", "feed-forward", "activations", "the computer's memory"]
    assert [word in change for word, change in zip(words, changes, strict=True)] == [True] * 5
    assert [event["kept"] for event in shortages(run)] == [False, False, True, True, True]
    assert_same_run(run, undisturbed)


def test_offload_takes_what_is_saved_for_backward_off_the_device(model_folder: Path) -> None:
    run, live = Run(model_folder, **SETTINGS), []
    for offloaded in (False, True):
        device = DeviceLimit()
        with device, to_host(run.model, device).hooks() if offloaded else contextlib.nullcontext():
            loss = run.path.loss(run.trainer.computer.collate([0, 1]))
            live.append(device.live)
            loss.backward()
        run.trainer.discard()
        del loss
    assert live[1] < 0.2 * live[0]


def test_offload_leaves_the_models_weights_where_they_are(model_folder: Path) -> None:
    run, moved = Run(model_folder, **SETTINGS), []

    class Watched(Offload):
        SMALL = 1

        def to_host(self, tensor: Any) -> Any:
            moved.append(tensor.untyped_storage().data_ptr())
            return tensor.to("cpu", copy=True)

    offload = Watched(run.model)
    with offload.hooks():
        run.path.loss(run.trainer.computer.collate([0, 1])).backward()
    weights = {weight.untyped_storage().data_ptr() for weight in run.model.parameters()}
    assert moved and not weights & set(moved)


def test_three_steps_without_memory_among_fifty_settle_the_micro_batch(
    model_folder: Path, undisturbed: Run
) -> None:
    run = Run(model_folder, **SETTINGS)
    in_forward(run, Fault(1, 6, 11))  # the first micro-batch of three steps; done again they have four each
    loss, sizes = run.path.loss, []

    def noted(batch: Any) -> Any:
        if run.model.training:
            sizes.append(len(batch.rows[0]))
        return loss(batch)

    run.path.loss = noted
    run.trainer.run()
    halves = [("training", step, 4, 2, False) for step in (1, 2, 3)]
    assert told(run) == [*halves, ("training", 3, 4, 2, True)]
    assert run.trainer.state.micro_batch == 2 and sizes == [4, 2, 2, 2, 2] * 3 + [2, 2, 2, 2] * 3
    assert_same_run(run, undisturbed)


def test_what_was_settled_is_in_the_checkpoint_and_a_resume_goes_on_bit_for_bit(model_folder: Path) -> None:
    wanted = Run(model_folder, **SETTINGS | {"dropout": 0.1})
    wanted.trainer.state.micro_batch, wanted.trainer.state.recompute = 1, "layers"
    wanted.trainer.recovery.adopt(wanted.trainer.state)
    first = Run(model_folder, **SETTINGS | {"dropout": 0.1})
    first.trainer.recovery.adopt(copy.deepcopy(wanted.trainer.state))
    first.trainer.state = first.trainer.recovery.state
    wanted.trainer.run()

    loss, calls = first.path.loss, Fault()

    def counted(batch: Any) -> Any:
        calls()
        if calls.calls == 30:
            first.folder.stop_path.touch()
        return loss(batch)

    first.path.loss = counted
    with pytest.raises(Stopped):
        first.trainer.run()
    first.folder.stop_path.unlink()
    second = Run(model_folder, first.folder, **SETTINGS)
    second.resume()
    assert second.trainer.state.micro_batch == 1 and second.trainer.recovery.recompute == "layers"
    second.trainer.run()
    assert curve(second.folder.events()) == curve(wanted.folder.events())


def test_a_split_window_draws_the_same_dropout_each_time(model_folder: Path) -> None:
    curves = []
    for _ in range(2):
        run = Run(model_folder, **SETTINGS | {"dropout": 0.2, "epochs": 1.0})
        in_forward(run, Fault(3))
        run.trainer.run()
        assert len(shortages(run)) == 1
        curves.append(curve(run.folder.events()))
    assert curves[0] == curves[1]
