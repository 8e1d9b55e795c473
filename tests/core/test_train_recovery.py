"""Out of memory at every moment of a run: the curve is that of an undisturbed run, and no row is lost."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.evaluate.generate import Generator
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.runs import control, launch
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.train import checkpoint, recovery
from ollama_tune.core.train.checkpoint import newest
from ollama_tune.core.train.measure import Held, write_reference
from ollama_tune.core.train.model import add_adapter, load_base
from ollama_tune.core.train.recovery import OutOfMemory, Restart, split
from ollama_tune.core.train.session import Stopped
from ollama_tune.core.train.shortage import Offload, is_out_of_memory
from tests.core.loop_parts import TRAIN, Run
from tests.core.memory_limit import OUT_OF_MEMORY, DeviceLimit, Fault
from tests.core.train_parts import curve, make_run, quiet_environment, wait_for, work, write_rows
from tests.tiny import build_model

SETTINGS: dict[str, Any] = {"batch_size": 4, "gradient_accumulation_steps": 2, "dropout": 0.0}
TOLERANCE = 2e-5
"""Relative difference of losses and gradient norms: the sums of a split batch are added in another order."""
WHOLE, HALF, ONE, LEAST = 1_739_560, 879_792, 413_852, 224_912
"""Bytes a step's tensors need with 4, 2 and 1 rows at once, and with one row and checkpointing."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        run = Run(model, **SETTINGS)
        run.trainer.run()
    return run


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
    model: Path, undisturbed: Run, place: Any, moments: tuple[int, ...]
) -> None:
    run = Run(model, **SETTINGS)
    fault = Fault(*moments)
    place(run, fault)
    run.trainer.run()
    assert fault.calls > max(moments)
    assert_same_run(run, undisturbed)
    assert {(e["work"], e["wish"], e["kept"]) for e in shortages(run)} == {("training", "20.00 MiB", False)}
    assert len(shortages(run)) == len(moments)
    assert all(e["allocated"] > 0 and e["free"] > 0 for e in shortages(run))
    assert run.trainer.state.micro_batch is None


def test_an_error_after_the_update_does_not_update_twice(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    after_the_update(run, Fault(1, 4))
    run.trainer.run()
    assert curve(run.folder.events()) == curve(undisturbed.folder.events())
    assert shortages(run) == []


def test_an_error_between_two_states_of_the_optimizer_leaves_no_half_state(
    model: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, zeros, fault = Run(model, **SETTINGS), torch.zeros_like, Fault(4)

    def failing(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        fault()
        return zeros(tensor, **options)

    monkeypatch.setattr(torch, "zeros_like", failing)
    run.trainer.run()
    assert fault.calls > 4 and told(run) == [("training", 1, 4, 2, False)]
    assert_same_run(run, undisturbed)


def test_an_error_in_clipping_with_a_scaled_loss_is_done_again(
    model: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler of float16: gradients are unscaled by then, which torch allows once a step."""
    run, clip, fault = Run(model, **SETTINGS), torch.nn.utils.clip_grad_norm_, Fault(2)

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
    ("limit", "rows", "checkpointing"),
    [((WHOLE + HALF) // 2, 2, False), ((HALF + ONE) // 2, 1, False), ((ONE + LEAST) // 2, 1, True)],
)
def test_a_device_with_little_memory_gives_the_same_curve(
    model: Path, undisturbed: Run, limit: int, rows: int, checkpointing: bool
) -> None:
    run = Run(model, **SETTINGS)
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
    assert min(event["batch_after"] for event in shortages(run)) == rows
    assert run.trainer.state.checkpointing is checkpointing
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


def test_offload_is_the_rung_after_checkpointing(model: Path, undisturbed: Run) -> None:
    run, device = Run(model, **SETTINGS), DeviceLimit()
    run.trainer.recovery.offload = to_host(run.model, device)

    def full(*_: Any) -> None:
        if run.model.training and run.trainer.state.step == 2 and not run.trainer.state.offload:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    run.model.get_base_model().model.layers[1].register_forward_pre_hook(full)
    with device:
        run.trainer.run()
    changes = [event["change"] for event in shortages(run)]
    words = ["2 rows at once", "1 row at once", "recomputed", "the computer's memory"]
    assert [word in change for word, change in zip(words, changes, strict=True)] == [True] * 4
    assert [event["kept"] for event in shortages(run)] == [False, False, True, True]
    assert_same_run(run, undisturbed)


def test_offload_takes_what_is_saved_for_backward_off_the_device(model: Path) -> None:
    run, live = Run(model, **SETTINGS), []
    for offloaded in (False, True):
        device = DeviceLimit()
        with device, to_host(run.model, device).hooks() if offloaded else contextlib.nullcontext():
            loss = run.trainer.objective(run.trainer.collate([0, 1]))
            live.append(device.live)
            loss.backward()
        run.trainer.discard()
        del loss
    assert live[1] < 0.2 * live[0]


def test_offload_leaves_the_models_weights_where_they_are(model: Path) -> None:
    run, moved = Run(model, **SETTINGS), []

    class Watched(Offload):
        SMALL = 1

        def to_host(self, tensor: Any) -> Any:
            moved.append(tensor.untyped_storage().data_ptr())
            return tensor.to("cpu", copy=True)

    offload = Watched(run.model)
    with offload.hooks():
        run.trainer.objective(run.trainer.collate([0, 1])).backward()
    weights = {weight.untyped_storage().data_ptr() for weight in run.model.parameters()}
    assert moved and not weights & set(moved)


def test_three_steps_without_memory_among_fifty_settle_the_micro_batch(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    in_forward(run, Fault(1, 6, 11))  # the first micro-batch of three steps; done again they have four each
    objective, sizes = run.trainer.objective, []

    def noted(batch: Any) -> Any:
        if run.model.training:
            sizes.append(len(batch.ids))
        return objective(batch)

    run.trainer.objective = noted  # type: ignore[assignment]
    run.trainer.run()
    halves = [("training", step, 4, 2, False) for step in (1, 2, 3)]
    assert told(run) == [*halves, ("training", 3, 4, 2, True)]
    assert run.trainer.state.micro_batch == 2 and sizes == [4, 2, 2, 2, 2] * 3 + [2, 2, 2, 2] * 3
    assert_same_run(run, undisturbed)


def test_what_was_settled_is_in_the_checkpoint_and_a_resume_goes_on_bit_for_bit(model: Path) -> None:
    wanted = Run(model, **SETTINGS | {"dropout": 0.1})
    wanted.trainer.state.micro_batch, wanted.trainer.state.checkpointing = 1, True
    wanted.trainer.recovery.adopt(wanted.trainer.state)
    first = Run(model, **SETTINGS | {"dropout": 0.1})
    first.trainer.recovery.adopt(copy.deepcopy(wanted.trainer.state))
    first.trainer.state = first.trainer.recovery.state
    wanted.trainer.run()

    objective, calls = first.trainer.objective, Fault()

    def counted(batch: Any) -> Any:
        calls()
        if calls.calls == 30:
            first.folder.stop_path.touch()
        return objective(batch)

    first.trainer.objective = counted  # type: ignore[assignment]
    with pytest.raises(Stopped):
        first.trainer.run()
    first.folder.stop_path.unlink()
    second = Run(model, first.folder, **SETTINGS)
    second.resume()
    assert second.trainer.state.micro_batch == 1 and second.trainer.recovery.checkpointing
    second.trainer.run()
    assert curve(second.folder.events()) == curve(wanted.folder.events())


def test_a_split_window_draws_the_same_dropout_each_time(model: Path) -> None:
    curves = []
    for _ in range(2):
        run = Run(model, **SETTINGS | {"dropout": 0.2, "epochs": 1.0})
        in_forward(run, Fault(3))
        run.trainer.run()
        assert len(shortages(run)) == 1
        curves.append(curve(run.folder.events()))
    assert curves[0] == curves[1]


def test_when_nothing_helps_the_run_asks_for_a_fresh_process_once(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    in_forward(run, Fault(*range(5, 1000)))
    with pytest.raises(Restart):
        run.trainer.run()
    found, _ = newest(run.folder)
    assert found is not None and found.state.step == 2
    assert (found.state.micro_batch, found.state.checkpointing, found.state.restarted_at) == (1, True, 2)
    changes = [event["change"] for event in shortages(run)]
    assert [event["step"] for event in shortages(run)] == [3, 3, 3, 3]
    assert "begins again from a checkpoint" in changes[-1]

    again = Run(model, run.folder, **SETTINGS)
    again.resume()
    in_forward(again, Fault(*range(1, 1000)))
    with pytest.raises(OutOfMemory, match="does not suffice for one row in step 3"):
        again.trainer.run()
    assert shortages(again)[-1]["change"] is None

    last = Run(model, run.folder, **SETTINGS)
    last.resume()
    last.trainer.run()
    assert_same_run(last, undisturbed)


def test_a_restart_before_the_first_step_has_a_checkpoint_too(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    in_forward(run, Fault(*range(1, 1000)))
    with pytest.raises(Restart):
        run.trainer.run()
    again = Run(model, run.folder, **SETTINGS)
    again.resume()
    assert again.trainer.state.step == 0 and again.trainer.state.micro_batch == 1
    again.trainer.run()
    assert_same_run(again, undisturbed)


def test_an_evaluation_splits_its_own_batch_and_never_the_trainings(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    objective, sizes, fault = run.trainer.objective, [], Fault(2)

    def failing(batch: Any) -> Any:
        if not run.model.training:
            fault()
        else:
            sizes.append(len(batch.ids))
        return objective(batch)

    run.trainer.objective = failing  # type: ignore[assignment]
    run.trainer.run()
    assert told(run) == [("evaluation", 1, 4, 2, False)]
    assert set(sizes) == {4} and run.trainer.recovery.evaluation_rows == 2
    assert_same_run(run, undisturbed)


def test_an_evaluation_for_which_no_memory_is_left_is_left_out(model: Path, undisturbed: Run) -> None:
    run = Run(model, **SETTINGS)
    objective, fault = run.trainer.objective, Fault(1, 2, 3)

    def failing(batch: Any) -> Any:
        if not run.model.training:
            fault()
        return objective(batch)

    run.trainer.objective = failing  # type: ignore[assignment]
    run.trainer.run()
    assert [after for _, _, _, after, _ in told(run)] == [2, 1, 1]
    assert "left out" in shortages(run)[-1]["change"]
    steps = [event["step"] for event in run.folder.events() if event.kind == "evaluation"]
    assert steps == [2, 3, 4, 5, 6]
    assert validation(run) == pytest.approx(validation(undisturbed)[1:], rel=TOLERANCE)
    assert run.trainer.state.best_step == undisturbed.trainer.state.best_step


def test_a_checkpoint_is_written_again_and_given_up_at_the_second_error(
    model: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, fault = Run(model, **SETTINGS), checkpoint.write_adapter, Fault(2, 4, 5)

    def failing(*arguments: Any) -> None:
        fault()
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_adapter", failing)
    run.trainer.run()
    assert [(event["work"], event["step"]) for event in shortages(run)] == [("checkpoint", 2)] + [
        ("checkpoint", 3)
    ] * 2
    written = [event["step"] for event in run.folder.events() if event.kind == "checkpoint"]
    assert written == [1, 2, 4, 5, 6]
    assert curve(run.folder.events()) == curve(undisturbed.folder.events())


def test_answers_come_in_smaller_batches_and_one_that_does_not_fit_stays_empty(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatFormat.from_folder(model)
    tuned = add_adapter(load_base(model, TrainingSettings()), TrainingSettings(), "tiny")
    prompts = [list(range(3, 3 + length)) for length in (5, 9, 7, 4, 8)]
    wanted = Generator(tuned, chat).greedy(prompts, 4, tuned=True)
    calls: list[tuple[int, int]] = []
    generator = Generator(tuned, chat, on_shortage=lambda before, after, _: calls.append((before, after)))
    generate = generator._generate

    def small(batch: Any, *rest: Any) -> Any:
        if len(batch) > 2 or len(batch[0]) == 7:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return generate(batch, *rest)

    monkeypatch.setattr(generator, "_generate", small)
    progress: list[int] = []
    found = generator.greedy(prompts, 4, tuned=True, progress=lambda done, _: progress.append(done))
    assert calls == [(5, 3), (3, 2), (2, 1), (1, 0)] and progress == [2, 3, 4, 5]
    assert [answer.ids for answer in found] == [a.ids if i != 2 else () for i, a in enumerate(wanted)]
    with pytest.raises(torch.OutOfMemoryError):
        Generator.greedy(_without_callback(generator), prompts, 4, tuned=True)


def test_an_answer_that_did_not_fit_is_no_reference_for_an_export(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chat = Run(model, **SETTINGS), ChatFormat.from_folder(model)
    checkpoint.publish_adapter(run.folder, run.model)
    generator = Generator(run.model, chat, on_shortage=run.trainer.recovery.answers)
    generate = generator._generate

    def small(batch: Any, *rest: Any) -> Any:
        if len(batch) > 1 or len(batch[0]) == 7:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return generate(batch, *rest)

    monkeypatch.setattr(generator, "_generate", small)
    held = Held((), tuple(tuple(range(3, 3 + length)) for length in (5, 7)))
    write_reference(run.session, generator, held)
    written = json.loads((run.folder.path / "reference.json").read_text())["prompts"]
    assert [prompt["prompt_ids"] for prompt in written] == [[3, 4, 5, 6, 7]]
    assert [(event["work"], event["batch_after"]) for event in shortages(run)] == [
        ("answers", 1),
        ("answers", 0),
    ]


def _without_callback(generator: Generator) -> Generator:
    generator._on_shortage, generator._batch = None, 5
    return generator


def test_little_memory_on_the_computer_splits_early_and_says_so(
    model: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10 << 20, *[8 << 30] * 99])
    monkeypatch.setattr(recovery, "LOOK", 0.0)
    monkeypatch.setattr(recovery, "read_memory", lambda: (next(free), 16 << 30))
    run = Run(model, **SETTINGS)
    run.trainer.run()
    warned = [event["what"] for event in run.folder.events() if event.kind == "warning"]
    assert warned == ["Only 10.0 MiB of memory are free at step 1."]
    assert_same_run(run, undisturbed)


def test_windows_are_split_in_order_and_errors_are_known_by_their_words() -> None:
    assert split([[1, 2, 3, 4, 5], [6]], 2) == [[1, 2], [3, 4], [5], [6]]
    wish = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    for error in (wish, cublas, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("CUDA error: device-side assert triggered"), KeyError("memory")):
        assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("system", "release", "jetson", "wanted"),
    [
        ("Linux", "6.8.0-generic", False, True),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", False, False),
        ("Linux", "5.15.136-tegra", True, False),
        ("Darwin", "23.0", False, False),
    ],
)
def test_segments_that_grow_are_asked_for_on_native_linux_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, release: str, jetson: bool, wanted: bool
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.release", lambda: release)
    if jetson:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/nv_tegra_release").touch()
    assert launch.has_growing_segments(tmp_path) is wanted


@pytest.mark.parametrize("own", [None, "max_split_size_mb:64"])
def test_a_workers_allocator_is_set_before_torch_unless_the_person_did(own: str | None) -> None:
    code = (
        "import os, sys; from ollama_tune.core.runs import launch; launch.nice_worker();"
        "print('torch' in sys.modules, os.environ.get('PYTORCH_CUDA_ALLOC_CONF'), "
        "launch.has_growing_segments())"
    )
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    clean = {name: value for name, value in quiet_environment().items() if name not in names}
    environment = clean | ({"PYTORCH_ALLOC_CONF": own} if own else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    loaded, value, growing = done.stdout.decode().split()
    assert loaded == "False"
    assert value == ("expandable_segments:True" if growing == "True" and not own else "None")


FAILING_WORKER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ollama_tune.core.train import loop, worker
accumulate, failed = loop.Trainer._accumulate, []

def failing(self, batches, supervised):
    if self.state.step == 3 and ({always} or not failed):
        failed.append(True)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    if failed and {pause}:
        Path("recovering").touch()
        time.sleep(60)
    return accumulate(self, batches, supervised)

loop.Trainer._accumulate = failing
sys.exit(worker.main(sys.argv[1:]))
"""


def failing_worker(folder: RunFolder, *, always: bool, pause: bool) -> subprocess.Popen[bytes]:
    """A worker that runs out of memory in the fourth step: once, or always in this process."""
    code = FAILING_WORKER.format(always=always, pause=pause)
    with (folder.path / "stderr.log").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder.path), "--stage", "train"],
            cwd=folder.path,
            env=quiet_environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def finished(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        folder = make_run(model, rows, training={"epochs": 1.0, "evaluation_interval": 2})
        assert work(folder).returncode == 0
    return folder


def assert_same_curve(folder: RunFolder, finished: RunFolder) -> None:
    wanted, found = curve(finished.events()), curve(folder.events())
    assert list(found) == list(wanted)
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=TOLERANCE), step
    assert folder.status().state is State.FINISHED


def test_a_kill_in_the_middle_of_a_recovery_goes_on_from_the_checkpoint(
    model: Path, rows: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = make_run(model, rows, training={"epochs": 1.0, "evaluation_interval": 2})
    worker = failing_worker(folder, always=False, pause=True)
    wait_for(lambda: (folder.path / "recovering").exists(), 180)
    assert [e["step"] for e in folder.events() if e.kind == "out_of_memory"] == [4]
    worker.kill()
    worker.wait()
    assert folder.status().state is State.CRASHED
    control.resume(folder)
    wait_for(lambda: not folder.alive(), 180)
    assert [e["resumed_from"] for e in folder.events() if e.kind == "start"] == [None, 2]
    assert_same_curve(folder, finished)


def test_the_last_resort_is_a_fresh_process_that_keeps_the_pid_and_the_lock(
    model: Path, rows: Path, finished: RunFolder
) -> None:
    folder = make_run(model, rows, training={"epochs": 1.0, "evaluation_interval": 2})
    worker = failing_worker(folder, always=True, pause=False)
    held: list[bool] = []

    def watch() -> None:
        while worker.poll() is None:
            held.append(folder.alive() or folder.events()[-1].kind == "done")
            time.sleep(0.002)

    wait_for(folder.alive, 180)
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert worker.wait(180) == 0, (folder.path / "stderr.log").read_text()
    watcher.join()
    events = folder.events()
    assert len(held) > 100 and all(held)
    assert [event.n for event in events] == list(range(len(events)))
    starts = [event for event in events if event.kind == "start"]
    assert [event["resumed_from"] for event in starts] == [None, 3]
    assert {event["pid"] for event in starts} == {worker.pid} == {folder.worker()["pid"]}
    changes = [event["change"] for event in events if event.kind == "out_of_memory"]
    assert [word in change for word, change in zip(["1 row", "recomputed", "again"], changes, strict=True)]
    assert_same_curve(folder, finished)
    saved, _ = newest(folder)
    assert saved is not None and (saved.state.micro_batch, saved.state.checkpointing) == (1, True)
