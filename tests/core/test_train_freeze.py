"""The first layers frozen, and noise on embeddings: both paths against PEFT and transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import UsageError
from ollama_tune.core.export.adapter import Adapter
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.paths import choose_path
from ollama_tune.core.plan.predict import by_formula
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.train.fast.path import FastPath, make_fast
from ollama_tune.core.train.general import GeneralPath, make_general
from ollama_tune.core.train.model import load_adapter, load_base
from ollama_tune.core.train.noise import noisy
from ollama_tune.core.train.session import Stopped
from ollama_tune.core.train.simulate import simulate
from tests.cases import CHAT, LLAMA_1B, TINY, machine
from tests.core.loop_parts import TRAIN, Run, examples
from tests.core.train_parts import curve
from tests.loud import loud
from tests.tiny import build_model

LAYERS, FROZEN, WIDTH, ALPHA = 3, 2, 64, 8.0
ROWS = examples(4)
FREEZE = TrainingSettings(rank=4, alpha=8, freeze_layers=FROZEN)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"), layers=LAYERS, hidden=WIDTH)


def made(kind: str, folder: Path, training: TrainingSettings) -> Any:
    """A path with an adapter that does something."""
    return loud((make_fast if kind == "fast" else make_general)(folder, training, "base", reason=""), 0.1)


def gradients(path: Any, rows: list[Example] = ROWS, seed: int = 3) -> dict[str, torch.Tensor]:
    """Those of the summed loss, and the loss itself by the name `loss`."""
    torch.manual_seed(seed)
    path.train(True)
    loss = path.loss(path.collate(rows))
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in path.weights.items()}
    for weight in path.weights.values():
        weight.grad = None
    return found | {"loss": loss.detach()}


# Frozen layers


@pytest.mark.parametrize("kind", ["fast", "general"])
def test_only_later_layers_get_an_adapter_and_gradients_are_those_of_all_layers(
    folder: Path, kind: str
) -> None:
    whole, path = (made("general", folder, TrainingSettings(rank=4, alpha=8)), made(kind, folder, FREEZE))
    assert {name.split(".")[4] for name in path.weights} == {"2"} and len(path.weights) == 14
    with torch.no_grad():
        for name, weight in whole.weights.items():
            weight.copy_(path.weights[name]) if name in path.weights else weight.zero_()
    wanted = gradients(whole)
    for name, found in gradients(path).items():
        torch.testing.assert_close(found, wanted[name], rtol=2e-4, atol=2e-5)


def test_both_paths_start_with_the_numbers_that_peft_draws_for_those_layers(folder: Path) -> None:
    fast, general = make_fast(folder, FREEZE, "base"), make_general(folder, FREEZE, "base", "")
    assert fast.weights.keys() == general.weights.keys()
    assert all(torch.equal(weight, general.weights[name]) for name, weight in fast.weights.items())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("kind", ["fast", "general"])
def test_the_adapter_says_which_layers_it_is_for_and_peft_and_the_export_read_it(
    folder: Path, tmp_path: Path, kind: str, targets: Any
) -> None:
    path = made(kind, folder, FREEZE.model_copy(update={"targets": targets}))
    path.write_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([2], "layers")
    theirs = load_adapter(load_base(folder, FREEZE), tmp_path)
    with torch.no_grad():
        logits = theirs(torch.tensor([ROWS[0].ids])).logits[0]
    place = len(ROWS[0].ids) - 1
    found = path.engine.logits(ROWS[0].ids, [place], tuned=True)[0]
    torch.testing.assert_close(found, logits[place], rtol=1e-4, atol=1e-4)
    adapter = Adapter(tmp_path)
    assert {module.split(".")[2] for module in adapter.pairs} == {"2"}
    adapter.close()


@pytest.mark.parametrize("recompute", ["none", "mlp", "layers"])
def test_the_backward_pass_ends_at_the_first_layer_that_learns(folder: Path, recompute: str) -> None:
    training = FREEZE.model_copy(update={"gradient_checkpointing": recompute})
    general: GeneralPath = made("general", folder, training)
    differentiable: list[bool] = []
    for layer in general.model.get_base_model().model.layers:
        layer.register_forward_pre_hook(
            lambda _m, inputs: differentiable.append(inputs[0].requires_grad and torch.is_grad_enabled())
        )
    general.train(True)
    loss = general.loss(general.collate(ROWS))
    assert differentiable == [False, False, False]
    loss.backward()  # type: ignore[no-untyped-call]
    fast: FastPath = made("fast", folder, training)
    asked: list[tuple[int, bool]] = []
    for number, layer in enumerate(fast.model.layers):
        backward = layer.backward

        def watched(*given: Any, inputs: bool, number: int = number, backward: Any = backward) -> Any:
            asked.append((number, inputs))
            return backward(*given, inputs=inputs)

        layer.backward = watched  # type: ignore[method-assign]
    gradients(fast)
    assert asked == [(2, False)]


def test_too_many_frozen_layers_are_refused_in_the_plan_and_before_a_run(folder: Path) -> None:
    spec = read_spec(str(folder))
    with pytest.raises(UsageError, match="the model has 3 layers, of which one at least") as error:
        choose_path(spec, TrainingSettings(freeze_layers=3))
    assert error.value.fix == "Set it to 2 or less."
    with pytest.raises(UsageError, match="freeze_layers is 99"):
        make_plan(machine(), TINY, CHAT, {"training.freeze_layers": 99})


# What it costs


def test_frozen_layers_need_less_memory_and_all_weights_many_times_more() -> None:
    def needed(**training: Any) -> int:
        chosen = {"device": "cuda", "compute_dtype": "bfloat16"} | training
        settings = Settings().with_values({f"training.{name}": value for name, value in chosen.items()})
        return predict(settings, LLAMA_1B, machine(gpu=24), 512).needed

    assert needed(freeze_layers=8) < needed() < needed(method="full", freeze_layers=8) < needed(method="full")
    assert needed(method="full") > 16 * LLAMA_1B.parameters


SMALL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}
FULL = {"method": "full", "adapter_dtype": "float32"}


@pytest.mark.parametrize(
    ("values", "tied"),
    [
        (FULL, False),
        (FULL | {"gradient_checkpointing": "layers", "gradient_accumulation_steps": 4}, True),
        (FULL | {"freeze_layers": 2, "batch_size": 2, "apart": True}, True),
        ({"freeze_layers": 2}, False),
        ({"freeze_layers": 2, "path": "fast", "batch_size": 2}, True),
    ],
)
def test_the_formula_agrees_with_the_simulation(values: dict[str, Any], tied: bool) -> None:
    request = MemoryRequest.model_validate({"sequence_length": 1024} | values)
    config = SMALL | {"tie_word_embeddings": tied}
    wanted = simulate(config, request)["allocated_bytes"]
    assert by_formula(config, request).allocated_bytes == pytest.approx(wanted, rel=0.06)


def test_the_rate_for_all_weights_is_a_tenth_and_what_has_no_effect_is_said() -> None:
    lora = make_plan(machine(gpu=24), LLAMA_1B, CHAT, {"training.rank": 32})
    full = make_plan(machine(gpu=24), LLAMA_1B, CHAT, {"training.method": "full", "training.rank": 32})
    rates = [plan.settings.training.learning_rate for plan in (lora, full)]
    assert rates[1] == pytest.approx(rates[0] / 10) and 1e-5 <= rates[1] <= 2e-5
    assert "a tenth" in full.choices["training.learning_rate"].reason
    assert any("does not use training.rank" in warning for warning in full.warnings)
    assert full.settings.training.quantization == "none"
    assert full.work.checkpoint_bytes >= 28 * LLAMA_1B.parameters > lora.work.checkpoint_bytes


def test_where_all_weights_do_not_fit_an_adapter_is_offered() -> None:
    plan = make_plan(machine(gpu=8), LLAMA_1B, CHAT, {"training.method": "full"})
    assert not plan.memory.fits
    assert {"training.method": "lora"} in [dict(offer.changes) for offer in plan.offers]


# Noise on the embeddings


def test_noise_is_uniform_within_its_bound_and_padding_gets_none() -> None:
    torch.manual_seed(0)
    states = torch.zeros(700, 32)
    found = noisy(states, [(400, 400), (200, 300), (50, 0)], 5.0)
    for part, length in ((found[:400], 400), (found[400:600], 300)):
        bound = 5.0 / math.sqrt(length * 32)
        assert 0.99 * bound < part.abs().max() <= bound
        assert part.mean().abs() < 0.05 * bound
        assert part.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not found[600:].any()


def by_transformers(folder: Path, path: Any, tmp_path: Path, laid: list[int], seed: int) -> torch.Tensor:
    """The loss with the noise that a path draws: rows one after the other, `laid` tokens of each."""
    path.write_adapter(tmp_path)
    model: Any = load_adapter(load_base(folder, FREEZE), tmp_path)
    torch.manual_seed(seed)
    noise = torch.rand(sum(laid), WIDTH).mul(2).sub(1)
    total = torch.zeros(())
    for row, drawn in zip(ROWS, torch.split(noise, laid), strict=True):
        embedded = model.get_input_embeddings()(torch.tensor([row.ids])).clone()
        embedded[0, : len(drawn)] += drawn * ALPHA / math.sqrt(len(row.ids) * WIDTH)
        with torch.no_grad():
            logits = model(inputs_embeds=embedded).logits[0, :-1]
        trained = torch.tensor(row.trained[1:])
        targets = torch.tensor(row.ids[1:])[trained]
        total = total + functional.cross_entropy(logits[trained], targets, reduction="sum")
    return total


@pytest.mark.parametrize("kind", ["fast", "general"])
def test_the_loss_with_noise_is_that_of_transformers_with_it(folder: Path, tmp_path: Path, kind: str) -> None:
    path = made(kind, folder, TrainingSettings(rank=4, alpha=8, neftune=ALPHA))
    laid = [len(row.ids) - (kind == "fast") for row in ROWS]  # the last token predicts nothing
    wanted = by_transformers(folder, path, tmp_path, laid, 3)
    found = gradients(path)["loss"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    path.train(False)
    with torch.no_grad():
        quiet = path.loss(path.collate(ROWS))
        path.train(True)
        measured = path.loss(path.collate(ROWS))
    assert quiet == measured != pytest.approx(found.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["fast", "general"])
def test_noise_comes_from_the_seed_alone_and_without_it_nothing_is_drawn(folder: Path, kind: str) -> None:
    noise = made(kind, folder, TrainingSettings(rank=4, alpha=8, neftune=ALPHA))
    one, same, other = (gradients(noise, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["loss"], other["loss"])
    without = made(kind, folder, TrainingSettings(rank=4, alpha=8))
    one, other = gradients(without, seed=1), gradients(without, seed=2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_with_noise_no_opening_is_shared(folder: Path) -> None:
    rows = [Example("", (*range(3, 60), 60 + n), (*[False] * 57, True), ((0, 0),) * 58) for n in range(4)]
    alone = made("fast", folder, TrainingSettings(rank=4, neftune=ALPHA)).collate(rows)
    shared = made("fast", folder, TrainingSettings(rank=4)).collate(rows)
    assert [segment.prefix for segment in alone.segments] == [None] * 4
    assert len(shared.segments) == 5 and alone.lengths == (58,) * 4


def test_a_fast_run_with_noise_and_frozen_layers_resumes_bit_for_bit(folder: Path) -> None:
    values: dict[str, Any] = {"neftune": 5.0, "freeze_layers": 1, "epochs": 1.0, "dropout": 0.0}
    whole = Run(folder, computed="fast", **values)
    whole.trainer.run()
    first = Run(folder, computed="fast", **values)
    first.stop_after(3)
    with pytest.raises(Stopped):
        first.trainer.run()
    first.folder.stop_path.unlink()
    second = Run(folder, first.folder, computed="fast")
    assert second.resume() == []
    second.trainer.run()
    assert curve(second.folder.events()) == curve(whole.folder.events()) and len(TRAIN) == 24
    for name, weight in second.path.weights.items():
        assert torch.equal(weight, whole.path.weights[name]), name
