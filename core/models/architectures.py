"""Which model families can become GGUF, and what sets them apart: one table row a Hugging Face class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.text import one_line

OTHER_MODEL = "Choose another base model, or a newer ollama-tune that knows this one."
BROKEN = "Download the base model again or choose another."


@dataclass(frozen=True)
class Architecture:
    """A family: its GGUF name, what llama.cpp takes for granted, and what differs between families.

    `permuted` lists the projections whose rows go from transformers' rotary order (first half, second
    half) to llama.cpp's (neighbouring pairs). `layer` lists the weights every layer must have.
    """

    name: str
    permuted: tuple[str, ...]
    activation: str
    layer: tuple[str, ...]


_LLAMA_LAYER = (
    *("input_layernorm", "post_attention_layernorm"),
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", ("q_proj", "k_proj"), "silu", _LLAMA_LAYER),
}


@dataclass(frozen=True)
class Config:
    """The numbers of a `config.json` that a GGUF needs; `rope` unites the formats of transformers 4 and 5."""

    architecture: Architecture
    layers: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_dim: int
    epsilon: float
    rope: Mapping[str, Any]
    tied: bool

    def fields(self, vocabulary: int) -> dict[str, Any]:
        """Key-value pairs of the family; whole numbers are u32, the others f32."""
        values = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.epsilon,
            "rope.dimension_count": self.head_dim,
            "rope.freq_base": float(self.rope["rope_theta"]),
            "vocab_size": vocabulary,
        } | self._rope_scaling()
        return {f"{self.architecture.name}.{name}": value for name, value in values.items()}

    def _rope_scaling(self) -> dict[str, Any]:
        kind = self.rope["rope_type"]
        if kind not in ("linear", "yarn"):
            return {}
        values = {"rope.scaling.type": kind, "rope.scaling.factor": float(self.rope["factor"])}
        if kind == "yarn":
            values["rope.scaling.original_context_length"] = int(self.rope[_ORIGINAL])
        return values

    def rope_factors(self) -> list[float] | None:
        """Values of `rope_freqs.weight` (head_dim / 2) for Llama 3 rope, else None.

        The formula is transformers' `llama3` rope: long waves are divided by `factor`, short ones kept,
        those between blended.
        """
        if self.rope["rope_type"] != "llama3":
            return None
        factor, low, high, original = (float(self.rope[name]) for name in _ROPE_NEEDS["llama3"])
        factors = []
        for i in range(0, self.head_dim, 2):
            turns = original / (2 * math.pi * float(self.rope["rope_theta"]) ** (i / self.head_dim))
            share = min(max((turns - low) / (high - low), 0.0), 1.0)
            factors.append(1.0 / ((1.0 - share) / factor + share))
        return factors


_ORIGINAL = "original_max_position_embeddings"
_ROPE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
}
# Fine tuning of a rope that a GGUF cannot say or that nobody checked: allowed only where it changes nothing.
_ROPE_FIXED: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (None, 1.0),
    "attention_factor": (None,),
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "beta_fast": (None, 32),
    "beta_slow": (None, 1),
    "truncate": (None, True),
}


def read_config(folder: Path) -> Config:
    """Read `config.json` of a base model; what cannot be exported raises `TuneError` by its name."""
    data = require_json(folder / "config.json")
    architecture = find_architecture(data)
    try:
        return _config(architecture, data)
    except (KeyError, TypeError, ValueError) as error:
        raise TuneError(
            f"The base model's config.json lacks a usable value for the export ({error}).", BROKEN
        ) from error


def find_architecture(data: Mapping[str, Any]) -> Architecture:
    """The table row of a configuration, or a `TuneError` that names the class nobody wrote a row for."""
    names = data.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "an unnamed architecture"
    if data.get("auto_map"):
        raise TuneError(
            f"The base model brings its own code ({one_line(name, 60)}), which is never run.", OTHER_MODEL
        )
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise TuneError(
            f"The architecture {one_line(name, 60)} cannot be exported to GGUF; supported: {known}.",
            OTHER_MODEL,
        )
    return ARCHITECTURES[name]


def _config(architecture: Architecture, data: Mapping[str, Any]) -> Config:
    heads, hidden = int(data["num_attention_heads"]), int(data["hidden_size"])
    activation = data.get("hidden_act", architecture.activation)
    if activation != architecture.activation:
        raise TuneError(
            f"llama.cpp computes this architecture with {architecture.activation} only, "
            f"and the base model uses {one_line(str(activation), 40)}.",
            OTHER_MODEL,
        )
    return Config(
        architecture=architecture,
        layers=int(data["num_hidden_layers"]),
        context=int(data["max_position_embeddings"]),
        hidden=hidden,
        feed_forward=int(data["intermediate_size"]),
        heads=heads,
        key_value_heads=int(data.get("num_key_value_heads") or heads),
        head_dim=int(data.get("head_dim") or hidden // heads),
        epsilon=float(data.get("rms_norm_eps", 1e-6)),
        rope=_rope(data),
        tied=bool(data.get("tie_word_embeddings", False)),
    )


def _rope(data: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary with `rope_type`, `rope_theta` and the numbers of that type."""
    rope = {"rope_theta": data.get("rope_theta", 10000.0)}
    rope |= (data.get("rope_scaling") or {}) | (data.get("rope_parameters") or {})
    kind = rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    changed = [name for name, same in _ROPE_FIXED.items() if rope.get(name) not in same]
    if kind not in _ROPE_NEEDS or changed:
        what = ", ".join([f"rope type {one_line(str(kind), 40)}", *changed])
        raise TuneError(
            f"The position encoding of the base model ({what}) cannot be exported; "
            f"supported: {', '.join(_ROPE_NEEDS)} without changes to their details.",
            OTHER_MODEL,
        )
    for name in ("rope_theta", *_ROPE_NEEDS[kind]):
        float(rope[name])
    return rope


def require_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that must be there; anything else is a `TuneError`."""
    data = read_json(path)
    if data is None:
        raise TuneError(f"{path} is missing.", BROKEN)
    return data
