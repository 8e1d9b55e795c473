"""What a plan says of AdaLoRA and of soft prompts: rates, memory, and that Ollama takes no soft prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.plan.checks import plan_warnings
from ollama_tune.core.plan.confirm import can_confirm
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.fast_formula import formula_of
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.methods import adapter_parameters, initial_rank
from ollama_tune.core.plan.paths import Way, choose_path
from ollama_tune.core.plan.predict import Simulator
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.request import MemoryRequest, as_request
from ollama_tune.core.plan.rules import rank
from ollama_tune.core.plan.settings import Settings, TrainingSettings, parse
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.values import Plan
from tests.cases import CHAT, LLAMA_8B, QWEN3_4B, machine

GPU = machine(gpu=80)
SOFT = ("prompt", "ptuning")


def plan(**training: Any) -> Plan:
    return make_plan(GPU, QWEN3_4B, CHAT, {f"training.{name}": value for name, value in training.items()})


def parts(method: str, length: int = 512, **training: Any) -> dict[str, int]:
    tree = {"device": "cuda", "compute_dtype": "bfloat16", "batch_size": 2, "sequence_length": length}
    memory = predict(parse({"training": tree | {"method": method} | training}), LLAMA_8B, GPU, length)
    return {part.name: part.bytes for part in memory.parts}


@pytest.mark.parametrize(
    ("asked", "parameters"),
    [
        ({}, 41_943_040),
        ({"targets": ["q_proj", "v_proj"]}, 6_815_744),
        ({"freeze_layers": 24}, 41_943_040 // 4),
        ({"targets": ["something_else"]}, 32 * 16 * 2 * 4096),
        ({"dora": True, "targets": ["k_proj"]}, 32 * (16 * (4096 + 1024) + 1024)),
        ({"method": "adalora", "targets": ["k_proj"]}, 32 * 24 * (4096 + 1024 + 1)),
        ({"method": "full"}, 0),
        ({"method": "prompt"}, 0),
    ],
)
def test_parameters_of_an_adapter_that_can_be_counted_by_hand(asked: dict[str, Any], parameters: int) -> None:
    assert adapter_parameters(parse({"training": {"rank": 16} | asked}).training, LLAMA_8B) == parameters


def test_the_recommended_rank_counts_the_layers_and_modules_that_learn() -> None:
    trained = replace(CHAT, trained_tokens=60_000_000)

    def recommended(**training: Any) -> int:
        asked = parse({"training": training}).training
        return int(rank(LLAMA_8B, asked, trained).value)

    assert recommended() == recommended(dora=True) == recommended(method="adalora") == 32
    assert recommended(freeze_layers=16) == 64
    assert recommended(targets=["k_proj"]) == 128


def test_the_memory_formula_counts_the_same_parameters() -> None:
    for asked in ({}, {"freeze_layers": 16}, {"dora": True}):
        held = adapter_parameters(parse({"training": {"rank": 16} | asked}).training, LLAMA_8B)
        assert parts("lora", rank=16, **asked)["gradients"] == 4 * held


@pytest.mark.parametrize("method", SOFT)
def test_a_soft_prompt_is_planned_without_an_export_and_the_plan_says_so(method: str) -> None:
    made = plan(method=method)
    assert made.settings.export.name is None and not made.settings.training.packing
    assert made.choices["export.name"].reason == "no export: Ollama's files have no place for a soft prompt"
    obstacle = export_obstacle(made.settings)
    assert "no export" in obstacle and "ask" in obstacle
    assert list(made.warnings).count(obstacle) == 1
    assert obstacle in plan_warnings(made, GPU, QWEN3_4B, CHAT)
    assert not can_confirm(made, GPU) and can_confirm(plan(), GPU)
    assert made.choices["training.rank"].reason == "of no effect: only the soft prompt learns"


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_adapters_are_exported(method: str) -> None:
    made = plan(method=method)
    assert export_obstacle(made.settings) == "" and made.settings.export.name
    assert not [warning for warning in made.warnings if "export" in warning]


def test_each_method_has_a_rate_of_its_own_and_says_why() -> None:
    rates = {method: plan(method=method).choices["training.learning_rate"] for method in ("lora", *SOFT)}
    ada = plan(method="adalora").choices["training.learning_rate"]
    assert rates["prompt"].value >= 100 * rates["lora"].value
    assert rates["lora"].value < rates["ptuning"].value < rates["prompt"].value
    assert ada.value == pytest.approx(5 * rates["lora"].value)
    reasons = {choice.reason for choice in (*rates.values(), ada)}
    assert len(reasons) == 4 and all(len(reason) <= 80 and "…" not in reason for reason in reasons)


@pytest.mark.parametrize("method", ["adalora", *SOFT])
def test_the_general_path_takes_it_and_the_screen_says_why(method: str) -> None:
    training = parse({"training": {"method": method}}).training
    name, reason = choose_path(QWEN3_4B, training)
    assert name == "general" and reason.startswith("The fast path trains adapters")
    with pytest.raises(TuneError, match="trains adapters"):
        choose_path(QWEN3_4B, training.model_copy(update={"path": "fast"}))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"training": {"method": "prompt", "packing": True}}, "packing"),
        ({"training": {"method": "prompt", "freeze_layers": 1}}, "freeze_layers"),
        ({"training": {"method": "ptuning"}, "export": {"name": "kitchen"}}, "export.name"),
        ({"training": {"method": "ptuning"}, "export": {"also": ["adapter"]}}, "export.also"),
        ({"training": {"method": "adalora", "dora": True}}, "dora"),
        ({"training": {"method": "adalora", "rslora": True}}, "rslora"),
        ({"training": {"method": "prompt", "path": "fast"}}, "path"),
    ],
)
def test_what_cannot_be_together_is_refused_with_the_way_out(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(tree)


def test_memory_counts_the_prompt_its_network_and_the_longer_rows() -> None:
    width, network = 4096, 3 * (4096 * 4096 + 4096)
    assert parts("prompt")["adapter"] == parts("prompt")["gradients"] == 4 * 20 * width
    assert parts("ptuning")["adapter"] == 4 * (20 * width + network)
    assert parts("ptuning")["optimizer"] == 8 * (20 * width + network)
    assert parts("ptuning", optimizer="adamw_8bit")["optimizer"] < 2.1 * (20 * width + network)
    more = parts("prompt", virtual_tokens=532)["activations"] / parts("prompt")["activations"]
    assert more == pytest.approx((512 + 532) / (512 + 20), rel=0.1)
    assert parts("prompt")["activations"] < parts("lora", path="general")["activations"]


def test_memory_counts_the_higher_rank_that_adalora_begins_with_and_its_averages() -> None:
    ada, same = parts("adalora"), parts("lora", rank=24, path="general")
    assert initial_rank(16) == 24 and initial_rank(1) == 2
    assert ada["adapter"] == same["adapter"] == 1.5 * parts("lora", path="general")["adapter"]
    averages = ada["optimizer"] - same["optimizer"]
    assert averages == pytest.approx(3 * ada["adapter"], rel=0.01)


def test_what_a_method_is_bad_at_is_said() -> None:
    assert [words for words in plan(method="prompt", epochs=1.0).warnings if "settles slowly" in words]
    assert not [words for words in plan(method="prompt", epochs=100.0).warnings if "settles slowly" in words]
    experts = replace(LLAMA_8B, architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe")
    mixture = make_plan(GPU, experts, CHAT, {"training.method": "adalora"})
    assert [words for words in mixture.warnings if "leaves the experts" in words]


def test_time_and_checkpoints_follow_the_method() -> None:
    work = {method: plan(method=method, epochs=1.0).work for method in ("lora", "adalora", "prompt")}
    assert work["prompt"].checkpoint_bytes < work["lora"].checkpoint_bytes < work["adalora"].checkpoint_bytes
    assert work["prompt"].export_bytes == 0 < work["adalora"].export_bytes
    longer = plan(method="prompt", epochs=1.0, virtual_tokens=1024)
    assert longer.work.seconds > 1.5 * work["prompt"].seconds
    assert Settings().training.virtual_tokens == 20


def test_adalora_leaves_experts_out_of_the_formula_and_of_the_simulation() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 64, "num_experts": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
    rest = {"num_experts_per_tok": 2, "vocab_size": 256, "model_type": "qwen3_moe", "pad_token_id": 0}
    config = {"architectures": ["Qwen3MoeForCausalLM"], **sizes, **heads, **rest}
    shape, settings = Shape.of_config(config), {"rank": 8, "sequence_length": 64}
    asked = {experts: MemoryRequest(**settings, experts=experts) for experts in (True, False)}
    parts = {experts: formula_of(shape, request).parts() for experts, request in asked.items()}
    attention = 2 * 8 * sum(inside + outside for inside, outside in shape.targets("all-linear").values())
    assert parts[False]["adapter"] == 4 * attention < parts[True]["adapter"] / 4
    training = TrainingSettings(method="adalora", device="cuda", path="general", rank=8)
    assert not as_request(training, Way("general", "", False), 64).experts
    with Simulator() as simulator:
        simulated = simulator.predict(config, asked[False]).allocated
    assert simulated["adapter"] == parts[False]["adapter"]
