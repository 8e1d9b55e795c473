"""Packed rows: the same loss and gradient as one by one in every family, or packing is refused."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.plan.paths import PADDED_FAMILIES
from ollama_tune.core.train.batches import Batch, collate
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.session import Stopped
from tests.core.export_parts import FAMILIES, SHAPE
from tests.core.loop_parts import TRAIN, Run
from tests.core.memory_limit import Fault
from tests.core.train_parts import curve

TIGHT, LOOSE = 1e-6, 1e-5
"""Relative, of float64 (norms and losses are computed in float32 even then) and of float32."""
SINGLE = ("Qwen3Moe", "Mixtral", "Gemma2")
"""Families that transformers cannot compute in float64: stacked experts, and padding in an eager window."""
PACKED: dict[str, Any] = {"packing": True, "sequence_length": 64, "dropout": 0.0}
OTHERS: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
}


def example(length: int) -> Example:
    chance = random.Random(length)
    ids = tuple(chance.randrange(3, 300) for _ in range(length))
    return Example("", ids, tuple(i % 3 > 0 or i == 0 for i in range(length)), ())


ROWS = [example(length) for length in (40, 2, 17, 70, 5)]


def build(name: str, extra: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**{"vocab_size": 304} | SHAPE | extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def gradients(
    model: Any, objective: Objective, batches: list[Batch]
) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for batch in batches:
        loss = objective(batch)
        loss.backward()
        total += float(loss.detach())
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, found


def assert_equal(found: Any, wanted: Any) -> None:
    double = any(gradient.dtype == torch.float64 for gradient in wanted[1].values())
    close = TIGHT if double else LOOSE
    assert found[0] == pytest.approx(wanted[0], rel=close)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= close * gradient.norm(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_batch_is_its_rows_one_by_one(name: str) -> None:
    model = build(name, FAMILIES[name], torch.float32 if name in SINGLE else torch.float64)
    objective = Objective(model)
    alone = [collate([row], 0, "cpu") for row in ROWS]
    packed = [collate(ROWS, 0, "cpu", 100)]
    objective.check(alone[2])
    wanted = gradients(model, objective, alone)
    assert len(packed[0].rows) == 2 and packed[0].rows[0] == (40, 2, 17)
    assert_equal(gradients(model, objective, packed), wanted)  # by transformers' own masks
    objective.pack()
    assert objective.keeps_rows_apart(collate(ROWS, 0, "cpu", 200), alone[-1])
    assert_equal(gradients(model, objective, packed), wanted)
    apart = model.config._attn_implementation == "rows_apart"
    assert apart == (model.config.model_type not in PADDED_FAMILIES)
    padded = [collate(ROWS[:3], 0, "cpu"), collate(ROWS[3:4], 0, "cpu"), alone[-1]]
    assert_equal(gradients(model, objective, padded), wanted)


def test_every_family_we_know_is_tried() -> None:
    assert {f"{name}ForCausalLM" for name in FAMILIES} == set(ARCHITECTURES)


def test_packed_rows_stay_apart_where_activations_are_recomputed() -> None:
    model = build("Gemma3", FAMILIES["Gemma3"], torch.float64)
    objective = Objective(model)
    objective.pack()
    packed = [collate(ROWS, 0, "cpu", 100)]
    wanted = gradients(model, objective, packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(gradients(model.train(), objective, packed), wanted)


@pytest.mark.parametrize(("name", "apart"), [("Mamba", False), ("Lfm2", False), ("GPT2", True)])
def test_a_model_that_carries_something_from_row_to_row_is_noticed(name: str, apart: bool) -> None:
    objective = Objective(build(name, OTHERS[name]))
    objective.pack()
    packed, alone = collate(ROWS[2:3] + ROWS[:1], 0, "cpu", 100), collate(ROWS[:1], 0, "cpu")
    assert objective.keeps_rows_apart(packed, alone) == apart


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        run = Run(model_folder, **PACKED)
        assert run.trainer.check() == ""
        run.trainer.run()
    return run


def test_a_packed_run_learns_every_row_in_fewer_steps(undisturbed: Run) -> None:
    steps = [event for event in undisturbed.folder.events() if event.kind == "step"]
    sequences = len(undisturbed.trainer.plan.window(0)[0])
    assert sequences > 2, "several rows share a sequence"
    assert len(steps) == undisturbed.trainer.plan.total_steps < 12
    assert sum(event["useful_tokens"] for event in steps) == 2 * sum(len(row.ids) for row in TRAIN)
    assert sum(event["supervised_tokens"] for event in steps) == 2 * sum(sum(row.trained) for row in TRAIN)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_first_packed_step_has_the_loss_of_its_rows(model_folder: Path, undisturbed: Run) -> None:
    run = Run(model_folder, **PACKED)
    rows = [row for batch in undisturbed.trainer.plan.window(0) for row in batch]
    batches = [collate([TRAIN[row]], 0, "cpu") for row in rows]
    with torch.no_grad():
        total = sum(float(run.path.loss(batch)) for batch in batches)
    first = next(event for event in undisturbed.folder.events() if event.kind == "step")
    assert first["loss"] == pytest.approx(total / sum(b.supervised_tokens for b in batches), rel=1e-5)


def test_a_packed_run_is_resumed_bit_for_bit(model_folder: Path, undisturbed: Run) -> None:
    run = Run(model_folder, **PACKED)
    run.trainer.check()
    run.stop_after(2)
    with pytest.raises(Stopped):
        run.trainer.run()
    run.folder.stop_path.unlink()
    again = Run(model_folder, run.folder)
    again.trainer.check()
    again.resume()
    again.trainer.run()
    assert curve(again.folder.events()) == curve(undisturbed.folder.events())


def test_out_of_memory_splits_a_pack_by_its_rows_and_changes_no_loss(
    model_folder: Path, undisturbed: Run
) -> None:
    run = Run(model_folder, **PACKED)
    run.trainer.check()
    fault = Fault(1, 2)
    layer = run.model.get_base_model().model.layers[1]
    layer.register_forward_pre_hook(lambda *_: fault() if run.model.training else None)
    run.trainer.run()
    told = [event for event in run.folder.events() if event.kind == "out_of_memory"]
    most = max(map(len, run.trainer.plan.window(0)))
    assert [event["batch_before"] for event in told] == [most, -(-most // 2)]
    found, wanted = curve(run.folder.events()), curve(undisturbed.folder.events())
    assert list(found) == list(wanted)
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=2e-5), step


def test_the_rehearsal_tries_full_sequences(model_folder: Path) -> None:
    run = Run(model_folder, **PACKED)
    run.trainer.check()
    seen: list[int] = []
    loss = run.path.loss

    def watched(batch: Batch) -> Any:
        seen.append(batch.ids.numel())
        return loss(batch)

    run.path.loss = watched
    run.trainer.rehearse(thorough=True)
    plan = run.trainer.plan
    worst = max(
        run.trainer.computer.collate(batch).ids.numel()
        for n in range(plan.total_steps)
        for batch in plan.window(n)
    )
    assert max(seen) == worst


def test_a_run_that_would_mix_rows_is_refused_before_its_first_step(model_folder: Path) -> None:
    run = Run(model_folder, **PACKED)

    def carry(_module: Any, _inputs: Any, states: torch.Tensor) -> torch.Tensor:
        return states + states.cumsum(1) / (1 + torch.arange(states.shape[1])[:, None])

    run.model.get_base_model().model.embed_tokens.register_forward_hook(carry)
    with pytest.raises(TuneError, match="from one row of a packed sequence to the next") as refused:
        run.trainer.check()
    assert "training.packing" in refused.value.fix
