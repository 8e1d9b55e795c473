"""The loop on a tiny real model in this process: resume, stop, best checkpoint, damage, 4 bit."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter_config import CONFIG, WEIGHTS
from ollama_tune.core.plan.settings import TrainingSettings, parse
from ollama_tune.core.runs.folder import create_run
from ollama_tune.core.train import checkpoint
from ollama_tune.core.train.checkpoint import TrainState, checkpoint_path, newest, read_checkpoint
from ollama_tune.core.train.loop import Trainer, learning_rate
from ollama_tune.core.train.model import add_adapter, linear_names, load_adapter, load_base
from ollama_tune.core.train.session import Session, Stopped, StopWish
from tests.core.loop_parts import TRAIN, VALIDATION, Run, finished_run
from tests.core.train_parts import curve, wait_for


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(model_folder, tmp_path_factory.mktemp("home"))


def test_training_lowers_both_losses_and_tells_every_step(undisturbed: Run) -> None:
    events = undisturbed.folder.events()
    steps = [event for event in events if event.kind == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert {event["total_steps"] for event in steps} == {12}
    assert steps[-1]["epoch"] == 2.0
    assert sum(event["useful_tokens"] for event in steps) == 2 * sum(len(e.ids) for e in TRAIN)
    assert sum(event["supervised_tokens"] for event in steps) == 2 * sum(sum(e.trained) for e in TRAIN)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.15
    measured = [event for event in events if event.kind == "evaluation"]
    assert [event["step"] for event in measured] == [2, 4, 6, 8, 10, 12]
    assert measured[-1]["loss"] < measured[0]["loss"] - 0.05
    assert measured[0]["rows"] == 6 and measured[0]["model"] == "tuned"
    assert all(event["cpu_seconds"] > 0 and event["seconds"] > 0 for event in steps)


@pytest.mark.parametrize("step", [1, 2, 5, 7])
def test_a_stop_within_a_step_and_a_resume_give_the_same_curve_bit_for_bit(
    model_folder: Path, undisturbed: Run, step: int
) -> None:
    first = Run(model_folder)
    first.stop_after(step)
    with pytest.raises(Stopped, match="as you asked"):
        first.trainer.run()
    assert first.trainer.state.step == step
    first.folder.stop_path.unlink()
    second = Run(model_folder, first.folder)
    assert second.resume() == []
    second.trainer.run()
    assert curve(second.folder.events()) == curve(undisturbed.folder.events())
    wanted = {n: w for n, w in undisturbed.model.named_parameters() if w.requires_grad}
    for name, weight in second.model.named_parameters():
        assert not weight.requires_grad or torch.equal(weight, wanted[name]), name


def test_a_stop_before_the_first_step_leaves_nothing_and_starts_again(model_folder: Path) -> None:
    run = Run(model_folder)
    run.folder.stop_path.touch()
    with pytest.raises(Stopped):
        run.trainer.run()
    assert newest(run.folder) == (None, [])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    model_folder: Path, undisturbed: Run
) -> None:
    run = Run(model_folder)
    run.stop_after(7)
    with pytest.raises(Stopped):
        run.trainer.run()
    run.folder.stop_path.unlink()
    weights = checkpoint_path(run.folder, 7) / checkpoint.OPTIMIZER
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = Run(model_folder, run.folder)
    assert again.resume() == ["step-000007"]
    assert again.trainer.state.step == 6
    again.trainer.run()
    assert curve(run.folder.events()) == curve(undisturbed.folder.events())
    assert read_checkpoint(checkpoint_path(run.folder, 7)) is None or not weights.exists()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, checkpoint.STATE])
def test_every_file_of_a_checkpoint_is_checked(undisturbed: Run, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "step-000012"
    shutil.copytree(checkpoint_path(undisturbed.folder, 12), copy)
    assert read_checkpoint(copy) is not None
    for content in (b"", b"{}", (copy / name).read_bytes()[: -len((copy / name).read_bytes()) // 2]):
        (copy / name).write_bytes(content)
        assert read_checkpoint(copy) is None
    (copy / name).unlink()
    assert read_checkpoint(copy) is None


def test_the_two_newest_and_the_best_checkpoint_stay(model_folder: Path, undisturbed: Run) -> None:
    names = sorted(path.name for path in undisturbed.folder.checkpoints.iterdir())
    assert names == ["step-000010", "step-000012"]
    run = Run(model_folder)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    run.trainer.mean_loss = lambda size, **_: next(losses)  # type: ignore[method-assign,assignment,misc]
    run.trainer.run()
    names = sorted(path.name for path in run.folder.checkpoints.iterdir())
    assert names == ["step-000004", "step-000010", "step-000012"]
    assert (run.trainer.state.best_step, run.trainer.state.best_loss) == (4, 1.0)
    marks = [(e["step"], e["best"]) for e in run.folder.events() if e.kind == "checkpoint"]
    assert marks == [(2, True), (4, True), (6, False), (8, False), (10, False), (12, False)]


def test_checkpoints_hold_no_pickle_and_load_into_plain_peft(undisturbed: Run, model_folder: Path) -> None:
    folder = checkpoint_path(undisturbed.folder, 12)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    config = json.loads((folder / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
    assert config["r"] == 4 and config["inference_mode"] is True
    plain = load_adapter(load_base(model_folder, TrainingSettings()), folder)
    ids = torch.tensor([TRAIN[0].ids])
    undisturbed.model.eval()
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, undisturbed.model(ids).logits)


def test_a_checkpoint_cut_off_while_being_written_is_not_seen_and_goes(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(model_folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(TuneError, match="Input/output error"):
            run.trainer.run()
    assert list(run.folder.checkpoints.iterdir()) == []
    (run.folder.checkpoints / ".step-000002.part").mkdir()
    again = Run(model_folder, run.folder)
    again.trainer.run()
    assert [path.name for path in run.folder.checkpoints.glob(".*")] == []


def test_other_rows_are_refused_on_resume(model_folder: Path) -> None:
    run = Run(model_folder)
    run.trainer.state.step = 3
    run.trainer._step()
    run.trainer._save("stop")
    found, _ = newest(run.folder)
    assert found is not None
    other = Trainer(run.session, run.path, TRAIN[::-1], VALIDATION)
    with pytest.raises(TuneError, match="rows are not those"):
        other.restore(found)


def test_without_validation_rows_the_last_step_is_the_best(model_folder: Path) -> None:
    run = Run(model_folder, validation=[], epochs=0.5)
    run.trainer.run()
    assert (run.trainer.state.best_step, run.trainer.state.best_loss) == (3, None)
    assert not [event for event in run.folder.events() if event.kind == "evaluation"]


def test_a_checkpoint_is_written_when_the_time_has_come(model_folder: Path) -> None:
    run = Run(model_folder, epochs=0.5, evaluation_interval=100, checkpoint_minutes=1e-6)
    run.trainer.run()
    written = [(e["step"], e["reason"]) for e in run.folder.events() if e.kind == "checkpoint"]
    assert written == [(1, "time"), (2, "time"), (3, "evaluation"), (3, "time")][: len(written)]
    assert len(written) >= 3


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.5, 1, 1, *(0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(1, 8))]),
    ],
)
def test_learning_rates_rise_and_fall_as_asked(schedule: str, expected: list[float]) -> None:
    training = TrainingSettings(learning_rate=1.0, schedule=schedule, warmup=0.2)  # type: ignore[arg-type]
    assert [learning_rate(step, 10, training) for step in range(10)] == pytest.approx(expected)
    none = TrainingSettings(learning_rate=1.0, schedule=schedule, warmup=0.0)  # type: ignore[arg-type]
    assert learning_rate(0, 10, none) == 1.0


def test_four_bit_training_on_the_cpu_lowers_the_loss(model_folder: Path) -> None:
    run = Run(model_folder, quantization="nf4", epochs=3.0, dropout=0.0)
    linear = run.model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert type(linear).__name__ == "Linear4bit"
    assert linear.weight.dtype is torch.uint8 and linear.weight.quant_state.nested
    run.trainer.run()
    losses = [loss for loss, _ in curve(run.folder.events()).values()]
    assert losses[-1] < losses[0] - 0.15


def test_an_evaluation_leaves_the_gradients_of_a_four_bit_model_as_they_were(model_folder: Path) -> None:
    run, gradients = Run(model_folder, quantization="nf4", dropout=0.0), []
    for _ in range(2):
        run.path.loss(run.trainer.computer.collate([0, 1])).backward()
        gradients.append([weight.grad for weight in run.path.weights.values()])
        run.trainer.discard()
        run.trainer.mean_loss(6)
        run.path.train(True)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_bfloat16_keeps_the_adapter_in_float32_and_learns(model_folder: Path) -> None:
    run = Run(model_folder, compute_dtype="bfloat16", dropout=0.0, gradient_checkpointing="layers")
    kinds = {name.split(".")[-3]: weight.dtype for name, weight in run.model.named_parameters()}
    assert kinds["lora_A"] is torch.float32
    assert run.model.get_base_model().lm_head.weight.dtype is torch.bfloat16
    run.trainer.run()
    losses = [loss for loss, _ in curve(run.folder.events()).values()]
    assert losses[-1] < losses[0] - 0.15


def test_the_base_loss_is_that_of_the_model_without_its_adapter(model_folder: Path, undisturbed: Run) -> None:
    fresh = Run(model_folder)
    assert undisturbed.trainer.base_loss() == fresh.trainer.validation_loss()
    assert undisturbed.trainer.base_loss() != undisturbed.trainer.validation_loss()


def test_a_target_that_does_not_exist_is_refused_with_the_names(model_folder: Path) -> None:
    base = load_base(model_folder, TrainingSettings())
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_names(base) == names
    with pytest.raises(TuneError, match="no linear layer called 'query'") as caught:
        add_adapter(base, TrainingSettings(targets=["q_proj", "query"]), "tiny")
    assert "q_proj, up_proj, v_proj, or all-linear" in caught.value.fix


def test_adapters_of_one_seed_are_equal_and_of_two_seeds_differ(model_folder: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        training = TrainingSettings(seed=seed)
        model = add_adapter(load_base(model_folder, training), training, "tiny")
        return next(w for n, w in model.named_parameters() if "lora_A" in n).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_gpu_is_asked_for_only_where_there_is_one(model_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TuneError, match="torch finds none"):
        load_base(model_folder, TrainingSettings(device="cuda"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "cannot be loaded: SafetensorError"),
        ({"num_hidden_layers": 3}, r"9 weights such as model\.layers\.2\.input_layernorm\.weight do not fit"),
        ({"intermediate_size": 96}, r"6 weights such as model\.layers\.0\.mlp\.down_proj\.weight do not fit"),
    ],
)
def test_a_damaged_model_folder_is_told_in_a_sentence(
    tmp_path: Path, model_folder: Path, change: dict[str, int] | None, message: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    if change is None:
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(TuneError, match=message):
        load_base(broken, TrainingSettings())


def test_signs_of_life_go_on_while_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr("ollama_tune.core.train.session.HEARTBEAT", 0.02)
    folder = create_run(parse({}), "heart")
    session = Session(folder, StopWish(folder))
    session.live()
    wait_for(lambda: len(folder.events()) > 4)
    session.finish("done", stage="train")
    events = folder.events()
    assert [event.kind for event in events[:-1]] == ["memory"] * (len(events) - 1)
    assert len(events) > 4 and events[-1].kind == "done"
    memory = events[0]
    assert memory["device"] == "cpu" and 0 < memory["used"] <= memory["total"]
    assert memory["peak"] > 2**20 and 0 < memory["free"] <= memory["total"]


def test_progress_is_told_twice_a_second_and_at_the_end() -> None:
    folder = create_run(parse({}), "progress")
    session = Session(folder, StopWish(folder))
    report = session.progress("reading_data", "rows")
    began = time.monotonic()
    for done in range(1, 1001):
        report(done, 1000)
    told = [event["done"] for event in folder.events()]
    assert told[-1] == 1000 and len(told) <= 2 + 2 * (time.monotonic() - began)
    folder.stop_path.touch()
    with pytest.raises(Stopped):
        report(1, 1000)
    assert os.path.exists(folder.stop_path)  # noqa: PTH110


def test_the_state_of_a_checkpoint_survives_json(undisturbed: Run) -> None:
    found = read_checkpoint(checkpoint_path(undisturbed.folder, 12))
    assert found is not None and isinstance(found.state, TrainState)
    assert found.state == undisturbed.trainer.state
