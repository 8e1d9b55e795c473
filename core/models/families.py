"""The table of model families that can become GGUF: one row a Hugging Face class says what sets it apart.

Facts about transformers are its configuration classes' defaults, those about llama.cpp are what its model
code reads and computes; tests compare each row with both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
Allowed = dict[str, tuple[Any, ...]]
Check = Callable[[Mapping[str, Any]], str]
"""Looks at a configuration with all defaults filled in; returns what llama.cpp cannot compute, or nothing."""


@dataclass(frozen=True)
class Architecture:
    """A family: its GGUF name, what transformers and llama.cpp take for granted, what differs between them.

    `model_type` is transformers' name of the configuration, by which it chooses the class to load.
    `layer` lists the weights every layer must have, `experts` those of one expert (`{}` is its number).
    `defaults` are values of transformers' configuration class for keys that a config.json may leave out.
    `fixed` maps keys to the only values that llama.cpp computes, `checks` find what needs a closer look.
    `keys` maps further GGUF keys to a configuration key and the type of its value; None is left out.
    `ropes` maps the kinds of position encoding, as the family's config names them, to `rope.py`'s names.
    `permuted` lists the projections whose rows go from transformers' rotary order (first half, second
    half) to llama.cpp's (neighbouring pairs). `norm_shift` is added to the weights of norms. `own_head`
    tells whether llama.cpp can take an output layer of its own (None), must have one, or never does.
    `windowed` families have layers with an attention window that llama.cpp computes too.
    """

    name: str
    model_type: str
    layer: tuple[str, ...]
    experts: tuple[str, ...] = ()
    defaults: Values = field(default_factory=dict)
    fixed: Allowed = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    keys: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)
    ropes: Mapping[str, str] = field(default_factory=dict)
    partial_rope: bool = False
    window_rope: bool = False
    permuted: tuple[str, ...] = ()
    norm_shift: float = 0.0
    own_head: bool | None = None
    windowed: bool = False


def head_dim(data: Mapping[str, Any]) -> int:
    """Numbers a head, which most configs leave to be computed."""
    return int(data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"])


def _whole_heads(data: Mapping[str, Any]) -> str:
    """llama.cpp gives this family's heads no width of their own."""
    wide = head_dim(data) * data["num_attention_heads"] != data["hidden_size"]
    return f"head_dim={data['head_dim']}" if wide else ""


def _no_rope_every_fourth(data: Mapping[str, Any]) -> str:
    layers, step = range(1, data["num_hidden_layers"] + 1), data["no_rope_layer_interval"]
    stored = data["no_rope_layers"] or [int(i % step != 0) for i in layers]
    return "" if list(stored[: len(layers)]) == [int(i % 4 != 0) for i in layers] else "no_rope_layers"


def _window_except_every(period: int) -> Check:
    """llama.cpp's order of layers: a window in all but the last of every `period`."""

    def check(data: Mapping[str, Any]) -> str:
        if not data["layer_types"]:
            step = data.get("sliding_window_pattern", period)
            return "" if step == period else f"sliding_window_pattern={step}"
        layers = range(1, data["num_hidden_layers"] + 1)
        kinds = ["sliding_attention" if i % period else "full_attention" for i in layers]
        return "" if data["layer_types"] == kinds else "layer_types"

    return check


def _query_scale(largest: int) -> Check:
    """llama.cpp scales by the head's width; in the model of `largest` layers by hidden size / heads."""

    def check(data: Mapping[str, Any]) -> str:
        usual = data["num_hidden_layers"] != largest
        known = head_dim(data) if usual else data["hidden_size"] // data["num_attention_heads"]
        value = data["query_pre_attn_scalar"]
        return "" if value == known else f"query_pre_attn_scalar={value}"

    return check


def _given(*names: str) -> Check:
    """Zero or nothing would mean llama.cpp's own default to llama.cpp."""
    return lambda data: next((f"{name}={data[name]}" for name in names if not data[name]), "")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _length(value: Any) -> int:
    return int(value or 0)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
_FEED_FORWARD = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
_EXPERT = tuple(f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down"))
_NORMS = ("input_layernorm", "post_attention_layernorm")
_FEED_FORWARD_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_LAYER = _NORMS + _ATTENTION + _FEED_FORWARD
_PERMUTED = ("q_proj", "k_proj")
_ROPES = _same("default", "linear", "yarn")
_LLAMA_ROPES = _same("default", "linear", "yarn", "llama3")

_SILU: Allowed = {"hidden_act": ("silu",)}
_NO_BIAS: Allowed = {"attention_bias": (False,)}
_GEMMA_FIXED: Allowed = {
    "attention_bias": (False,),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (None, False),
}
_TANH: Allowed = {"hidden_activation": ("gelu_pytorch_tanh",)}

_COMMON: Values = {
    "attention_bias": False,
    "head_dim": None,
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_QWEN: Values = _COMMON | {
    "layer_types": None,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_GEMMA: Values = _COMMON | {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}
_GEMMA2: Values = _GEMMA | {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": None,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA3: Values = _GEMMA2 | {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 1e4,
    "rope_theta": 1e6,
    "use_bidirectional_attention": False,
}
_GRANITE_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        "llama",
        "llama",
        _LAYER,
        defaults=_COMMON,
        fixed=_SILU,
        ropes=_LLAMA_ROPES,
        permuted=_PERMUTED,
    ),
    "MistralForCausalLM": Architecture(
        "llama",
        "mistral",
        _LAYER,
        defaults=_COMMON | {"num_key_value_heads": 8, "sliding_window": 4096},
        fixed=_SILU,
        ropes=_LLAMA_ROPES,
        permuted=_PERMUTED,
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2",
        "qwen2",
        _LAYER,
        defaults=_QWEN,
        fixed=_SILU,
        checks=(_whole_heads,),
        ropes=_ROPES,
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        "qwen3",
        _LAYER + _HEAD_NORMS,
        defaults=_QWEN | {"head_dim": 128},
        fixed=_SILU | _NO_BIAS,
        ropes=_ROPES,
    ),
    "GemmaForCausalLM": Architecture(
        "gemma",
        "gemma",
        _LAYER,
        defaults=_GEMMA,
        # transformers reads `gelu` of the first Gemma configs as the tanh form, too.
        fixed=_GEMMA_FIXED | {"hidden_act": ("gelu_pytorch_tanh", "gelu")},
        ropes=_same("default"),
        norm_shift=1.0,
        own_head=False,
    ),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        "gemma2",
        _LAYER + _FEED_FORWARD_NORMS,
        defaults=_GEMMA2,
        fixed=_GEMMA_FIXED | _TANH,
        checks=(
            _window_except_every(2),
            _query_scale(46),
            _given("sliding_window", "final_logit_softcapping", "attn_logit_softcapping"),
        ),
        keys={
            "attention.sliding_window": ("sliding_window", int),
            "attn_logit_softcapping": ("attn_logit_softcapping", float),
            "final_logit_softcapping": ("final_logit_softcapping", float),
        },
        ropes=_same("default"),
        norm_shift=1.0,
        own_head=False,
        windowed=True,
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma3",
        "gemma3_text",
        _LAYER + _FEED_FORWARD_NORMS + _HEAD_NORMS,
        defaults=_GEMMA3,
        fixed=_GEMMA_FIXED | _TANH | {"attn_logit_softcapping": (None,)},
        checks=(_window_except_every(6), _query_scale(62), _given("sliding_window")),
        keys={
            "attention.sliding_window": ("sliding_window", int),
            "final_logit_softcapping": ("final_logit_softcapping", _number),
        },
        ropes=_same("default", "linear"),
        window_rope=True,
        norm_shift=1.0,
        windowed=True,
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3",
        "phi3",
        (*_NORMS, "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        defaults=_COMMON
        | {
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
        fixed=_SILU,
        checks=(_whole_heads,),
        keys={
            "attention.sliding_window": ("sliding_window", _length),
            "rope.scaling.original_context_length": ("original_max_position_embeddings", int),
        },
        # transformers takes `yarn` of the first Phi-3 configs for longrope, too.
        ropes=_same("default", "longrope") | {"yarn": "longrope"},
        partial_rope=True,
    ),
    "SmolLM3ForCausalLM": Architecture(
        "smollm3",
        "smollm3",
        _LAYER,
        defaults=_COMMON
        | {
            "layer_types": None,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": None,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        fixed=_SILU | _NO_BIAS | {"mlp_bias": (False,)},
        checks=(_no_rope_every_fourth,),
        ropes=_ROPES,
        permuted=_PERMUTED,
    ),
    "GraniteForCausalLM": Architecture(
        "granite",
        "granite",
        _LAYER,
        defaults=_COMMON | dict.fromkeys(_GRANITE_SCALES.values(), 1.0),
        fixed=_SILU,
        checks=(_given(*_GRANITE_SCALES.values()),),
        keys={key: (name, float) for key, name in _GRANITE_SCALES.items()},
        ropes=_LLAMA_ROPES,
        permuted=_PERMUTED,
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2",
        "olmo2",
        (*_LAYER[1:], *_HEAD_NORMS, "post_feedforward_layernorm"),
        defaults=_COMMON | {"rms_norm_eps": 1e-5},
        fixed=_SILU | _NO_BIAS,
        checks=(_whole_heads,),
        ropes=_ROPES,
        own_head=True,
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3moe",
        "qwen3_moe",
        (*_NORMS, *_ATTENTION, *_HEAD_NORMS, "mlp.gate"),
        experts=_EXPERT,
        defaults=_COMMON
        | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
            "num_local_experts": 128,
            "sliding_window": 4096,
            "use_sliding_window": False,
        },
        fixed=_SILU
        | _NO_BIAS
        | {"decoder_sparse_step": (1,), "mlp_only_layers": (None, []), "norm_topk_prob": (True,)},
        keys={
            "expert_count": ("num_local_experts", int),
            "expert_feed_forward_length": ("moe_intermediate_size", int),
            "expert_used_count": ("num_experts_per_tok", int),
        },
        ropes=_ROPES,
    ),
    "MixtralForCausalLM": Architecture(
        "llama",
        "mixtral",
        (*_NORMS, *_ATTENTION, "mlp.gate"),
        experts=_EXPERT,
        defaults=_COMMON
        | {
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": None,
        },
        fixed=_SILU,
        keys={
            "expert_count": ("num_local_experts", int),
            "expert_used_count": ("num_experts_per_tok", int),
        },
        ropes=_LLAMA_ROPES,
        permuted=_PERMUTED,
    ),
}
