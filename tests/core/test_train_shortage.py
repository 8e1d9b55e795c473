"""Out of memory outside the steps: evaluations, checkpoints, answers, the RAM; and how it is recognised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.evaluate.general_engine import GeneralEngine
from ollama_tune.core.evaluate.generate import Generator
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.runs import launch
from ollama_tune.core.train import checkpoint, recovery
from ollama_tune.core.train.measure import Held, write_reference
from ollama_tune.core.train.model import add_adapter, load_base
from ollama_tune.core.train.recovery import split
from ollama_tune.core.train.shortage import is_out_of_memory
from tests.core.loop_parts import Run, finished_run
from tests.core.memory_limit import OUT_OF_MEMORY, Fault
from tests.core.recovery_parts import (
    SETTINGS,
    TOLERANCE,
    assert_same_run,
    shortages,
    told,
    validation,
)
from tests.core.train_parts import curve, quiet_environment


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(model_folder, tmp_path_factory.mktemp("home"), **SETTINGS)


def test_an_evaluation_splits_its_own_batch_and_never_the_trainings(
    model_folder: Path, undisturbed: Run
) -> None:
    run = Run(model_folder, **SETTINGS)
    loss, sizes, fault = run.path.loss, [], Fault(2)

    def failing(batch: Any) -> Any:
        if not run.model.training:
            fault()
        else:
            sizes.append(len(batch.rows[0]))
        return loss(batch)

    run.path.loss = failing
    run.trainer.run()
    assert told(run) == [("evaluation", 1, 4, 2, False)]
    assert set(sizes) == {4} and run.trainer.recovery.evaluation_rows == 2
    assert_same_run(run, undisturbed)


def test_an_evaluation_for_which_no_memory_is_left_is_left_out(model_folder: Path, undisturbed: Run) -> None:
    run = Run(model_folder, **SETTINGS)
    loss, fault = run.path.loss, Fault(1, 2, 3)

    def failing(batch: Any) -> Any:
        if not run.model.training:
            fault()
        return loss(batch)

    run.path.loss = failing
    run.trainer.run()
    assert [after for _, _, _, after, _ in told(run)] == [2, 1, 1]
    assert "left out" in shortages(run)[-1]["change"]
    steps = [event["step"] for event in run.folder.events() if event.kind == "evaluation"]
    assert steps == [2, 3, 4, 5, 6]
    assert validation(run) == pytest.approx(validation(undisturbed)[1:], rel=TOLERANCE)
    assert run.trainer.state.best_step == undisturbed.trainer.state.best_step


def test_a_checkpoint_is_written_again_and_given_up_at_the_second_error(
    model_folder: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fault = Run(model_folder, **SETTINGS), Fault(2, 4, 5)
    write = run.path.write_adapter

    def failing(*arguments: Any) -> None:
        fault()
        write(*arguments)

    monkeypatch.setattr(run.path, "write_adapter", failing)
    run.trainer.run()
    assert [(event["work"], event["step"]) for event in shortages(run)] == [("checkpoint", 2)] + [
        ("checkpoint", 3)
    ] * 2
    written = [event["step"] for event in run.folder.events() if event.kind == "checkpoint"]
    assert written == [1, 2, 4, 5, 6]
    assert curve(run.folder.events()) == curve(undisturbed.folder.events())


def test_answers_come_in_smaller_batches_and_one_that_does_not_fit_stays_empty(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatFormat.from_folder(model_folder)
    tuned = add_adapter(load_base(model_folder, TrainingSettings()), TrainingSettings(), "tiny")
    prompts = [list(range(3, 3 + length)) for length in (5, 9, 7, 4, 8)]
    engine = GeneralEngine(tuned)
    wanted = Generator(engine, chat).greedy(prompts, 4, tuned=True)
    calls: list[tuple[int, int]] = []
    generator = Generator(engine, chat, on_shortage=lambda before, after, _: calls.append((before, after)))
    generate = generator._decode

    def small(batch: Any, *rest: Any, **options: Any) -> Any:
        if len(batch.prompts) > 2 or len(batch.prompts[0]) == 7:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return generate(batch, *rest, **options)

    monkeypatch.setattr(generator, "_decode", small)
    progress: list[int] = []
    found = generator.greedy(prompts, 4, tuned=True, progress=lambda done, _: progress.append(done))
    assert calls == [(5, 3), (3, 2), (2, 1), (1, 0)] and progress == [1, 2, 3, 4, 5]
    assert [answer.ids for answer in found] == [a.ids if i != 2 else () for i, a in enumerate(wanted)]
    with pytest.raises(torch.OutOfMemoryError):
        Generator.greedy(_without_callback(generator), prompts, 4, tuned=True)


def test_an_answer_that_did_not_fit_is_no_reference_for_an_export(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chat = Run(model_folder, **SETTINGS), ChatFormat.from_folder(model_folder)
    checkpoint.publish(run.folder, run.path)
    generator = Generator(run.path.engine, chat, on_shortage=run.trainer.recovery.answers)
    generate = generator._decode

    def small(batch: Any, *rest: Any, **options: Any) -> Any:
        if len(batch.prompts) > 1 or len(batch.prompts[0]) == 7:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return generate(batch, *rest, **options)

    monkeypatch.setattr(generator, "_decode", small)
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
    model_folder: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10 << 20, *[8 << 30] * 99])
    monkeypatch.setattr(recovery, "LOOK", 0.0)
    monkeypatch.setattr(recovery, "read_memory", lambda: (next(free), 16 << 30))
    run = Run(model_folder, **SETTINGS)
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
