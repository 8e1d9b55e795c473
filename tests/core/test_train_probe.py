"""The probe before the first step: it measures, undoes every trace, and settles for less where it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.paths import data_dir
from ollama_tune.core.plan.calibration import measured_ratio, ratio_key, store_ratio
from ollama_tune.core.plan.values import MemoryPart
from ollama_tune.core.runs.events import Event
from ollama_tune.core.train import probe as probing
from ollama_tune.core.train.probe import Budget, probe, read_budget
from ollama_tune.core.train.session import Stopped, host_memory
from tests.core.loop_parts import TRAIN, Run
from tests.core.memory_limit import OUT_OF_MEMORY
from tests.core.train_parts import curve, kinds, make_run, work, write_rows

GIB = 1 << 30
LONGEST = max(len(example.ids) for example in TRAIN)
BUDGET = Budget("cpu", "cpu", "", 8 * GIB, 8 * GIB)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what the formula says for one row at once; checkpointing halves it."""

    def set_to(a_row: int) -> None:
        def parts(training: Any, *_: Any) -> tuple[MemoryPart, ...]:
            needed = a_row * training.batch_size // (1 if training.gradient_checkpointing == "none" else 2)
            return (MemoryPart("all", needed),)

        monkeypatch.setattr(probing, "predict_parts", parts)

    return set_to


def probed(run: Run, model_folder: Path, budget: Budget = BUDGET) -> list[Event]:
    """Probe, and return what was told."""
    run.session.gauge = host_memory
    probe(run.session, run.trainer, read_spec(str(model_folder), None), LONGEST, budget)
    return run.folder.events()


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("settings", [{}, {"batch_size": 4, "gradient_accumulation_steps": 1}])
def test_a_rehearsal_leaves_no_trace_in_the_curve(
    model_folder: Path, thorough: bool, settings: dict[str, Any]
) -> None:
    runs = [Run(model_folder, **settings), Run(model_folder, **settings)]
    state = torch.get_rng_state()
    runs[1].trainer.rehearse(thorough=thorough)
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[1].trainer._optimizer.state == {}
    for run in runs:
        run.trainer.run()
    assert curve(runs[0].folder.events()) == curve(runs[1].folder.events())
    losses = [[event["loss"] for event in run.folder.events() if event.kind == "evaluation"] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) > 3


def test_a_rehearsal_after_a_resume_leaves_no_trace_either(model_folder: Path) -> None:
    wanted = Run(model_folder)
    wanted.trainer.run()
    first = Run(model_folder)
    first.stop_after(5)
    with pytest.raises(Stopped):
        first.trainer.run()
    first.folder.stop_path.unlink()
    second = Run(model_folder, first.folder)
    second.resume()
    second.trainer.rehearse(thorough=True)
    second.trainer.run()
    assert curve(second.folder.events()) == curve(wanted.folder.events())


def test_a_rehearsal_computes_the_longest_rows_with_states_and_waiting_gradients(model_folder: Path) -> None:
    run = Run(model_folder)
    loss, seen = run.path.loss, []

    def noted(batch: Any) -> Any:
        waiting = any(weight.grad is not None for weight in run.model.parameters())
        states = len(run.trainer._optimizer.state) > 0
        seen.append((batch.rows[0], run.model.training, states, waiting))
        return loss(batch)

    run.path.loss = noted
    run.trainer.rehearse(thorough=True)
    worst = tuple(len(TRAIN[row].ids) for row in run.trainer.plan.longest(2))
    assert worst[0] == LONGEST
    assert seen[3] == (worst, True, True, True)
    assert [rows for rows, *_ in seen[:4]] == [worst] * 4
    assert seen[4][1] is False and len(seen) == 5
    seen.clear()
    run.trainer.rehearse(thorough=False)
    assert [len(rows) for rows, *_ in seen] == [1, 1, 2, 2] and seen[2] == (worst, True, True, True)


def test_far_below_the_limit_nothing_is_tried_on_the_cpu(
    model_folder: Path, predicted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted(2 * GIB)  # two rows at once: half of the limit
    run = Run(model_folder)
    monkeypatch.setattr(run.trainer, "rehearse", lambda **_: pytest.fail("tried"))
    assert probed(run, model_folder) == []


def test_near_the_limit_both_figures_are_told_and_the_ratio_is_kept(
    model_folder: Path, predicted: Callable[[int], None]
) -> None:
    predicted(3 * GIB)
    run = Run(model_folder)
    phase, memory = probed(run, model_folder)
    assert phase["name"] == "probing"
    assert memory["used"] > 0 and memory["total"] > 0
    found = memory["probe"]
    assert found["predicted"] == 6 * GIB and found["limit"] == 8 * GIB
    assert found["measured"] == pytest.approx(host_memory()["peak"], rel=0.05)
    assert found["ratio"] == round(found["measured"] / found["predicted"], 4)
    spec = read_spec(str(model_folder), None)
    assert measured_ratio(ratio_key("cpu", "", spec.model_type, "none float32")) == found["ratio"]


def test_a_prediction_above_the_limit_settles_for_less_before_anything_is_tried(
    model_folder: Path, predicted: Callable[[int], None]
) -> None:
    predicted(9 * GIB)
    run = Run(model_folder)
    events = probed(run, model_folder)
    assert kinds(events) == ["warning", "phase"] and events[-1].kind == "memory"
    warnings = [event for event in events if event.kind == "warning"]
    assert warnings[0]["what"] == "The prediction is 18.0 GiB, and 8.0 GiB can be used."
    assert warnings[0]["fix"].startswith("1 row at once") and "recomputed" in warnings[1]["fix"]
    assert run.trainer.state.micro_batch == 1 and run.trainer.recovery.recompute == "mlp"
    wanted = Run(model_folder, dropout=0.0)
    wanted.trainer.run()


def test_what_can_not_fit_is_not_tried_on_the_cpu(
    model_folder: Path, predicted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted(90 * GIB)
    run = Run(model_folder)
    monkeypatch.setattr(run.trainer, "rehearse", lambda **_: pytest.fail("tried"))
    assert kinds(probed(run, model_folder)) == ["warning"]


def gpu(monkeypatch: pytest.MonkeyPatch, *measured: int | None) -> Budget:
    """A budget of a GPU whose probes measure these figures, one after the other; None is out of memory."""
    figures = iter(measured)

    def measure(*_: Any) -> tuple[int, dict[str, int]]:
        found = next(figures)
        if found is None:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return found, {"allocated": found - 2, "reserved": found - 1}

    monkeypatch.setattr(probing, "_measure", measure)
    monkeypatch.setattr(
        probing.Shortage, "of", classmethod(lambda cls, error, device: cls(allocated=7, free=1, wish=None))
    )
    return Budget("cuda", "NVIDIA GeForce RTX 4090", "570.1", 8 * GIB, 8 * GIB)


def test_a_measure_above_the_limit_is_probed_again_with_less(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = gpu(monkeypatch, 9 * GIB, 7 * GIB)
    run = Run(model_folder, batch_size=4)
    events = probed(run, model_folder, budget)
    assert [event.kind for event in events] == ["phase", "memory", "warning", "memory"]
    assert events[2]["what"] == "The probe measured 9.0 GiB, and 8.0 GiB can be used."
    assert run.trainer.state.micro_batch == 2
    assert events[3]["probe"]["allocated"] == 7 * GIB - 2
    assert events[3]["probe"]["predicted"] < events[1]["probe"]["predicted"]


def test_a_probe_that_runs_out_of_memory_is_told_and_tried_at_most_three_times(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = gpu(monkeypatch, None, None, None)
    run = Run(model_folder, batch_size=4)
    events = probed(run, model_folder, budget)
    assert [event.kind for event in events] == ["phase"] + ["out_of_memory"] * 3
    assert [(e["batch_before"], e["batch_after"]) for e in events[1:]] == [(4, 2), (2, 1), (1, 1)]
    assert run.trainer.recovery.recompute == "mlp" and {e["work"] for e in events[1:]} == {"probe"}


def test_what_the_probe_settled_gives_the_same_curve(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Run(model_folder, batch_size=4, dropout=0.0)
    wanted.trainer.run()
    run = Run(model_folder, batch_size=4, dropout=0.0)
    probed(run, model_folder, gpu(monkeypatch, None, 9 * GIB, 7 * GIB))
    run.trainer.run()
    assert run.trainer.state.micro_batch == 1
    for found, expected in zip(
        curve(run.folder.events()).values(), curve(wanted.folder.events()).values(), strict=True
    ):
        assert found == pytest.approx(expected, rel=2e-5)


def test_the_budget_of_the_cpu_is_what_is_free_and_held_less_a_spare() -> None:
    budget = read_budget("cpu")
    figures = host_memory()
    assert budget.limit == pytest.approx(figures["free"] + figures["used"], rel=0.2)
    assert budget.limit < budget.free + figures["used"]
    assert replace(budget, name="").device == "cpu"


def test_ratios_are_kept_by_key_and_a_damaged_file_counts_as_empty() -> None:
    key = ratio_key("NVIDIA H100", "570.1", "llama", "nf4 bfloat16")
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= {p.split()[0] for p in key.split(" | ")}
    assert measured_ratio(key) is None
    assert store_ratio(key, 1000, 1031) == 1.031
    store_ratio("another", 10, 5)
    assert (measured_ratio(key), measured_ratio("another")) == (1.031, 0.5)
    for content in ("{", "[]", json.dumps({key: 3}), json.dumps({key: {"ratio": "much"}})):
        (data_dir() / "memory.json").write_text(content)
        assert measured_ratio(key) is None
    store_ratio(key, 2, 3)
    assert measured_ratio(key) == 1.5


def test_a_small_run_is_not_probed_and_a_worker_says_nothing_of_it(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), training={"epochs": 0.2})
    assert work(folder).returncode == 0
    names = [event["name"] for event in folder.events() if event.kind == "phase"]
    assert "training" in names and "probing" not in names
