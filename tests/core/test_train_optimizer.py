"""The optimizers: equal to torch's, quick to make, and resumed bit for bit from tensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Optimizer, TrainingSettings
from ollama_tune.core.train.optimizer import (
    forget_half_made,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    updates,
)

KINDS: tuple[Optimizer, ...] = ("adamw", "adamw_8bit")
"""Those that run without a GPU."""
Weights = Mapping[str, torch.nn.Parameter]


def weights() -> dict[str, torch.nn.Parameter]:
    """One tensor above and one below bitsandbytes' limit of 4,096 values for 8 bit."""
    torch.manual_seed(1)
    shapes = {"a.lora_A.weight": (16, 300), "a.lora_B.weight": (64, 16)}
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def training(kind: Optimizer = "adamw") -> TrainingSettings:
    return TrainingSettings(optimizer=kind, learning_rate=1e-2, weight_decay=0.01)


def take_steps(optimizer: torch.optim.Optimizer, trained: Weights, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        for weight in trained.values():
            weight.grad = torch.randn(weight.shape)
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_adamw_equals_that_of_torch_bit_for_bit() -> None:
    ours, theirs = weights(), weights()
    mine = make_optimizer(training(), ours)
    take_steps(mine, ours, 0, 5)
    peer = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.01, fused=True)
    take_steps(peer, theirs, 0, 5)
    assert same(ours, theirs)
    assert same(optimizer_tensors(mine, ours), optimizer_tensors(peer, theirs))


@pytest.mark.parametrize("found", [1.0, float("inf")])
def test_a_scaled_loss_updates_as_with_that_of_torch_and_skips_infinities(found: float) -> None:
    results = []
    for kind in (
        lambda w: make_optimizer(training(), w),
        lambda w: torch.optim.AdamW(w.values(), fused=True),
    ):
        trained = weights()
        optimizer, scaler = kind(trained), torch.amp.GradScaler("cpu", init_scale=64.0)
        optimizer.param_groups[0] |= {"lr": 1e-2, "weight_decay": 0.01}
        scaler.scale(torch.ones(()))
        for weight in trained.values():
            weight.grad = torch.full_like(weight, 64 * found)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        results.append(trained)
    assert same(*results)
    assert same(results[0], weights()) == (found != 1.0)


def test_the_first_step_imports_nothing_for_compiling() -> None:
    """torch._dynamo and sympy take a second at first use."""
    program = """
import sys, torch
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.optimizer import make_optimizer
weight = torch.nn.Parameter(torch.ones(2, 2))
optimizer = make_optimizer(TrainingSettings(), {"w": weight})
weight.grad = torch.ones(2, 2)
torch.nn.utils.clip_grad_norm_([weight], 1.0)
optimizer.step()
optimizer.zero_grad()
print([name for name in ("torch._dynamo", "sympy", "bitsandbytes", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_optimizer_goes_on_bit_for_bit(kind: Optimizer, tmp_path: Path) -> None:
    whole, first = weights(), weights()
    take_steps(make_optimizer(training(kind), whole), whole, 0, 6)
    stopped = make_optimizer(training(kind), first)
    take_steps(stopped, first, 0, 3)
    save_file(optimizer_tensors(stopped, first), tmp_path / "o.safetensors")
    second = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in first.items()}
    resumed = make_optimizer(training(kind), second)
    load_optimizer_tensors(resumed, second, load_file(tmp_path / "o.safetensors"))
    assert updates(resumed, second["a.lora_A.weight"]) == 3
    take_steps(resumed, second, 3, 6)
    assert same(second, whole)


def test_eight_bit_states_take_a_quarter_of_the_bytes_and_small_ones_stay_whole() -> None:
    found = {}
    for kind in KINDS:
        trained = weights()
        optimizer = make_optimizer(training(kind), trained)
        take_steps(optimizer, trained, 0, 1)
        tensors = optimizer_tensors(optimizer, trained)
        large = [tensor for name, tensor in tensors.items() if name.endswith("lora_A.weight")]
        found[kind] = sum(tensor.numel() * tensor.element_size() for tensor in large)
        small = [tensor.dtype for name, tensor in tensors.items() if name.endswith("lora_B.weight")]
        assert small.count(torch.float32) >= 2 and torch.uint8 not in small
    assert 0.25 < found["adamw_8bit"] / found["adamw"] < 0.28


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_saved_before_the_first_step_and_nothing_is_loaded(kind: Optimizer) -> None:
    trained = weights()
    optimizer = make_optimizer(training(kind), trained)
    assert optimizer_tensors(optimizer, trained) == {}
    load_optimizer_tensors(optimizer, trained, {})
    assert updates(optimizer, trained["a.lora_A.weight"]) == 0
    take_steps(optimizer, trained, 0, 1)
    assert updates(optimizer, trained["a.lora_A.weight"]) == 1


def test_states_of_another_adapter_are_refused() -> None:
    trained = weights()
    optimizer = make_optimizer(training(), trained)
    with pytest.raises(TuneError, match="another adapter"):
        load_optimizer_tensors(optimizer, trained, {"exp_avg:b.lora_A.weight": torch.ones(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_states_half_made_are_forgotten_and_whole_ones_kept(
    kind: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = weights()
    optimizer = make_optimizer(training(kind), trained)
    monkeypatch.setattr(torch, "zeros_like", _failing(torch.zeros_like, 4))
    with pytest.raises(MemoryError):
        take_steps(optimizer, trained, 0, 1)
    forget_half_made(optimizer)
    assert list(optimizer.state) == [trained["a.lora_A.weight"]]


def _failing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise MemoryError
        return function(*arguments, **options)

    return wrapped
