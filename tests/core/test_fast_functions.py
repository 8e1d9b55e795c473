"""Parts of the fast path: norms, dropout, rotary tables, kinds of attention, parked inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from ollama_tune.core.models.rope import Rope
from ollama_tune.core.train.fast import kernels
from ollama_tune.core.train.fast.attention import RowsAttention, Rule
from ollama_tune.core.train.fast.functions import Dropped, Norm
from ollama_tune.core.train.fast.kernels import KernelAttention, agree, bounds_of, by_flash, by_sdpa
from ollama_tune.core.train.fast.model import _narrow_chunk
from ollama_tune.core.train.fast.offload import Parking
from ollama_tune.core.train.fast.rotary import Rotary
from ollama_tune.core.train.fast.stream import Segment

CPU = torch.device("cpu")


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norm_forward_and_backward_agree_with_autograd(dtype: torch.dtype, shift: float) -> None:
    torch.manual_seed(0)
    states, gradient = (3 * torch.randn(7, 24).to(dtype) for _ in range(2))
    weight = torch.randn(24).to(dtype)
    norm = Norm(weight, shift, 1e-5)
    scales = norm.scales(states)
    leaf = states.double().requires_grad_()
    wanted = functional.rms_norm(leaf, (24,), weight.double() + shift, 1e-5)
    wanted.backward(gradient.double())
    near = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2}[dtype]
    found = norm.apply(states, scales), norm.backward(gradient, states, scales)
    for one, other in zip(found, (wanted, leaf.grad), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other.detach(), rtol=near, atol=3 * near)
    if not shift:
        by_kernel = norm._backward_kernel(gradient, states)
        torch.testing.assert_close(by_kernel.double(), leaf.grad, rtol=near, atol=3 * near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype: torch.dtype) -> None:
    dropped = Dropped(0.25, seed=9)
    ones = torch.ones(401, 99, dtype=dtype)
    assert torch.equal((dropped.of(ones) == 0), (dropped.of(ones.double()) == 0)), "in every format the same"
    found = dropped.of(ones)
    assert abs(float((found == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(found.mean()) - 1.0) < 0.02
    assert found.dtype == dtype and torch.equal(found, dropped.of(ones))
    assert not torch.equal(found, Dropped(0.25, seed=10).of(ones))


def test_turning_back_undoes_turning() -> None:
    rotary = Rotary(Rope("default", 100.0, 6), 8, CPU, torch.float64)
    states = torch.randn(2, 5, 16, dtype=torch.float64)
    turned = states.clone()
    rotary.turn(turned, rotary.tables(3, 5, 2, 8))
    assert torch.equal(turned[..., 6:8], states[..., 6:8])
    assert not torch.allclose(turned, states)
    rotary.turn(turned, rotary.tables(3, 5, 2, 8), back=True)
    torch.testing.assert_close(turned, states)


def _rule(window: int, shared: int) -> Rule:
    return Rule(heads=2 * shared, key_value_heads=2, head_dim=8, scale=0.4, window=window)


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    *longest: int,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch says of its varlen kernel: rows apart, the last query at the last key, a left window."""
    made = []
    for row in range(len(starts) - 1):
        parts = [query[starts[row] : starts[row + 1]]]
        parts += [part[key_starts[row] : key_starts[row + 1]] for part in (key, value)]
        assert len(parts[0]) <= longest[0] and len(parts[1]) <= longest[1]
        states = [part.transpose(0, 1).repeat_interleave(len(query[0]) // len(part[0]), 0) for part in parts]
        products = states[0] @ states[1].transpose(1, 2) * scale
        ahead = len(parts[1]) - len(parts[0])
        away = torch.arange(len(parts[0]))[:, None] + ahead - torch.arange(len(parts[1]))
        hidden = (away < 0) | ((away > window_size[0]) & (window_size[0] >= 0))
        made.append((products.masked_fill(hidden, float("-inf")).softmax(-1) @ states[2]).transpose(0, 1))
    assert enable_gqa == (len(query[0]) > len(key[0])) and window_size[1] == 0
    return torch.cat(made)


@pytest.mark.parametrize("window", [0, 9, 2])
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("kernel", [by_sdpa, by_flash])
def test_kernels_agree_with_explicit_products(
    monkeypatch: pytest.MonkeyPatch, window: int, shared: int, kernel: Callable[..., Any]
) -> None:
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", _one_by_one)
    rotary = Rotary(Rope("default", 100.0, 8), 8, CPU, torch.float32)
    rule = _rule(window, shared)
    one, other = KernelAttention(rule, rotary, kernel), RowsAttention(rule, rotary)
    assert agree(one, other, CPU, torch.float32)
    wrong = RowsAttention(replace(rule, window=5), rotary)
    assert not agree(one, wrong, CPU, torch.float32)


def test_a_kernel_that_cannot_run_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = kernels.choose_attention(_rule(0, 1), None, CPU, torch.float32)
    assert isinstance(chosen, RowsAttention)
    flash = KernelAttention(_rule(0, 1), None, by_flash)
    assert not agree(flash, RowsAttention(_rule(0, 1), None), CPU, torch.float32)


def test_bounds_put_the_prefix_before_each_row_that_has_it() -> None:
    bounds = bounds_of((Segment(0, 2), Segment(2, 1, 0), Segment(3, 2, 0), Segment(5, 1)), CPU)
    assert bounds.queries == (0, 2, 3, 5, 6)
    assert bounds.keys == (0, 2, 5, 9, 10)
    assert bounds.sources is not None and bounds.sources.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5]
    assert bounds.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert bounds_of((Segment(0, 3),), CPU).sources is None


def test_keys_and_values_of_rows_are_the_same_from_both_kinds_of_attention() -> None:
    rotary = Rotary(Rope("default", 100.0, 8), 8, CPU, torch.float32)
    rule, segments = _rule(0, 2), (Segment(0, 4), Segment(4, 3, 0), Segment(7, 5))
    states = [torch.randn(12, width) for width in (32, 16, 16)]
    kinds = KernelAttention(rule, rotary, by_sdpa), RowsAttention(rule, rotary)
    query, key, value = states
    found: list[Any] = [kind.forward(query, key, value, segments, keep=False)[1] for kind in kinds]
    for one, other, length in zip(*found, (4, 7, 5), strict=True):
        for part in ("key", "value"):
            torch.testing.assert_close(getattr(one, part), getattr(other, part)[:, :length])


def test_long_rows_add_up_their_blocks_as_short_ones_do() -> None:
    rule = Rule(heads=1, key_value_heads=1, head_dim=8, scale=0.4)
    attention = RowsAttention(rule, None)
    segments, length = (Segment(0, 1100),), 1100
    states = [torch.randn(length, 8) for _ in range(4)]
    into = [torch.empty(length, 8) for _ in range(3)]
    out, rows = attention.forward(*states[:3], segments, keep=True)
    attention.backward(states[3], into, segments, rows)
    leaves = [part[None, None].requires_grad_() for part in states[:3]]
    wanted = functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.4)
    wanted.backward(states[3][None, None])
    torch.testing.assert_close(out, wanted[0, 0].detach(), rtol=1e-4, atol=1e-5)
    for one, leaf in zip(into, leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(one, leaf.grad[0, 0], rtol=1e-3, atol=1e-4)


def test_the_loss_of_narrow_logits_is_exact_where_the_target_is_nearly_certain() -> None:
    products = torch.zeros(3, 50, dtype=torch.bfloat16)
    products[0, 7], products[1, 3] = 14.0, 4.0
    targets = torch.tensor([7, 3, 9])
    leaf = products.double().requires_grad_()
    losses, shares = _narrow_chunk(products, targets), products
    wanted = functional.cross_entropy(leaf, targets, reduction="none")
    wanted.sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(losses.double(), wanted.detach(), rtol=1e-2, atol=0.0)
    torch.testing.assert_close(shares.double(), leaf.grad, rtol=1e-2, atol=0.0)


def test_parked_states_come_back_once_and_in_any_case_whole() -> None:
    parking = Parking(CPU)
    states = [torch.randn(3, 2) for _ in range(3)]
    numbers = [parking.put(part) for part in states]
    for number in reversed(numbers):
        assert torch.equal(parking.take(number), states[number])
