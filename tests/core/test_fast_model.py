"""The fast path against transformers with PEFT and against itself: every family, every way to keep less."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.stream import lay_stream
from tests.core.fast_parts import FAMILIES, ROWS, Twins, adapter_of, changed, rows, twins


@pytest.fixture(scope="module")
def made() -> dict[str, Twins]:
    return {}


def _twins(made: dict[str, Twins], family: str) -> Twins:
    if family not in made:
        made[family] = twins(family)
    return made[family]


def _gradients(model: FastModel, examples: list, share: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    assert model.adapter is not None
    named = model.adapter.named()
    loss = model.loss(lay_stream(examples, "cpu", share=share))
    found = torch.autograd.grad(loss, list(named.values()))
    return float(loss.detach()), dict(zip(named, found, strict=True))


def _farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two gradients of a weight, as a share of their length."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers_and_peft_at_every_step(family: str) -> None:
    pair = twins(family)
    ours = torch.optim.AdamW(pair.ours.values(), lr=1e-2, fused=True)
    theirs = torch.optim.AdamW(pair.theirs.values(), lr=1e-2, fused=True)
    tokens = sum(sum(row.trained[1:]) for row in ROWS)
    for step in range(4):
        loss, gradients = _gradients(pair.fast, ROWS)
        wanted = pair.reference(ROWS)
        wanted.backward()
        assert abs(loss - float(wanted.detach())) / tokens < 1e-5, step
        known = {name: weight.grad for name, weight in pair.theirs.items() if weight.grad is not None}
        assert _farthest(gradients, known) < 2e-4
        for name, weight in pair.ours.items():
            weight.grad = gradients[name]
        ours.step()
        theirs.step()
        theirs.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_float64_are_the_slopes_of_the_loss(made: dict[str, Twins], family: str) -> None:
    model = changed(_twins(made, family).fast, torch.float64)
    assert model.adapter is not None
    weights, stream = model.adapter.named(), lay_stream(ROWS, "cpu")
    _, gradients = _gradients(model, ROWS)
    torch.manual_seed(3)
    for chosen in ("lora_A", "lora_B"):
        ways = {name: torch.randn_like(w) for name, w in weights.items() if chosen in name}
        slope = sum(float((gradients[name] * way).sum()) for name, way in ways.items())
        found = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for name, way in ways.items():
                    weights[name].add_(way, alpha=sign * 1e-5)
                found.append(float(model.loss(stream)))
        assert (found[0] - found[1]) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gemma3", "smollm3", "olmo2"])
def test_a_shared_prefix_changes_neither_loss_nor_gradients(made: dict[str, Twins], family: str) -> None:
    model = changed(_twins(made, family).fast, torch.float64)
    examples = rows(20, 45, 8, 33, shared=37)
    shared = lay_stream(examples, "cpu")
    assert sum(segment.prefix is not None for segment in shared.segments) == 4
    loss, gradients = _gradients(model, examples)
    apart, wanted = _gradients(model, examples, share=False)
    assert loss == pytest.approx(apart, rel=1e-12)
    assert _farthest(gradients, wanted) < 1e-10


def test_rows_longer_than_a_block_agree_with_transformers(made: dict[str, Twins]) -> None:
    for family in ("qwen2", "mistral"):
        pair = _twins(made, family)
        long = rows(300, 140)
        with torch.no_grad():
            found = float(pair.fast.loss(lay_stream(long, "cpu")))
            assert found == pytest.approx(float(pair.reference(long)), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_what_is_computed_again_in_backward_is_the_same_to_the_bit(
    made: dict[str, Twins], family: str
) -> None:
    model = changed(_twins(made, family).fast, torch.bfloat16)
    assert model.adapter is not None
    model.adapter.layout = replace(model.adapter.layout, dropout=0.2)
    model.training = True
    results = []
    for what in ("none", "mlp", "layers", "offload"):
        model.recompute = what  # type: ignore[assignment]
        torch.manual_seed(5)
        results.append(_gradients(model, rows(300, 20)))
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(gradients[name], known) for name, known in results[0][1].items())


def test_bfloat16_stays_close_to_float32(made: dict[str, Twins]) -> None:
    for family in ("llama", "gemma2"):
        exact = _twins(made, family).fast
        wanted, known = _gradients(exact, ROWS)
        loss, gradients = _gradients(changed(exact, torch.bfloat16), ROWS)
        assert loss == pytest.approx(wanted, rel=2e-2)
        assert _farthest(gradients, known) < 0.15
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["v_proj"], ["gate_proj", "o_proj"]])
def test_layers_without_lora_on_some_projections(targets: list[str]) -> None:
    pair = twins("llama", targets=targets)
    loss, gradients = _gradients(pair.fast, ROWS)
    wanted = pair.reference(ROWS)
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    known = {name: weight.grad for name, weight in pair.theirs.items() if weight.grad is not None}
    assert _farthest(gradients, known) < 1e-4


def test_without_its_adapter_the_model_is_the_base(made: dict[str, Twins]) -> None:
    pair = _twins(made, "llama")
    pair.fast.adapter_on = False
    with torch.no_grad(), pair.causal.disable_adapter():
        assert float(pair.fast.loss(lay_stream(ROWS, "cpu"))) == pytest.approx(
            float(pair.reference(ROWS)), rel=1e-5
        )
    pair.fast.adapter_on = True


def test_dropout_draws_from_the_seed_and_leaves_the_mean_alone(made: dict[str, Twins]) -> None:
    model = _twins(made, "llama").fast
    assert model.adapter is not None
    plain, _ = _gradients(model, ROWS)
    before = model.adapter.layout
    model.adapter.layout = replace(before, dropout=0.3)
    try:
        still, _ = _gradients(model, ROWS)
        model.training = True
        losses = []
        for seed in (1, 1, *range(2, 40)):
            torch.manual_seed(seed)
            with torch.no_grad():
                losses.append(float(model.loss(lay_stream(ROWS, "cpu"))))
    finally:
        model.adapter.layout, model.training = before, False
    assert still == plain and losses[0] == losses[1] and len(set(losses)) == 39
    drawn = torch.tensor(losses[1:])
    assert abs(float(drawn.mean()) - plain) < 0.1 * plain
    assert 0 < float(drawn.std()) < 0.2 * plain


def test_the_gradient_of_dropout_belongs_to_the_same_mask(made: dict[str, Twins]) -> None:
    model = changed(_twins(made, "llama").fast, torch.float64)
    assert model.adapter is not None
    model.adapter.layout = replace(model.adapter.layout, dropout=0.3)
    model.training = True
    torch.manual_seed(8)
    _, gradients = _gradients(model, ROWS)
    name, weight = next(iter(model.adapter.named().items()))
    way = torch.randn_like(weight)
    found = []
    with torch.no_grad():
        for sign in (1, -2):
            weight.add_(way, alpha=sign * 1e-5)
            torch.manual_seed(8)
            found.append(float(model.loss(lay_stream(ROWS, "cpu"))))
    slope = float((gradients[name] * way).sum())
    assert (found[0] - found[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_quantized_weights_give_what_their_dequantized_copies_give(made: dict[str, Twins]) -> None:
    from bitsandbytes.functional import quantize_4bit

    from ollama_tune.core.train.fast.weights import BaseWeights, Quantized

    plain = _twins(made, "llama").fast
    assert plain.adapter is not None
    packed = {}
    for name, weight in plain.weights._linears.items():
        assert isinstance(weight, torch.Tensor)
        data = quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        packed[name] = Quantized((data,), (weight.shape[0], weight.shape[1]), torch.float32)
    ends = plain.weights.embedding, plain.weights.head
    adapters = [adapter_of(plain.blueprint, plain.adapter.named(), plain.adapter.layout) for _ in range(2)]
    quantized = FastModel(plain.blueprint, BaseWeights(packed, plain.weights._vectors, *ends), adapters[0])
    unpacked = {name: weight.dequantized() for name, weight in packed.items()}
    wide = FastModel(plain.blueprint, BaseWeights(unpacked, plain.weights._vectors, *ends), adapters[1])
    loss, gradients = _gradients(quantized, ROWS)
    wanted, known = _gradients(wide, ROWS)
    assert loss == wanted and not math.isclose(loss, _gradients(plain, ROWS)[0], rel_tol=1e-4)
    assert _farthest(gradients, known) < 1e-6


def test_observers_get_the_inputs_of_every_linear_layer(made: dict[str, Twins]) -> None:
    pair = _twins(made, "llama")
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    with torch.no_grad():
        plain = float(pair.fast.loss(lay_stream(ROWS[:1], "cpu")))
        pair.fast.observe = lambda name, states: seen.update({name: states.clone()})
        observed = float(pair.fast.loss(lay_stream(ROWS[:1], "cpu")))
        pair.fast.observe = None
        known: dict[str, torch.Tensor] = {}
        for name, module in pair.causal.get_base_model().named_modules():
            if hasattr(module, "base_layer"):
                hooks.append(
                    module.register_forward_pre_hook(
                        lambda _, inputs, name=name: known.update({name: inputs[0][0].clone()})
                    )
                )
        pair.reference(ROWS[:1])
    for hook in hooks:
        hook.remove()
    assert observed == pytest.approx(plain, rel=1e-6)
    assert seen.keys() == known.keys()
    for name, states in seen.items():
        length = len(states)
        assert length >= len(ROWS[0].ids) - 1
        torch.testing.assert_close(states, known[name][:length], rtol=1e-4, atol=1e-4)
