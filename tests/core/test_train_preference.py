"""Learning preferences: the loss and gradients of the formula, references kept once, figures, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.plan.settings import TrainingSettings, parse
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.train.checkpoint import newest
from ollama_tune.core.train.fast.path import FastPath, make_fast
from ollama_tune.core.train.general import make_general
from ollama_tune.core.train.loop import Trainer
from ollama_tune.core.train.path import PathName, make_path
from ollama_tune.core.train.preference import PreferencePath, Reference, preferring
from ollama_tune.core.train.session import Session, Stopped, StopWish
from ollama_tune.core.train.world import World
from tests.core.fast_parts import changed, twins
from tests.core.preference_parts import pairs, write_pairs, written_out
from tests.core.train_parts import curve, make_run, work
from tests.loud import loud
from tests.tiny import build_model

SETTINGS = TrainingSettings(rank=4, alpha=8, objective="dpo")
BETA = 0.3
PAIRS = pairs(6)[:]
TRL = {
    "loss": (0.693147, 0.655869, 0.634176),
    "reward_margin": (0.0, 0.076051, 0.125325),
    "norm": (1.093531, 1.330822, 0.877819),
}
"""Three steps of two pairs by the DPOTrainer of TRL 1.16.0 (transformers 5.23, peft 0.21.2) in float32: AdamW
with a constant rate of 1e-2, beta 0.3."""


def fast_of(model: Any) -> FastPath:
    return FastPath(model, model.adapter, SETTINGS, "base")


def preferred(path: Any, folder: Path) -> PreferencePath:
    return PreferencePath(path, BETA, Reference(folder / "preferences"))


def gradients(path: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = path.loss(batch)
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in path.weights.items()}


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_the_fast_path_has_the_loss_and_gradients_of_the_formula(family: str, tmp_path: Path) -> None:
    made = twins(family)
    made.causal.double()
    wanted = written_out(made.causal, PAIRS, BETA, torch.float64)
    wanted.backward()
    path = preferred(fast_of(changed(made.fast, torch.float64)), tmp_path)
    loss, found = gradients(path, path.collate(PAIRS))
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    for name, weight in made.theirs.items():
        assert torch.allclose(found[name], weight.grad, rtol=1e-5, atol=1e-6), name


def test_the_general_path_has_the_loss_and_gradients_of_the_formula(
    model_folder: Path, tmp_path: Path
) -> None:
    general = loud(make_general(model_folder, SETTINGS, "base", "a test"), 0.1)
    wanted = written_out(general.model.eval(), PAIRS, BETA)
    slopes = torch.autograd.grad(wanted, list(general.weights.values()))
    for padded in (False, True):
        general.padded = padded
        path = preferred(general, tmp_path)
        assert path.padded is padded and path.name == "general"
        loss, found = gradients(path, path.collate(PAIRS))
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
        for (name, gradient), slope in zip(found.items(), slopes, strict=True):
            assert torch.allclose(gradient, slope, rtol=1e-3, atol=1e-6), name
        for weight in general.weights.values():
            weight.grad = None


@pytest.mark.parametrize("computed", ["fast", "general"])
def test_three_steps_are_those_of_trl(computed: PathName, tmp_path: Path) -> None:
    folder = build_model(tmp_path / "model")
    path = preferred(make_path((computed, ""), folder, SETTINGS, "base", lambda *_: None), tmp_path)
    optimizer = torch.optim.AdamW(path.weights.values(), lr=1e-2, weight_decay=0.0)
    for step in range(3):
        path.train(True)
        batch = path.collate(PAIRS[2 * step : 2 * step + 2])
        loss, _ = gradients(path, batch)
        norm = torch.nn.utils.clip_grad_norm_([*path.weights.values()], 1e9)
        for weight in path.weights.values():
            weight.grad /= batch.supervised_tokens
        optimizer.step()
        optimizer.zero_grad()
        margin, count = path.tallies()["reward_margin"]
        assert batch.supervised_tokens == count == 2
        assert loss / 2 == pytest.approx(TRL["loss"][step], abs=3e-6)
        assert margin / 2 == pytest.approx(TRL["reward_margin"][step], abs=3e-6)
        assert float(norm) / 2 == pytest.approx(TRL["norm"][step], abs=3e-6)


@pytest.fixture
def fast(model_folder: Path) -> Any:
    return loud(make_fast(model_folder, TrainingSettings(rank=4, dropout=0.2), "base"), 0.1)


def test_the_reference_is_the_base_without_dropout_and_computed_once(fast: Any, tmp_path: Path) -> None:
    path, calls = preferred(fast, tmp_path), 0
    plain = fast.loss

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += not fast.model.adapter_on
        assert fast.model.adapter_on or not fast.model.training
        return plain(*given)

    fast.loss = counted
    path.train(True)
    batch = path.collate(PAIRS)
    assert path.loss(batch).requires_grad and fast.model.training
    path.loss(path.collate(PAIRS[3:]))
    preferred(fast, tmp_path).loss(batch)
    assert calls == 1
    path.train(False)
    with torch.no_grad(), path.without_adapter():
        assert float(path.loss(batch)) == pytest.approx(len(PAIRS) * 0.693147, rel=1e-5)
    assert path.tallies()["reward_margin"][0] == pytest.approx(0, abs=1e-4)


def test_without_a_file_the_reference_is_computed_each_time(fast: Any, tmp_path: Path) -> None:
    path, other = preferred(fast, tmp_path / "absent"), preferred(fast, tmp_path)
    batch = path.collate(PAIRS)
    with torch.no_grad():
        wanted = float(other.loss(batch))
        assert [float(path.loss(batch)) for _ in range(2)] == [wanted, wanted]


def test_what_another_process_is_writing_is_not_known_and_other_machines_write_elsewhere(
    fast: Any, tmp_path: Path
) -> None:
    reference = Reference(tmp_path / "pairs")
    reference.keep([0, 1], [(-1.0, 0.0), (-1.0, -2.0)])
    assert reference.read([0]) is None and reference.read([1]) == [(-1.0, -2.0)]
    folder = make_run(tmp_path, tmp_path, training={"objective": "dpo"})
    for rank, local in ((0, 0), (1, 1), (2, 0), (3, 1)):
        world = World(rank, 4, local, 2, "", 0, True, "")
        session = Session(folder, StopWish(folder))
        session.world = world
        preferring(session, fast, pairs(2), pairs(1))
    files = [path.name for path in folder.path.glob("preferences-*")]
    assert len(files) == 2 and sum(name.endswith("-2") for name in files) == 1


def test_sums_of_runs_of_pairs_are_those_of_the_pairs(fast: Any, tmp_path: Path) -> None:
    path = preferred(fast, tmp_path)
    with torch.no_grad():
        sums = path.loss(path.collate(PAIRS), [1, 3, 2])
        assert sums[0] == pytest.approx(float(path.loss(path.collate(PAIRS[:1]))), rel=1e-5)
        assert float(sums.sum()) == pytest.approx(float(path.loss(path.collate(PAIRS))), rel=1e-6)


def test_watching_leaves_the_reference_out_and_figures_begin_with_train(fast: Any, tmp_path: Path) -> None:
    path, told = preferred(fast, tmp_path), dict[str, int]()
    path.train(False)
    assert path.tallies() == {}
    with torch.no_grad(), path.watched(lambda name, _: told.__setitem__(name, told.get(name, 0) + 1)):
        path.loss(path.collate(PAIRS))
    assert set(told.values()) == {1}
    assert path.tallies()["reward_accuracy"][1] == len(PAIRS)
    path.train(False)
    assert path.tallies() == {}


def trainer_of(model: Path, folder: RunFolder | None = None, **training: Any) -> tuple[Trainer, RunFolder]:
    quick = {"batch_size": 3, "gradient_accumulation_steps": 2, "rank": 4, "learning_rate": 3e-3, "epochs": 3}
    made = {
        "model": {"source": str(model)},
        "training": quick | {"objective": "dpo", "dropout": 0.1} | training,
    }
    folder = folder or create_run(parse(made), "pairs")
    session = Session(folder, StopWish(folder))
    chosen: tuple[PathName, str] = (training.get("path", "fast"), "")
    inner = make_path(chosen, model, session.settings.training, str(model), lambda *_: None)
    train, held = pairs(18), pairs(6, seed=100, first=18)
    return Trainer(session, preferring(session, inner, train, held), train, held), folder


@pytest.mark.parametrize("path", ["fast", "general"])
def test_a_run_goes_on_bit_for_bit_and_learns_to_prefer(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    whole, first = trainer_of(model_folder, path=path)
    whole.run()
    stopped, second = trainer_of(model_folder, path=path)
    measured = stopped.compute

    def compute(window: Any, step: int) -> Any:
        if step == 4:
            raise Stopped("a test")
        return measured(window, step)

    monkeypatch.setattr(stopped, "compute", compute)
    with pytest.raises(Stopped):
        stopped.run()
    again, _ = trainer_of(model_folder, second, path=path)
    found, _ = newest(second)
    assert found is not None and found.state.step == 4
    again.restore(found)
    again.run()
    events = first.events()
    assert curve(events) == curve(second.events()) and len(curve(events)) == 9
    steps = [event for event in events if event.kind == "step"]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert steps[-1]["loss"] < 0.6 and steps[-1]["reward_accuracy"] > 0.8 and steps[-1]["reward_margin"] > 0.1
    held = [event for event in events if event.kind == "evaluation"]
    assert held[-1]["reward_accuracy"] == 1.0 and held[-1]["loss"] < held[0]["loss"]


def test_a_worker_learns_pairs_from_a_file_to_a_proved_export(model_folder: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 40)
    training = {"objective": "dpo", "epochs": 1.0, "learning_rate": 2e-3, "sequence_length": 64}
    folder = make_run(model_folder, data, training=training, export={"name": "pairs", "type": "f16"})
    assert work(folder, "all").returncode == 0
    events = folder.events()
    about = next(event for event in events if event.kind == "data")
    assert about["train_rows"] + about["validation_rows"] == 40 and about["left_out"] == 2
    told = " ".join(event["what"] for event in events if event.kind == "warning")
    assert "does not fit into 64 tokens" in told and "holds no pair" in told
    rates = [event["reward_accuracy"] for event in events if event.kind == "step"]
    assert sum(rates[-4:]) / 4 > max(0.9, rates[0])
    measured = [event for event in events if event.kind == "evaluation"]
    base = next(event for event in measured if event["model"] == "base")
    assert base["loss"] == pytest.approx(0.6931, abs=1e-3) and "reward_accuracy" not in base.data
    assert measured[-1]["reward_accuracy"] > 0.9 and measured[-1]["exact_match"] is not None
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    verified = next(event for event in events if event.kind == "verification")
    assert verified["verdict"] in ("pass", "warn")


def test_a_worker_refuses_data_without_pairs(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Why {n}?", "completion": "So."}) + "\n" for n in range(9))
    )
    folder = make_run(model_folder, data, training={"objective": "dpo"})
    assert work(folder).returncode == 1
    (error,) = (event for event in folder.events() if event.kind == "error")
    assert "better and a worse answer" in error["what"] and "sft" in error["fix"]
