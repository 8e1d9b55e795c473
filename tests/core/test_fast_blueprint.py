"""Reading a config.json for the fast path: families, differences, and refusals by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.blueprint import LayerKind, obstacle, read_blueprint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def _of(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    return LLAMA | {"architectures": [name], "model_type": kind} | changes


def test_sizes_groups_and_norms_of_llama() -> None:
    blueprint = read_blueprint(LLAMA | {"num_key_value_heads": 2, "attention_bias": True})
    assert (blueprint.query_width, blueprint.key_width) == (32, 16)
    assert [(part.name, part.rows, part.bias) for part in blueprint.groups["qkv"]] == [
        ("self_attn.q_proj", 32, True),
        ("self_attn.k_proj", 16, True),
        ("self_attn.v_proj", 16, True),
    ]
    assert blueprint.groups["down"][0].columns == 48
    assert len(blueprint.norms()) == 9 and blueprint.norms()["norm"] == 32
    assert set(blueprint.kinds) == {LayerKind(0, 0)}


def test_windows_and_encodings_by_layer() -> None:
    gemma = _of("Gemma3ForCausalLM", "gemma3_text", num_key_value_heads=2, num_hidden_layers=7)
    kinds = read_blueprint(gemma | {"head_dim": 8, "sliding_window": 16}).kinds
    assert [kind.window for kind in kinds] == [16] * 5 + [0, 16]
    assert [kind.rope for kind in kinds] == [1] * 5 + [0, 1]
    smol = read_blueprint(_of("SmolLM3ForCausalLM", "smollm3")).kinds
    assert [kind.rope for kind in smol] == [0, 0, 0, None]
    mistral = _of("MistralForCausalLM", "mistral", num_key_value_heads=4)
    assert {kind.window for kind in read_blueprint(mistral).kinds} == {4096}
    assert {kind.window for kind in read_blueprint(mistral | {"sliding_window": None}).kinds} == {0}
    qwen = _of("Qwen2ForCausalLM", "qwen2", num_key_value_heads=4)
    assert {kind.window for kind in read_blueprint(qwen).kinds} == {0}
    late = read_blueprint(qwen | {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 8})
    assert [kind.window for kind in late.kinds] == [0, 0, 0, 8]


def test_fused_projections_of_phi() -> None:
    groups = read_blueprint(_of("Phi3ForCausalLM", "phi3")).groups
    assert [(part.name, part.rows) for part in groups["qkv"]] == [("self_attn.qkv_proj", 96)]
    assert [(part.name, part.rows) for part in groups["gate_up"]] == [("mlp.gate_up_proj", 96)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "MixtralForCausalLM"),
        ({"architectures": ["Strange"]}, "Strange"),
        ({"architectures": None}, "unnamed"),
        ({"model_type": "qwen2"}, "LlamaForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act=relu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "position encoding"),
        ({"quantization_config": {"quant_method": "gptq"}}, "stored quantized"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"num_key_value_heads": 0}, "config.json"),
    ],
)
def test_what_is_not_computed_is_named(changes: dict[str, Any], named: str) -> None:
    assert named in obstacle(LLAMA | changes)
    with pytest.raises(TuneError):
        read_blueprint(LLAMA | changes)


def test_a_model_that_is_computed_has_no_obstacle() -> None:
    assert obstacle(LLAMA) == ""


def test_reading_a_blueprint_imports_no_torch() -> None:
    code = "import sys, ollama_tune.core.models.blueprint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
