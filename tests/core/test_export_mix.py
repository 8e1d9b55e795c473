"""The mix of formats. Every expectation here was read from files that llama-quantize (b11434) had written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest

from ollama_tune.core.export.mix import FILE_TYPES, choose_types, file_bytes, padded
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.models.architectures import Config, read_config
from ollama_tune.core.plan.settings import GgufType
from tests.core.export_parts import build_llama


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return read_config(build_llama(tmp_path_factory.mktemp("model")))


def plans(
    layers: int,
    columns: int = 256,
    feed_forward: int = 512,
    *,
    tied: bool = True,
    experts: int = 0,
    fused: bool = False,
) -> list[TensorPlan]:
    """The tensors of a decoder with only their names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (64, columns),
        "output_norm.weight": (columns,),
    }
    if not tied:
        shapes["output.weight"] = (64, columns)
    stack = (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    for layer in range(layers):
        parts = {"attn_norm": (columns,), "attn_output": (columns, columns)}
        if fused:
            parts |= {"attn_qkv": (2 * columns, columns), "ffn_up": (2 * feed_forward, columns)}
        else:
            parts |= {f"attn_{part}": (columns, columns) for part in "qkv"}
            parts |= {f"ffn_{part}{suffix}": (*stack, feed_forward, columns) for part in ("gate", "up")}
        parts[f"ffn_down{suffix}"] = (*stack, columns, feed_forward)
        if experts:
            parts["ffn_gate_inp"] = (experts, columns)
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
        shapes[f"blk.{layer}.attn_q.bias"] = (columns,)
    return [TensorPlan(name, (), (), shape) for name, shape in shapes.items()]


def layers_of(types: dict[str, str], part: str, kind: str) -> list[int]:
    return [int(name.split(".")[1]) for name, found in types.items() if f".{part}." in name and found == kind]


def chosen(
    made: list[TensorPlan], config: Config, file_type: str, layers: int, *, importance: bool = False
) -> dict[str, str]:
    # backwards, since the order of the base's files must not matter
    types = choose_types(made[::-1], replace(config, layers=layers), file_type, importance)
    return {plan.name: types[plan.name].name for plan in made}


def test_every_type_of_the_settings_is_there() -> None:
    assert set(FILE_TYPES) == set(get_args(GgufType))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_plain_types_make_every_matrix_alike(config: Config, name: str) -> None:
    found = chosen(plans(3, experts=8), config, name, 3)
    for tensor, kind in found.items():
        matrix = "_norm" not in tensor and "bias" not in tensor and "gate_inp" not in tensor
        assert kind == (name if matrix else "f32"), tensor


@pytest.mark.parametrize(("name", "base"), [("q4_k_m", "q4_k"), ("q5_k_m", "q5_k")])
def test_medium_types_enrich_values_and_down_projections_of_some_layers(
    config: Config, name: str, base: str
) -> None:
    found = chosen(plans(17), config, name, 17)
    rich = [0, 1, 4, 7, 10, 13, 14, 15, 16]
    for part in ("attn_v", "ffn_down"):
        assert layers_of(found, part, "q6_k") == rich
        assert layers_of(found, part, base) == [layer for layer in range(17) if layer not in rich]
    for part in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_gate"):
        assert layers_of(found, part, base) == list(range(17))


def test_the_small_type_enriches_the_first_layers(config: Config) -> None:
    found = chosen(plans(17), config, "q4_k_s", 17)
    assert layers_of(found, "attn_v", "q5_k") == [0, 1, 2, 3]
    assert layers_of(found, "ffn_down", "q5_k") == [0, 1]
    assert Counter(found.values()) == {"q4_k": 7 * 17 - 6, "q5_k": 6, "f32": 2 * 17 + 1, "q6_k": 1}


@pytest.mark.parametrize("name", ["q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0"])
def test_the_head_keeps_six_bits_and_a_tied_embedding_is_the_head(config: Config, name: str) -> None:
    assert chosen(plans(3), config, name, 3)["token_embd.weight"] == "q6_k"
    apart = chosen(plans(3, tied=False), config, name, 3)
    assert apart["output.weight"] == "q6_k"
    assert apart["token_embd.weight"] == FILE_TYPES[name].base


def test_fused_attention_counts_as_values(config: Config) -> None:
    found = chosen(plans(16, fused=True), config, "q4_k_m", 16)
    assert layers_of(found, "attn_qkv", "q6_k") == [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_of(found, "attn_qkv", "q4_k") == [2, 3, 5, 6, 8, 9, 11, 12]


@pytest.mark.parametrize(
    ("family", "shared", "poorest"),
    [("llama", True, "q5_k"), ("llama", False, "q4_k"), ("qwen2", False, "q5_k"), ("qwen3", True, "q4_k")],
)
def test_eighty_layers_have_better_values(config: Config, family: str, shared: bool, poorest: str) -> None:
    heads = 2 if shared else 4
    large = replace(
        config, architecture=replace(config.architecture, name=family), heads=4, key_value_heads=heads
    )
    for name in ("q4_k_m", "q4_k_s"):
        found = chosen(plans(80), large, name, 80)
        assert found["blk.11.attn_v.weight"] == poorest
        assert found["blk.11.ffn_down.weight"] == "q4_k"


@pytest.mark.parametrize(
    ("name", "output"), [("q4_k_m", "q5_k"), ("q4_k_s", "q5_k"), ("q5_k_m", "q5_k"), ("q4_0", "q4_0")]
)
def test_eight_experts_have_fine_attention(config: Config, name: str, output: str) -> None:
    found = chosen(plans(10, experts=8), config, name, 10)
    assert {found[f"blk.3.attn_{part}.weight"] for part in "kv"} == {"q8_0"}
    assert found["blk.3.attn_output.weight"] == output
    assert found["blk.3.attn_q.weight"] == FILE_TYPES[name].base
    assert found["blk.3.ffn_gate_inp.weight"] == "f32"


def test_other_numbers_of_experts_change_nothing_but_the_router(config: Config) -> None:
    found = chosen(plans(10, experts=16), config, "q4_k_m", 10)
    assert layers_of(found, "ffn_down_exps", "q6_k") == layers_of(found, "attn_v", "q6_k")
    assert layers_of(found, "attn_k", "q4_k") == list(range(10))
    assert layers_of(found, "ffn_gate_inp", "f32") == list(range(10))


@pytest.mark.parametrize(
    ("name", "fallback"),
    [("q6_k", "q8_0"), ("q5_k_m", "q5_1"), ("q4_k_m", "q5_0"), ("q4_k_s", "q5_0"), ("q4_0", "q4_0")],
)
def test_rows_that_fill_no_block_get_smaller_blocks(config: Config, name: str, fallback: str) -> None:
    found = chosen(plans(9, columns=96), config, name, 9)
    assert found["blk.2.attn_q.weight"] == fallback
    assert found["token_embd.weight"] == "q8_0"
    assert found["blk.2.ffn_down.weight"] == FILE_TYPES[name].base
    assert chosen(plans(9, columns=48), config, name, 9)["blk.2.attn_q.weight"] == "f16"


def test_an_importance_matrix_changes_the_first_down_projections_of_q4_0_alone(config: Config) -> None:
    made = plans(17)
    weighed = chosen(made, config, "q4_0", 17, importance=True)
    assert layers_of(weighed, "ffn_down", "q4_1") == [0, 1]
    assert "q4_1" not in chosen(made, config, "q4_0", 17).values()
    for name in FILE_TYPES.keys() - {"q4_0"}:
        assert chosen(made, config, name, 17, importance=True) == chosen(made, config, name, 17)


def test_the_size_is_that_of_all_tensors_with_their_padding(config: Config) -> None:
    made = [TensorPlan("token_embd.weight", (), (), (3, 256)), TensorPlan("output_norm.weight", (), (), (5,))]
    assert file_bytes(made, config, "q4_k_m") == padded(3 * 210) + padded(5 * 4) == 640 + 32


def test_a_model_of_a_billion_weights_has_the_size_that_llama_cpp_gives_it(config: Config) -> None:
    """The shape of Llama-3.2-1B; the bytes are of the file that llama-quantize wrote, without its header."""
    hidden, wide, rows = 2048, 8192, {"q": 2048, "k": 512, "v": 512, "output": 2048}
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (128256, hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(16):
        block = {f"attn_{part}": (count, hidden) for part, count in rows.items()}
        block |= {"ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"blk.{layer}.{name}_norm.weight": (hidden,) for name in ("attn", "ffn")}
    made = [TensorPlan(name, (), (), shape) for name, shape in shapes.items()]
    small = replace(config, layers=16, heads=32, key_value_heads=8)
    assert {name: file_bytes(made, small, name) for name in SIZES} == SIZES


SIZES = {
    "q8_0": 1_313_251_328,
    "q6_k": 1_013_968_896,
    "q5_k_m": 903_671_808,
    "q4_k_m": 799_862_784,
    "q4_k_s": 767_815_680,
    "q4_0": 763_097_088,
}
