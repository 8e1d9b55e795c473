from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.architectures import ARCHITECTURES, Config, read_config
from ollama_tune.core.models.obstacle import export_obstacle
from tests.tiny import build_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 1000,
}
# What a config.json on the hub says beside its sizes, as transformers 4 wrote it.
HUB: dict[str, dict[str, Any]] = {
    "Llama 2": {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "pretraining_tp": 1},
    "Llama 3.1": {
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "llama3",
        },
    },
    "Mistral Nemo": {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 80,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "Qwen2.5": {
        "architectures": ["Qwen2ForCausalLM"],
        "max_window_layers": 70,
        "num_key_value_heads": 2,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 2048, "type": "yarn"},
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "Qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 128,
        "max_window_layers": 28,
        "num_key_value_heads": 4,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "Gemma": {"architectures": ["GemmaForCausalLM"], "hidden_act": "gelu", "num_key_value_heads": 1},
    "Gemma 2": {
        "architectures": ["Gemma2ForCausalLM"],
        "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    "Gemma 3": {
        "architectures": ["Gemma3ForCausalLM"],
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
    },
    "Phi-3 128k": {
        "architectures": ["Phi3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"long_factor": [2.0] * 32, "short_factor": [1.1] * 32, "type": "longrope"},
        "sliding_window": 262144,
    },
    "Phi-4 mini": {
        "architectures": ["Phi3ForCausalLM"],
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": [2.0] * 24, "short_factor": [1.0] * 24, "type": "longrope"},
        "tie_word_embeddings": True,
    },
    "SmolLM3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0, 1, 1],
        "rope_theta": 5000000.0,
        "use_sliding_window": False,
    },
    "Granite 3.3": {
        "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8,
        "residual_multiplier": 0.22,
        "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
    },
    "OLMo 2": {"architectures": ["Olmo2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 500000},
    "Qwen3 MoE": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "Mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
}


def type_of(data: dict[str, Any]) -> str:
    return ARCHITECTURES[data["architectures"][0]].model_type


def read(folder: Path, data: dict[str, Any]) -> Config:
    stored = {"model_type": type_of(data), **SHAPE, **data}
    (folder / "config.json").write_text(json.dumps(stored))
    return read_config(folder)


def of_transformers(data: dict[str, Any]) -> Any:
    """The configuration as transformers fills it in."""
    from transformers import AutoConfig

    values = {key: value for key, value in data.items() if key not in ("auto_map", "architectures")}
    return AutoConfig.for_model(type_of(data), **{**SHAPE, **values})


def check_same(found: Config, expected: Any) -> None:
    """Every number that both have."""
    width = getattr(expected, "head_dim", None) or expected.hidden_size // expected.num_attention_heads
    assert (found.heads, found.key_value_heads) == (8, expected.num_key_value_heads)
    assert (found.head_dim, found.epsilon) == (width, expected.rms_norm_eps)
    assert found.tied == expected.tie_word_embeddings
    rope = expected.rope_parameters
    whole = rope.get("full_attention", rope)
    assert found.rope.theta == whole["rope_theta"]
    assert found.rope.kind == whole["rope_type"]
    assert found.rope.dimensions == int(width * whole.get("partial_rotary_factor", 1.0))
    assert found.rope.window_theta == (rope["sliding_attention"]["rope_theta"] if whole is not rope else None)
    for key, (name, _) in found.architecture.keys.items():
        assert found.extra.get(key, None) == (getattr(expected, name) or found.extra.get(key))


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    check_same(read(tmp_path, HUB[name]), of_transformers(HUB[name]))


@pytest.mark.parametrize("name", HUB)
def test_the_config_that_transformers_5_writes_of_it_says_the_same(tmp_path: Path, name: str) -> None:
    old = read(tmp_path, HUB[name])
    written = of_transformers(HUB[name])
    written.architectures = HUB[name]["architectures"]
    written.save_pretrained(tmp_path)
    assert read_config(tmp_path) == old


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(tmp_path: Path, name: str) -> None:
    data: dict[str, Any] = {"architectures": [name]}
    if name == "Qwen3MoeForCausalLM":
        data["norm_topk_prob"] = True
    if name == "GemmaForCausalLM":
        data["num_key_value_heads"] = 8
    check_same(read(tmp_path, data), of_transformers(data))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_default_of_a_row_is_that_of_transformers(name: str) -> None:
    import transformers

    row, model = ARCHITECTURES[name], getattr(transformers, name)
    settings = {"use_sliding_window": True} if "use_sliding_window" in row.defaults else {}
    config = model.config_class(**settings)
    assert config.model_type == row.model_type
    rope = config.rope_parameters
    theirs = {
        "rope_theta": rope.get("full_attention", rope)["rope_theta"],
        "rope_local_base_freq": rope.get("sliding_attention", {}).get("rope_theta"),
        "use_sliding_window": False,
    }
    computed = {"head_dim", "num_key_value_heads", "layer_types", "no_rope_layers", "mlp_only_layers"}
    for key, ours in row.defaults.items():
        value = theirs.get(key, getattr(config, key, None))
        if ours is None and key in computed:
            continue  # None lets it be computed; the tests above compare what comes out
        if not hasattr(config, key) and key not in theirs:
            assert key not in row.fixed, key
            continue
        assert value == ours, key


def test_a_null_lets_a_number_be_computed(tmp_path: Path) -> None:
    data = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": None, "head_dim": None}
    config = read(tmp_path, data)
    assert (config.key_value_heads, config.head_dim) == (8, 64)


def test_what_a_window_means_for_llama_cpp(tmp_path: Path) -> None:
    """It computes Gemma's windows and no others."""
    layers = {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 6}
    windows: list[tuple[str, dict[str, Any], int]] = [
        ("Mistral", {}, 4096),
        ("Mistral", {"sliding_window": None}, 0),
        ("Mistral", {"sliding_window": 8192}, 0),
        ("Phi3", {"sliding_window": 2047}, 2047),
        ("Qwen2", {"sliding_window": 1024}, 0),
        ("Qwen2", layers, 0),
        ("Qwen2", layers | {"max_window_layers": 5}, 1024),
        ("Qwen3", layers | {"layer_types": ["sliding_attention"] + ["full_attention"] * 5}, 1024),
        ("Qwen3", layers | {"layer_types": ["full_attention"] * 6}, 0),
        ("Llama", {"sliding_window": 100}, 0),
        ("Gemma2", {"sliding_window": 100}, 0),
        ("SmolLM3", layers, 1024),
    ]
    for family, data, window in windows:
        found = read(tmp_path, {"architectures": [f"{family}ForCausalLM"], **data}).window
        assert found == window, (family, data)


def test_short_texts_are_computed_alike_up_to_the_original_length_of_longrope(tmp_path: Path) -> None:
    assert read(tmp_path, HUB["Phi-3 128k"]).even_context == 4096
    assert read(tmp_path, HUB["Qwen2.5"]).even_context == 8192
    assert read(tmp_path, HUB["Phi-4 mini"] | {"max_position_embeddings": 2048}).even_context == 2048


def test_yarn_writes_only_what_llama_cpp_would_not_compute_itself(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    usual = 0.1 * math.log(4.0) + 1.0
    for changes, expected in (
        ({}, None),
        ({"attention_factor": usual}, None),
        ({"attention_factor": 1.0}, 1 / usual),
        ({"factor": None}, None),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / usual),
    ):
        data = {"architectures": ["LlamaForCausalLM"], "rope_parameters": {**rope, **changes}}
        fields = read(tmp_path, data).fields(10)
        assert fields.get("llama.rope.scaling.attn_factor") == pytest.approx(expected), changes
        assert fields["llama.rope.scaling.factor"] == 4.0


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Llama", {"architectures": ["BloomForCausalLM"]}, "BloomForCausalLM can be trained, not exported"),
    ("Llama", {"architectures": ["XLM"], "auto_map": {"AutoModelForCausalLM": "x.XLM"}}, "its own code"),
    ("Llama", {"model_type": "mistral"}, "contradicts itself: LlamaForCausalLM .* mistral"),
    ("Llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
    ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type dynamic"),
    ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("Llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast"),
    ("Llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
    ("Qwen2", {"rope_scaling": HUB["Llama 3.1"]["rope_scaling"]}, "rope type llama3"),
    ("Qwen2", {"head_dim": 128}, "head_dim=128"),
    ("Qwen3", {"attention_bias": True}, "attention_bias=True"),
    ("Gemma", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("Gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64"),
    ("Gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256"),
    ("Gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping=None"),
    ("Gemma2", {"layer_types": ["full_attention"] * 6}, "layer_types"),
    ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("Gemma3", {"sliding_window_pattern": 4}, "sliding_window_pattern=4"),
    ("Gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type yarn"),
    (
        "Gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope type linear",
    ),
    ("Phi3", {"head_dim": 128}, "head_dim=128"),
    ("Phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor holds 1 numbers"),
    ("SmolLM3", {"no_rope_layer_interval": 2}, "no_rope_layers"),
    ("SmolLM3", {"mlp_bias": True}, "mlp_bias=True"),
    ("Granite", {"logits_scaling": 0}, "logits_scaling=0"),
    ("Olmo2", {"attention_bias": True}, "attention_bias=True"),
    ("Qwen3Moe", {}, "norm_topk_prob=False"),
    ("Qwen3Moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
    ("Qwen3Moe", {"norm_topk_prob": True, "num_experts": 0}, "num_local_experts=0"),
    ("Mixtral", {"num_local_experts": "8"}, "num_local_experts=8"),
    ("Llama", {"num_attention_heads": 0}, "usable value"),
    ("Llama", {"num_hidden_layers": True}, "num_hidden_layers=True"),
    ("Gemma2", {"num_hidden_layers": 10**15}, "num_hidden_layers=10"),
    ("Mixtral", {"num_experts_per_tok": 2**40}, "expert_used_count="),
    ("Granite", {"logits_scaling": float("nan")}, "logit_scale=nan"),
    ("Phi3", {"sliding_window": -1}, "sliding_window=-1"),
    ("Llama", {"rope_scaling": ["linear"]}, "usable value"),
    ("Llama", {"rope_scaling": {"type": "linear"}}, "usable value .*factor"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "usable value .*factor=0"),
    ("Llama", {"rope_theta": -1}, "usable value .*rope_theta=-1"),
    (
        "Llama",
        {"rope_scaling": HUB["Llama 3.1"]["rope_scaling"] | {"high_freq_factor": 1.0}},
        "usable value .*division by zero",
    ),
    ("Llama", {"rms_norm_eps": "tiny"}, "usable value"),
    ("SmolLM3", {"no_rope_layers": 7}, "usable value"),
    ("Llama", {"architectures": ["evil\x1b[2J" * 40]}, "evil␛"),
]


@pytest.mark.parametrize(("family", "changes", "said"), REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], said: str
) -> None:
    name = f"{family}ForCausalLM"
    data = {"architectures": [name], "model_type": ARCHITECTURES[name].model_type, **SHAPE, **changes}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(TuneError, match=said) as caught:
        read_config(tmp_path)
    assert caught.value.fix.endswith(".")
    assert len(caught.value.what) < 320
    assert caught.value.what == export_obstacle(tmp_path)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """The small files of a model whose weights nobody has downloaded."""
    build_tokenizer(tmp_path)
    read(tmp_path, HUB["Llama 3.1"])
    return tmp_path


def test_the_tokenizer_counts_as_well_and_no_weights_are_needed(described: Path) -> None:
    assert export_obstacle(described) == ""
    (described / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    assert "Unigram" in export_obstacle(described)
    (described / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in export_obstacle(described)


def test_asking_needs_no_heavy_library(described: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ollama_tune.core.models.obstacle import export_obstacle\n"
        f"print(repr(export_obstacle(Path({str(described)!r}))))\n"
        "print({'gguf', 'numpy', 'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["''", "set()"]
