"""4-bit layers of a model that is shared out, without the ranks that share it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from ollama_tune.core.train.sharded_nf4 import SharedLinear4bit, open_up, rounded_on


def four_bit() -> Any:
    torch.manual_seed(3)
    layer = Linear4bit(64, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return layer.to("cpu")


def test_what_is_shared_out_computes_as_before_with_all_its_numbers_as_parameters() -> None:
    layer, rows = four_bit(), torch.randn(3, 64)
    right, scales = layer(rows), layer.weight.quant_state.absmax.clone()
    open_up(torch.nn.Sequential(layer), "cpu")
    assert type(layer) is SharedLinear4bit and set(dict(layer.named_parameters())) == {"weight", "scales"}
    assert type(layer.weight) is torch.nn.Parameter and not layer.scales.requires_grad
    assert layer.quant_state.absmax is None, "a second copy of the scales would stay on every rank"
    assert torch.equal(layer.scales, scales)
    torch.testing.assert_close(layer(rows), right)
    with torch.no_grad():
        layer.scales.zero_()
    assert not torch.equal(layer(rows), right), "the scales that were gathered are those it computes with"


def test_weights_are_rounded_where_that_is_quick_and_lie_where_they_belong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[tuple[str, str]] = []

    class State:
        def to(self, device: str) -> None:
            moved.append(("scales", device))

    class Numbers:
        def to(self, device: str) -> Numbers:
            moved.append(("numbers", device))
            return self

    class Weight:
        data, quant_state = Numbers(), State()

    def quantize(weight: Any, device: str) -> Any:
        moved.append(("rounded", device))
        return weight

    monkeypatch.setattr(Params4bit, "_quantize", quantize)
    with pytest.raises(ValueError), rounded_on("cuda"):
        Params4bit._quantize(Weight(), "cpu")
        raise ValueError
    assert moved == [("rounded", "cuda"), ("numbers", "cpu"), ("scales", "cpu")]
    assert Params4bit._quantize is quantize
