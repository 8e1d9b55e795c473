"""The simulated memory of the fast path: its own code on fake tensors, against the same code on real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ollama_tune.core.models.blueprint import read_blueprint
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train import fast_step
from ollama_tune.core.train.fast.adapter import new_adapter
from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.weights import BaseWeights
from ollama_tune.core.train.fast_step import tensors_in, trace_fast
from ollama_tune.core.train.memtrace import Trace, Tracker
from ollama_tune.core.train.simulate import simulate
from tests.core.train_parts import no_workspaces


def small(layers: int = 5, **more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **heads, **more}


def request(**values: Any) -> MemoryRequest:
    sizes: dict[str, Any] = {"batch_size": 2, "sequence_length": 40, "tokens": 70, "rank": 4}
    return MemoryRequest(**({"path": "fast"} | sizes | values))


def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


@pytest.mark.parametrize("mode", ["none", "mlp", "layers"])
def test_fake_tensors_trace_the_peak_of_real_ones(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step under the same tracker, with numbers in the tensors."""
    asked = request(gradient_checkpointing=mode, attention="eager")
    blueprint = read_blueprint(small(3))
    faked = trace_fast(blueprint, asked).trace.peaks

    def real_model() -> FastModel:
        weights = fast_step._weights(blueprint, asked)
        zeros = [tensor.zero_() for tensor in tensors_in(weights)]
        assert isinstance(weights, BaseWeights) and zeros
        model = FastModel(
            blueprint, weights, new_adapter(blueprint, asked.model_copy(update={"device": "cpu"}))
        )
        model.training, model.recompute = True, asked.gradient_checkpointing
        return model

    with fast_step._as_on_a_gpu(True):
        model, stream, tracker = real_model(), fast_step._stream(asked), Tracker(Trace(), no_workspaces)
        model.loss(stream).backward()
        assert model.adapter is not None
        fast_step._forget_gradients(model.adapter)
        fast_step._hold(model, asked, tracker)
        for tensor in (stream.ids, stream.positions, stream.picked, stream.targets):
            tracker.track(tensor, "activations")
        with tracker, fast_step._watched(model, tracker):
            fast_step._step(model, asked, stream, tracker.trace)
    measured = tracker.trace.peaks
    assert measured.keys() == faked.keys()
    for phase, parts in faked.items():
        assert total(dict(parts)) == pytest.approx(total(dict(measured[phase])), rel=0.002), phase


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_checkpointing": "none"},
        {"gradient_checkpointing": "layers", "gradient_accumulation_steps": 4, "rank": 64},
        {"gradient_checkpointing": "offload", "quantization": "nf4"},
        {"gradient_checkpointing": "mlp", "dropout": 0.1, "optimizer": "adamw_8bit"},
    ],
)
def test_a_few_layers_extrapolated_are_all_layers(values: dict[str, Any]) -> None:
    asked = request(**values)
    whole = trace_fast(read_blueprint(small(4)), asked).trace.peaks
    found = simulate(small(4), asked)
    assert found["allocated_bytes"] == pytest.approx(max(map(total, map(dict, whole.values()))), rel=0.001)
    assert found["unknown"] == []


def test_less_is_kept_with_each_step_of_recomputation_and_nothing_is_left_behind() -> None:
    config = small(4, hidden_size=128, intermediate_size=512)
    modes = ("none", "mlp", "layers", "offload")
    found = [simulate(config, request(gradient_checkpointing=mode))["allocated_bytes"] for mode in modes]
    assert found[0] > found[1] > found[2] >= found[3]
    assert torch.zeros(1).is_cpu


def test_layers_of_several_kinds_are_simulated() -> None:
    config = small(6, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], sliding_window=32)
    asked = request(gradient_checkpointing="layers")
    kinds = set(read_blueprint(config).kinds)
    assert len(kinds) == 2
    whole = trace_fast(read_blueprint(config), asked).trace.peaks
    assert simulate(config, asked)["allocated_bytes"] == pytest.approx(
        max(map(total, map(dict, whole.values()))), rel=0.001
    )
