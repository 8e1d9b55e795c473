"""The simulated memory of a step: against real tensors, full depth, another tracker and known values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train.batches import Batch
from ollama_tune.core.train.cuda_like import cuda_like
from ollama_tune.core.train.fake_model import (
    FakeModel,
    build,
    layer_kinds,
    on_meta,
    read_config,
)
from ollama_tune.core.train.memtrace import Event, Trace, Tracker, rounded
from ollama_tune.core.train.model import add_adapter
from ollama_tune.core.train.simulate import answer, extrapolate, layer_choices, simulate
from ollama_tune.core.train.traced_step import trace_general, train_step, watched
from ollama_tune.core.train.workspaces import is_suspicious, workspaces
from tests.bench.memory_formula import MODELS
from tests.core.train_parts import no_workspaces

GIB = 1 << 30
MIB = 1 << 20


def small(model_type: str, layers: int = 5, **more: Any) -> dict[str, Any]:
    """A configuration of that family that a step takes milliseconds for."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    return {"model_type": model_type, **sizes, **heads, **more}


def request(**values: Any) -> MemoryRequest:
    return MemoryRequest(**({"sequence_length": 64, "rank": 4} | values))


# -- the tracker


def tracked() -> tuple[Trace, Tracker]:
    trace = Trace()
    return trace, Tracker(trace, no_workspaces)


def test_storages_count_once_rounded_up_until_the_last_view_dies() -> None:
    trace, tracker = tracked()
    with tracker:
        base = torch.ones(100)
        assert trace.total == 512
        view = base[10:].view(9, 10)
        assert trace.total == 512
        del base
        assert trace.total == 512
        pair = torch.ones(200).topk(3)
        assert trace.total == 3 * 512
        del view
        assert trace.total == 2 * 512
        del pair
    assert trace.total == 0


def test_a_phase_starts_with_what_is_alive_and_keeps_its_own_peak() -> None:
    trace, tracker = tracked()
    with tracker:
        trace.phase("one", "weights")
        kept = torch.ones(1024)
        trace.phase("two", "activations")
        for _ in range(3):
            torch.ones(512)
        trace.phase("three", "loss")
    assert {name: dict(parts) for name, parts in trace.peaks.items() if name != "start"} == {
        "one": {"weights": 4096},
        "two": {"weights": 4096, "activations": 2048},
        "three": {"weights": 4096, "activations": 0},
    }
    assert kept.numel() == 1024


def test_workspaces_count_while_their_operator_runs() -> None:
    trace = Trace()
    with Tracker(trace, lambda name, _: [1000] if name == "aten.mul" else []):
        a = torch.ones(128)
        a * 2
    assert trace.total == 512
    assert sum(trace.peaks["start"].values()) == 512 + 1024 + 512
    assert trace.peaks["start"]["workspaces"] == 1024


def operators(loss: torch.Tensor) -> set[str]:
    """Names of what the backward pass runs."""
    with torch.profiler.profile() as profile:
        loss.backward()
    return {event.name for event in profile.events() or []}


def test_gradients_that_autograd_adds_up_take_no_third_tensor() -> None:
    """With a dispatch mode on, autograd adds out of place; without one in place."""
    trace, tracker = tracked()
    weight = torch.ones(1024, requires_grad=True)

    def twice_used() -> torch.Tensor:
        x = weight * 2
        return (x * 3 + x * 4).sum()

    without = operators(twice_used())
    weight.grad = None
    total = twice_used()
    with tracker:
        trace.phase("backward", "gradients")
        found = operators(total)
    assert ("aten::add_" in without, "aten::add_" in found) == (True, False)
    assert sum(trace.peaks["backward"].values()) <= 2 * 4096 + 512
    assert weight.grad is not None
    assert weight.grad[0] == 14


def test_a_summand_that_is_still_held_is_counted() -> None:
    trace, tracker = tracked()
    with tracker, torch.no_grad():
        a, b = torch.ones(128), torch.ones(128)
        c = a + b
        d = c.view(-1)
    assert trace.total == 3 * 512
    assert (a.sum(), d.sum()) == (128, 256)


def test_operators_that_may_hide_temporaries_are_told() -> None:
    assert is_suspicious("aten._scaled_dot_product_cudnn_attention")
    assert is_suspicious("flash_attn.fwd")
    assert is_suspicious("aten.topk")
    assert not is_suspicious("aten._scaled_dot_product_flash_attention")
    assert not is_suspicious("aten.mm")
    _, tracker = tracked()
    with tracker:
        torch.ones(8).topk(2)
    assert tracker.unknown == {"aten.topk"}


def test_workspaces_of_attention_by_hand() -> None:
    """Flash backward of 1 x 32 heads x 2000 tokens x 128, grouped: fp32 queries, sums, keys, values."""
    query, key = torch.empty(1, 32, 2000, 128, dtype=torch.bfloat16), torch.empty(1, 8, 2000, 128)
    found = workspaces("aten._scaled_dot_product_flash_attention_backward", (None, query, key, key))
    assert found == [32 * 2048 * 128 * 4, 32 * 2048 * 4, 2000 * 32 * 128 * 2, 2000 * 32 * 128 * 2]
    wide = torch.empty(2, 4, 100, 256, dtype=torch.bfloat16)
    found = workspaces("aten._scaled_dot_product_efficient_attention_backward", (None, wide, wide))
    assert found == [2 * 4 * 100 * 4, *[8 * 128 * 256 * 4] * 3]


# -- fake tensors against real ones


def step_peaks(
    model: FakeModel, asked: MemoryRequest, tracker: Tracker
) -> tuple[dict[str, int], list[Event]]:
    """Peaks by phase beyond the weights, and all events, of one step on whatever tensors the model has."""
    ids = torch.zeros(asked.batch_size, asked.sequence_length, dtype=torch.long)
    attention: Any = None
    batch = Batch(ids, attention, torch.ones_like(ids, dtype=torch.bool), 0, 0)
    with cuda_like(padded=False), tracker, watched(model, tracker):
        train_step(model, asked, batch, tracker.trace)
    tracker.stop()
    peaks = {name: sum(parts.values()) for name, parts in tracker.trace.peaks.items() if name != "start"}
    return peaks, [event for section in tracker.trace.sections for event in section.events]


def real_model(config: dict[str, Any], asked: MemoryRequest) -> FakeModel:
    """The same model with real weights, quantized by bitsandbytes where asked."""
    import bitsandbytes
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, asked.compute_dtype)
    base = AutoModelForCausalLM.from_config(read_config(config), dtype=dtype, attn_implementation="eager")
    base.requires_grad_(False)
    if asked.quantization == "nf4":
        for name, linear in list(base.named_modules()):
            if isinstance(linear, torch.nn.Linear) and name != "lm_head":
                packed = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                )
                packed.weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data, requires_grad=False, quant_type="nf4", module=packed
                )
                base.set_submodule(name, packed.to("cpu"))
        base.is_loaded_in_4bit = True
    add_adapter(base, asked, "")
    for weight in base.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(getattr(torch, asked.trained_dtype))
    return FakeModel(base.train(), (), False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", ["layers", "none"])
@pytest.mark.parametrize(
    "values",
    [
        {"compute_dtype": "float32"},
        {"compute_dtype": "bfloat16", "adapter_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16", "quantization": "nf4"},
        {"compute_dtype": "bfloat16", "loss": "full", "gradient_accumulation_steps": 2},
    ],
)
def test_a_step_on_fake_tensors_allocates_what_a_real_one_does(
    values: dict[str, Any], checkpointing: str
) -> None:
    """A model of 20 M parameters on the CPU, eager attention; the real tensors hold real numbers."""
    config = small("llama", 3, vocab_size=8192, hidden_size=512, intermediate_size=1536, head_dim=128)
    asked = request(attention="eager", gradient_checkpointing=checkpointing, sequence_length=96, **values)
    torch.set_num_threads(1)
    model = real_model(config, asked)
    assert sum(weight.numel() for weight in model.causal.parameters()) > 5_000_000
    real, events = step_peaks(model, asked, Tracker(Trace(), no_workspaces))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    imagined = build(read_config(config), asked, fake)
    with fake:
        found, same = step_peaks(imagined, asked, Tracker(Trace(), no_workspaces))
    assert real.keys() == found.keys()
    for phase, peak in real.items():
        assert found[phase] == pytest.approx(peak, rel=0.002), phase
    sizes = [[event.size for event in part if event.size] for part in (events, same)]
    assert sum(sizes[1]) == pytest.approx(sum(sizes[0]), rel=0.01)


# -- extrapolation


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (small("llama"), {"gradient_checkpointing": "layers", "gradient_accumulation_steps": 4}),
        (small("llama"), {"quantization": "nf4", "rank": 64}),
        (small("qwen3"), {"gradient_checkpointing": "layers", "padded": True, "batch_size": 2}),
        (
            small("gemma3_text", 8, sliding_window=32),
            {"gradient_checkpointing": "layers", "sequence_length": 96},
        ),
        (small("gemma2", 6, sliding_window=32), {}),
        (small("smollm3", 6), {"loss": "full", "optimizer": "adamw_8bit"}),
        (small("gpt2"), {"gradient_checkpointing": "layers"}),
        (small("qwen2"), {"method": "full", "gradient_checkpointing": "layers"}),
        (small("llama"), {"optimizer": "adamw_foreach", "rank": 128, "gradient_checkpointing": "layers"}),
    ],
)
def test_a_few_layers_extrapolated_are_all_layers(config: dict[str, Any], values: dict[str, Any]) -> None:
    asked = request(**values)
    whole = read_config(config)
    kinds = layer_kinds(whole)
    few, _ = layer_choices(kinds)
    assert len(few) < len(kinds)
    everything = trace_general(whole, asked).trace.peaks
    expected = max(sum(parts.values()) for parts in everything.values())
    assert simulate(config, asked)["allocated_bytes"] == pytest.approx(expected, rel=0.001)


def test_which_layers_stand_for_all() -> None:
    few, more = layer_choices(["a"] * 9)
    assert (few, more) == ([0, 1], {"a": [0, 1, 1]})
    few, more = layer_choices(["s", "s", "f", "s", "s", "f", "s"])
    assert (few, more) == ([5, 6], {"f": [5, 5, 6], "s": [5, 6, 6]})
    assert layer_choices(["a", "a", "a"]) == ([0, 1, 2], {})
    runs = {(0, 1): {"x": {"w": 10}}, (0, 1, 1): {"x": {"w": 13, "g": 1}}}
    assert extrapolate(["a"] * 9, runs) == {"x": {"w": 31, "g": 7}}


def test_gradients_that_are_accumulated_count_through_the_next_batch() -> None:
    config, adapter = small("llama"), 5 * 32 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
    plain = {"gradient_checkpointing": "layers", "rank": 32}
    once = simulate(config, request(**plain))["allocated_bytes"]
    summed = simulate(config, request(gradient_accumulation_steps=2, **plain))
    assert summed["parts"]["gradients"] == pytest.approx(adapter, rel=0.02)
    assert 0.7 * adapter < summed["allocated_bytes"] - once < 1.01 * adapter


def test_optimizers_hold_what_their_states_need() -> None:
    """States of 100,000 elements and more are paged: not those of k and v, whose B is 256 x 256."""
    parts = {}
    for name in ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"):
        config = small("llama", hidden_size=512, head_dim=128, intermediate_size=1024)
        parts[name] = simulate(config, request(optimizer=name, rank=256))["parts"]
    adapter = parts["adamw"]["adapter"]
    unpaged = 5 * 2 * 256 * 256
    assert parts["adamw"]["optimizer"] == 2 * adapter
    assert parts["adamw_8bit"]["optimizer"] == pytest.approx((2 + 8 / 256) / 4 * adapter, rel=0.001)
    assert parts["paged_adamw"]["optimizer"] == 2 * 4 * unpaged
    scales = 8 / 256 / 4 * adapter
    assert parts["paged_adamw_8bit"]["optimizer"] == pytest.approx(scales + 2 * unpaged, rel=0.001)


def test_each_trained_weight_has_its_states_once() -> None:
    """Also where a module that holds the layers has a buffer of its own, and head and embedding are one."""
    asked = request(method="full", gradient_checkpointing="layers")
    weights = on_meta(read_config(small("gpt_bigcode")), asked).parameters()
    states = simulate(small("gpt_bigcode"), asked)["parts"]["optimizer"]
    assert states == pytest.approx(2 * 2 * sum(weight.numel() for weight in weights), rel=0.04)


def test_layers_are_found_wherever_a_family_keeps_them() -> None:
    """OPT's lie one module deeper than most."""
    config = small("opt", ffn_dim=192, word_embed_proj_dim=64)
    assert simulate(config, request())["allocated_bytes"] > 0


QLORA = {"quantization": "nf4", "rank": 16, "adapter_dtype": "bfloat16", "loss": "full"}


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        ("Llama-3.2-1B", 4.11),
        ("Llama-3.2-3B", 5.53),
        ("Qwen3-4B", 6.52),
        ("Mistral-7B", 5.39),
        ("Qwen2.5-7B", 9.30),
        ("Llama-3.1-8B", 9.03),
        ("Qwen3-8B", 9.99),
        ("Gemma-3-4B", 9.33),
        ("Gemma-2-9B", 13.48),
    ],
)
def test_known_peaks_of_qlora_with_all_logits(model: str, gib: float) -> None:
    """Rank 16 in bfloat16 on all linear layers, checkpointing, 1 x 2048, flash attention: GiB allocated.

    These values come from another simulation with the same versions.
    """
    asked = MemoryRequest(sequence_length=2048, gradient_checkpointing="layers", **QLORA)
    assert simulate(MODELS[model], asked)["allocated_bytes"] / GIB == pytest.approx(gib, rel=0.005)


def test_full_fine_tuning_agrees_with_the_tracker_of_torch() -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    config = small("llama", 3)
    asked = request(method="full", loss="full", attention="eager", adapter_dtype="float32", autocast=False)
    asked = asked.model_copy(update={"compute_dtype": "float32"})
    model = real_model(config, asked)
    for weight in model.causal.parameters():
        weight.requires_grad_(True)
    ids = torch.zeros(1, 64, dtype=torch.long)
    trace = Trace()
    tracker = Tracker(trace, no_workspaces)
    for tensor in [*model.causal.parameters(), *model.causal.buffers()]:
        tracker.track(tensor)
    trace.phase("step", "step")
    with tracker:
        model.causal(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for weight in model.causal.parameters():
        weight.grad = None
    theirs = MemTracker()
    theirs.track_external(model.causal)
    with theirs:
        model.causal(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    snapshot = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert sum(trace.peaks["step"].values()) == pytest.approx(snapshot["Total"], rel=0.01)


# -- the process


def test_wrong_requests_and_models_are_answered_with_reasons() -> None:
    config = small("llama")
    wrong = answer(json.dumps({"config": config, "settings": {"targets": ["query"]}}))
    assert wrong["error"]["refused"]
    assert "no linear layer called 'query'" in wrong["error"]["what"]
    unknown = answer(json.dumps({"config": {"model_type": "nothing"}, "settings": {}}))
    assert not unknown["error"]["refused"]
    assert "cannot be simulated" in unknown["error"]["what"]
    assert not answer("no JSON")["error"]["refused"]
    right = answer(json.dumps({"config": config, "settings": {"rank": 4, "sequence_length": 64}}))
    assert sum(right["parts"].values()) == right["allocated_bytes"] <= right["reserved_bytes"]


def test_memory_is_rounded_as_the_allocator_does() -> None:
    assert [rounded(size) for size in (1, 512, 513)] == [512, 512, 1024]
