"""What a model of a family computes, as data: every number and every difference between the families.

Layers, attention and loss of the fast path read nothing else of a configuration. Facts are those of
transformers' model classes; the tests compare each family with them, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.families import ARCHITECTURES, Architecture, head_dim
from ollama_tune.core.models.rope import Rope, read_rope
from ollama_tune.core.text import one_line

Activation = Literal["silu", "gelu_tanh"]
HeadNorm = Literal["", "head", "whole"]


@dataclass(frozen=True)
class Linear:
    """A linear layer: its name within a layer (`self_attn.q_proj`), output rows, input columns."""

    name: str
    rows: int
    columns: int
    bias: bool = False


@dataclass(frozen=True)
class Norms:
    """The names of a layer's norms, empty where the family has none at that place.

    `attention` and `mlp` stand before these parts, `after_attention` and `after_mlp` behind them, before what
    they made is added to the residual stream.
    """

    attention: str = "input_layernorm"
    mlp: str = "post_attention_layernorm"
    after_attention: str = ""
    after_mlp: str = ""

    def names(self) -> tuple[str, ...]:
        """Those that the family has."""
        every = (self.attention, self.mlp, self.after_attention, self.after_mlp)
        return tuple(name for name in every if name)


@dataclass(frozen=True)
class LayerKind:
    """What differs from layer to layer: tokens an attention window sees (0: all) and which encoding turns it.

    `rope` is an index into `Blueprint.ropes`, or None for a layer that knows no positions.
    """

    window: int
    rope: int | None


@dataclass(frozen=True)
class Blueprint:
    """A dense model. Sizes count numbers; scales and caps of 0 or 1 change nothing where that is said.

    `norm_shift` is added to the weights of norms. `head_norm` tells whether queries and keys are normed head
    by head or as a whole before they are turned. `attention_cap` and `logit_cap` (0: none) bend values x to
    cap tanh(x / cap). `attention_scale` multiplies products of queries and keys, `embedding_scale` the
    embeddings, `residual_scale` what a part adds to the residual stream, `logit_scale` the logits.
    `groups` are the linear layers by the product that computes them together.
    """

    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    epsilon: float
    activation: Activation
    tied: bool
    groups: Mapping[str, tuple[Linear, ...]]
    norm_names: Norms
    kinds: tuple[LayerKind, ...]
    ropes: tuple[Rope, ...]
    head_norm: HeadNorm = ""
    norm_shift: float = 0.0
    attention_scale: float = 1.0
    attention_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    @property
    def query_width(self) -> int:
        """Numbers of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers of all key heads of a token; the values have as many."""
        return self.key_value_heads * self.head_dim

    def norms(self) -> dict[str, int]:
        """Every norm's name (`layers.0.input_layernorm`, `norm`) and width."""
        widths = dict.fromkeys(self.norm_names.names(), self.hidden)
        if self.head_norm:
            whole = self.head_norm == "whole"
            widths["self_attn.q_norm"] = self.query_width if whole else self.head_dim
            widths["self_attn.k_norm"] = self.key_width if whole else self.head_dim
        every = {f"layers.{n}.{name}": width for n in range(self.layers) for name, width in widths.items()}
        return every | {"norm": self.hidden}


Config = Mapping[str, Any]


@dataclass(frozen=True)
class _Family:
    """What sets a family apart from Llama; `windowed` tells which layers have an attention window."""

    norms: Norms = Norms()
    head_norm: HeadNorm = ""
    activation: str = "hidden_act"
    bias: Callable[[Config], tuple[bool, bool]] = lambda c: (c["attention_bias"], c["attention_bias"])
    fused: bool = False
    windowed: Callable[[Config, int], bool] = lambda config, layer: False
    roped: Callable[[Config, int], bool] = lambda config, layer: True
    scales: Callable[[Config], dict[str, float]] = lambda config: {}


def _scaled_embedding(config: Config) -> dict[str, float]:
    return {"embedding_scale": math.sqrt(config["hidden_size"])}


def _gemma_scales(config: Config) -> dict[str, float]:
    return _scaled_embedding(config) | {
        "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
        "attention_cap": config["attn_logit_softcapping"] or 0.0,
        "logit_cap": config["final_logit_softcapping"] or 0.0,
    }


def _granite_scales(config: Config) -> dict[str, float]:
    return {
        "attention_scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": 1.0 / config["logits_scaling"],
    }


def _not_every(period: int) -> Callable[[Config, int], bool]:
    """A window in all but the last of every so many layers."""
    return lambda config, layer: (layer + 1) % config.get("sliding_window_pattern", period) != 0


def _has_positions(config: Config, layer: int) -> bool:
    chosen = config["no_rope_layers"]
    return bool(chosen[layer] if chosen else (layer + 1) % config["no_rope_layer_interval"])


_SANDWICH = Norms(
    mlp="pre_feedforward_layernorm",
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_BEHIND = Norms("", "", "post_attention_layernorm", "post_feedforward_layernorm")


def _late(config: Config, layer: int) -> bool:
    return bool(layer >= config["max_window_layers"])


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(bias=lambda c: (False, False), windowed=lambda config, layer: True),
    "Qwen2ForCausalLM": _Family(bias=lambda c: (True, False), windowed=_late),
    "Qwen3ForCausalLM": _Family(head_norm="head", windowed=_late),
    "GemmaForCausalLM": _Family(scales=_scaled_embedding),
    "Gemma2ForCausalLM": _Family(
        _SANDWICH, activation="hidden_activation", windowed=_not_every(2), scales=_gemma_scales
    ),
    "Gemma3ForCausalLM": _Family(
        _SANDWICH, "head", activation="hidden_activation", windowed=_not_every(6), scales=_gemma_scales
    ),
    "Phi3ForCausalLM": _Family(
        bias=lambda c: (False, False), fused=True, windowed=lambda config, layer: True
    ),
    "SmolLM3ForCausalLM": _Family(
        windowed=lambda config, layer: not _has_positions(config, layer), roped=_has_positions
    ),
    "GraniteForCausalLM": _Family(scales=_granite_scales),
    "Olmo2ForCausalLM": _Family(_BEHIND, "whole"),
}
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_tanh",
}


def obstacle(config: Config) -> str:
    """Empty when the fast path computes a model of this config.json, else one sentence why not."""
    try:
        read_blueprint(config)
    except TuneError as error:
        return error.what
    return ""


def read_blueprint(config: Config) -> Blueprint:
    """The blueprint of a `config.json`; `TuneError` names what the fast path does not compute.

    Dropout inside the base model (`attention_dropout`) is left out: the adapter's own is what is set.
    """
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list | tuple) and names else "an unnamed architecture"
    family, architecture = _FAMILIES.get(name), ARCHITECTURES.get(name)
    if family is None or architecture is None or config.get("model_type") != architecture.model_type:
        raise _uncomputed(one_line(name, 60))
    data = {**architecture.defaults, **config}
    different = [f"{key}={data[key]}" for key, same in architecture.fixed.items() if data[key] not in same]
    if different or data.get("quantization_config"):
        raise _uncomputed(one_line(", ".join(different) or "weights that are stored quantized", 80))
    try:
        return _blueprint(name, family, architecture, data)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        raise _uncomputed(f"a config.json without a usable {one_line(str(error), 60)}") from error


def _uncomputed(what: str) -> TuneError:
    return TuneError(
        f"The fast path does not compute {what}.",
        "Set training.path to auto or general, or choose another base model.",
    )


def _blueprint(name: str, family: _Family, architecture: Architecture, data: Config) -> Blueprint:
    ropes = _ropes(architecture, data)
    scales = {"attention_scale": head_dim(data) ** -0.5} | family.scales(data)
    return Blueprint(
        architecture=name,
        layers=int(data["num_hidden_layers"]),
        hidden=int(data["hidden_size"]),
        feed_forward=int(data["intermediate_size"]),
        heads=int(data["num_attention_heads"]),
        key_value_heads=_key_value_heads(data),
        head_dim=head_dim(data),
        vocabulary=int(data["vocab_size"]),
        epsilon=float(data["rms_norm_eps"]),
        activation=_ACTIVATIONS[data[family.activation]],
        tied=bool(data["tie_word_embeddings"]),
        groups=_groups(family, data),
        norm_names=family.norms,
        kinds=tuple(_kind(family, data, n, ropes) for n in range(data["num_hidden_layers"])),
        ropes=ropes,
        head_norm=family.head_norm,
        norm_shift=architecture.norm_shift,
        **scales,
    )


def _key_value_heads(data: Config) -> int:
    known = data["num_key_value_heads"]
    count = int(data["num_attention_heads"] if known is None else known)
    if data["num_attention_heads"] % count:
        raise ValueError(f"num_key_value_heads={count}")
    return count


def _groups(family: _Family, data: Config) -> dict[str, tuple[Linear, ...]]:
    hidden, wide = int(data["hidden_size"]), int(data["intermediate_size"])
    queries = data["num_attention_heads"] * head_dim(data)
    keys = _key_value_heads(data) * head_dim(data)
    bias, bias_out = map(bool, family.bias(data))
    bias_mlp = bool(data.get("mlp_bias", False))
    heights = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    qkv = tuple(Linear(f"self_attn.{name}", rows, hidden, bias) for name, rows in heights.items())
    gate_up = tuple(Linear(f"mlp.{name}_proj", wide, hidden, bias_mlp) for name in ("gate", "up"))
    if family.fused:
        qkv = (Linear("self_attn.qkv_proj", queries + 2 * keys, hidden),)
        gate_up = (Linear("mlp.gate_up_proj", 2 * wide, hidden),)
    return {
        "qkv": qkv,
        "o": (Linear("self_attn.o_proj", hidden, queries, bias_out),),
        "gate_up": gate_up,
        "down": (Linear("mlp.down_proj", hidden, wide, bias_mlp),),
    }


def _ropes(architecture: Architecture, data: Config) -> tuple[Rope, ...]:
    """The encoding of the layers that see everything, and that of layers with a window where it differs."""
    try:
        rope = read_rope(
            data,
            head_dim(data),
            architecture.ropes,
            partial=architecture.partial_rope,
            windowed=architecture.window_rope,
        )
    except TuneError as error:
        raise _uncomputed("the position encoding of the base model") from error
    if rope.window_theta is None:
        return (rope,)
    return rope, Rope("default", rope.window_theta, rope.dimensions)


def _kind(family: _Family, data: Config, layer: int, ropes: tuple[Rope, ...]) -> LayerKind:
    kinds = data.get("layer_types")
    chosen = kinds[layer] == "sliding_attention" if kinds else family.windowed(data, layer)
    used = data.get("sliding_window") and data.get("use_sliding_window", True)
    window = int(data["sliding_window"]) if chosen and used else 0
    rope = (len(ropes) - 1 if chosen else 0) if family.roped(data, layer) else None
    return LayerKind(window, rope)
