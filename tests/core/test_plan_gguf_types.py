"""What an exported file costs by type, and which type is recommended on which box."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from ollama_tune.core.export.mix import file_bytes
from ollama_tune.core.export.tensors import plan_tensors
from ollama_tune.core.machine.values import Machine, OllamaModel, OllamaStatus
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import gguf_types, rules
from ollama_tune.core.plan.gguf_types import (
    K_TYPES,
    TYPES,
    cache_bytes,
    export_bytes,
    ollama_room,
    serving_context,
    type_offers,
)
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import GgufType, Settings
from ollama_tune.core.plan.values import Choice
from tests.cases import CHAT, GIB, LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, TINY, machine, spec

QWEN25_HALF_B = spec(896, 4864, 24, 14, 2, 64, 151_936, True, model_type="qwen2")
REMOTE = OllamaStatus("http://10.0.0.5:11434", "0.34.4", "", local=False)


def recommended(box: Machine, model: ModelSpec, context: int = 4096) -> Choice:
    return rules.export_type(model, box, context)


def test_every_type_of_the_schema_has_its_costs() -> None:
    assert set(TYPES) == set(get_args(GgufType))
    losses = [mix.loss for mix in TYPES.values()]
    assert losses == sorted(losses)


@pytest.mark.parametrize(
    ("model", "name", "gigabytes"),
    [
        (LLAMA_8B, "f32", 32.13),
        (LLAMA_8B, "f16", 16.07),
        (LLAMA_8B, "q8_0", 8.54),
        (LLAMA_8B, "q6_k", 6.60),
        (LLAMA_8B, "q5_k_m", 5.73),
        (LLAMA_8B, "q4_k_m", 4.92),
        (LLAMA_8B, "q4_k_s", 4.69),
        (LLAMA_8B, "q4_0", 4.66),
        (LLAMA_1B, "f16", 2.48),
        (LLAMA_1B, "q8_0", 1.32),
        (LLAMA_1B, "q4_k_m", 0.81),
        (QWEN3_4B, "q4_k_m", 2.50),
        (QWEN3_4B, "q8_0", 4.28),
        (LLAMA_70B, "q4_k_m", 42.5),
        (QWEN25_HALF_B, "q4_k_m", 0.398),
        (QWEN25_HALF_B, "q8_0", 0.531),
    ],
)
def test_sizes_are_those_of_published_files(model: ModelSpec, name: GgufType, gigabytes: float) -> None:
    """Sizes of the GGUF files that people share of these models, made by llama.cpp."""
    assert export_bytes(model, name) / 1e9 == pytest.approx(gigabytes, rel=0.015)


def test_experts_count_with_all_their_weights() -> None:
    """A Mixtral: 46.7 B parameters, of which a dense model of that shape has a seventh."""
    mixtral = replace(spec(4096, 14336, 32, 32, 8, 128, 32_000, False), parameters=46_702_792_704)
    assert 4.6 < 8 * export_bytes(mixtral, "q4_k_m") / mixtral.parameters < 5.0


@pytest.mark.parametrize(
    ("family", "shape", "tolerance"),
    [
        ("Llama", {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 32_000}, 0.002),
        ("Qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}, 0.002),
        ("Phi3", {"hidden_size": 3072, "intermediate_size": 8192}, 0.04),
    ],
)
def test_sizes_are_those_that_the_export_writes(
    family: str, shape: dict[str, int], tolerance: float, tmp_path: Path
) -> None:
    """The estimate from a model's figures against the sum over its very tensors; no weight is made."""
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**shape, num_hidden_layers=20, num_key_value_heads=2)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(tmp_path)
    read, shapes = read_config(tmp_path), {k: tuple(v.shape) for k, v in model.state_dict().items()}
    plans = plan_tensors(read, shapes, ())
    heads = config.num_attention_heads
    figures = spec(
        config.hidden_size, config.intermediate_size, 20, heads, 2, config.hidden_size // heads,
        config.vocab_size, read.tied,
    )  # fmt: skip
    figures = replace(figures, parameters=sum(math.prod(shape) for shape in shapes.values()))
    for name in TYPES:
        tokenizer = gguf_types.VOCABULARY_BYTES * config.vocab_size
        expected = file_bytes(plans, read, name) + tokenizer
        assert export_bytes(figures, name) == pytest.approx(expected, rel=tolerance), name


def test_the_cache_of_an_8b_takes_half_a_gibibyte_at_4096_tokens() -> None:
    assert cache_bytes(LLAMA_8B, 4096) == GIB // 2


def test_the_context_is_the_trained_length_within_the_models_own() -> None:
    settings = Settings().with_value("training.sequence_length", 8192)
    assert serving_context(settings, LLAMA_8B) == 8192
    assert serving_context(Settings(), LLAMA_8B) == 4096
    assert serving_context(settings, replace(LLAMA_8B, context_length=2048)) == 2048


CPU, GPU8, GPU24, GPU80 = machine(), machine(gpu=8), machine(gpu=24), machine(gpu=80)


@pytest.mark.parametrize(
    ("box", "model", "expected", "words"),
    [
        (CPU, TINY, "f16", "tiny"),
        (GPU80, TINY, "f16", "tiny"),
        (CPU, LLAMA_1B, "q8_0", "of 23.0 GiB RAM; f16 is 88 % slower; q6_k saves 285 MiB, loses 4x as much"),
        (GPU8, LLAMA_1B, "q8_0", "of 7.5 GiB GPU"),
        (machine(ram=2.6), LLAMA_1B, "q5_k_m", "q6_k is 12 % slower"),
        (CPU, QWEN3_4B, "q4_k_m", "q5_k_m is 16 % slower; q4_k_s saves 109 MiB"),
        (GPU8, QWEN3_4B, "q4_k_m", "3.6 of 7.5 GiB GPU"),
        (GPU24, QWEN3_4B, "q8_0", "loses 4x"),
        (CPU, LLAMA_8B, "q4_k_m", "5.3 of 23.0 GiB RAM"),
        (machine(gpu=16), LLAMA_8B, "q6_k", "q8_0 is 29 % slower"),
        (GPU24, LLAMA_8B, "q8_0", "9.1 of 23.5 GiB GPU"),
        (GPU8, LLAMA_70B, "q4_k_m", "needs 41.4 GiB, the GPU has 7.5 GiB: part on the CPU"),
        (CPU, LLAMA_70B, "q4_k_m", "needs 41.1 GiB, the RAM has 23.0 GiB"),
        (machine(ram=41), LLAMA_70B, "q4_k_s", "q4_k_m needs 41.1 GiB"),
        (machine(ram=39.9), LLAMA_70B, "q4_0", "no smaller type"),
        (GPU80, LLAMA_70B, "q4_k_m", "q5_k_m is 18 % slower"),
    ],
)
def test_the_recommended_type_fits_the_box_and_says_why_not_its_neighbours(
    box: Machine, model: ModelSpec, expected: str, words: str
) -> None:
    choice = recommended(box, model)
    assert (choice.value, words in choice.reason) == (expected, True), choice
    assert len(choice.reason) <= 80


def test_a_longer_context_leaves_less_room_for_the_weights() -> None:
    box = machine(gpu=16)
    assert recommended(box, LLAMA_8B, 4096).value == "q6_k"
    assert recommended(box, LLAMA_8B, 32_768).value == "q4_k_m"


def test_the_memory_of_another_host_is_not_judged() -> None:
    box = replace(GPU8, ollama=REMOTE)
    choice = recommended(box, LLAMA_70B)
    assert (choice.value, "another host" in choice.reason) == ("q4_k_m", True)
    assert {offer.fits for offer in type_offers(LLAMA_70B, box, 4096).values()} == {None}
    assert not any("memory for the exported model" in w for w in make_plan(box, LLAMA_70B, CHAT, {}).warnings)


def test_what_ollama_holds_now_counts_as_free() -> None:
    loaded = (OllamaModel("qwen3:8b", 6 * GIB, 5 * GIB),)
    server = OllamaStatus("http://127.0.0.1:11434", "0.34.4", "", local=True, loaded=loaded)
    gpu, cpu = replace(GPU8, ollama=server), replace(CPU, ollama=server)
    assert ollama_room(gpu).free == ollama_room(GPU8).free + 5 * GIB  # type: ignore[operator]
    assert ollama_room(cpu).free == ollama_room(CPU).free + GIB  # type: ignore[operator]


@pytest.mark.parametrize("box", [CPU, GPU24, machine(ram=6), replace(CPU, ollama=REMOTE)])
def test_without_a_quantizer_no_k_type_is_recommended(box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_types.importlib.util, "find_spec", lambda name: None)
    for model in (TINY, LLAMA_1B, LLAMA_8B, LLAMA_70B):
        choice = recommended(box, model)
        assert choice.value not in K_TYPES
        assert len(choice.reason) <= 80
    offers = type_offers(LLAMA_8B, box, 4096)
    assert {name for name, offer in offers.items() if not offer.available} == K_TYPES
    if ollama_room(box).free is not None:
        assert "xllamacpp" in recommended(box, LLAMA_8B).reason


def test_a_type_that_cannot_be_written_here_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_types.importlib.util, "find_spec", lambda name: None)
    for name, warned in (("q4_k_m", True), ("q8_0", False)):
        warnings = make_plan(CPU, LLAMA_1B, SHORT, {"export.type": name}).warnings
        assert any("needs llama.cpp's quantizer" in warning for warning in warnings) == warned


def test_the_quantizer_is_looked_for_without_an_import() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from ollama_tune.core.plan.gguf_types import k_types_available; "
        "assert k_types_available(); print('xllamacpp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "words"), [("q4_k_m", "your own rows"), ("q8_0", "no effect on q8_0")])
def test_importance_is_on_and_says_where_it_helps(name: GgufType, words: str) -> None:
    choice = rules.importance(name)
    assert choice.value is True
    assert words in choice.reason


def test_a_model_that_no_memory_holds_is_a_warning() -> None:
    (warning,) = [w for w in make_plan(GPU8, LLAMA_70B, SHORT, {}).warnings if "exported model" in w]
    assert "41.4 GiB" in warning
    assert not any("exported model" in w for w in make_plan(GPU80, LLAMA_70B, SHORT, {}).warnings)


def test_a_disk_that_holds_the_run_but_not_ollamas_copies_is_a_warning() -> None:
    server = OllamaStatus("http://127.0.0.1:11434", "0.34.0", "", local=True)
    box = replace(machine(gpu=24, disk=36), ollama=server)
    assert any("Ollama needs 15.9 GiB" in w for w in make_plan(box, LLAMA_8B, SHORT, {}).warnings)
    newer = replace(box, ollama=replace(server, version="0.34.4"))
    assert not any("Ollama needs" in w for w in make_plan(newer, LLAMA_8B, SHORT, {}).warnings)
