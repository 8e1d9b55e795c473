"""The sizes of a model that decide its memory, from a `config.json` or from a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelSpec

_COMPARED = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
}
_QK_NORM = {"qwen3", "qwen3_moe", "gemma3_text", "olmo2", "hunyuan_v1_dense"}
_SANDWICH = {"gemma2", "gemma3_text"}
_FUSED = {"phi3"}
_EAGER = {"gemma2"}
_BIASED = {"qwen2"}
_SLIDING = {"mistral", "gemma2", "gemma3_text", "phi3"}
_SEPARATE = {"granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe"}
"""Families whose head is no copy of the embedding where a config does not say."""
_EXPERTS = {"mixtral": 8, "qwen3_moe": 128}
"""Experts of a layer where a config does not say."""
_FEED_FORWARD = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes by the field's usual letters: Q and K are all heads' width; `kinds` counts layers by mask.

    `windows` are the sliding windows of the layers in tokens (0: none), one entry a layer. With `experts` a
    layer, each `expert_width` wide, I is the width of those that a token goes through.
    """

    model_type: str
    H: int
    I: int  # noqa: E741
    Q: int
    K: int
    V: int
    L: int
    heads: int
    tied: bool
    parameters: int
    windows: tuple[int, ...] = ()
    attention_cap: bool = False
    logits_cap: bool = False
    logits_scale: bool = False
    experts: int = 0
    expert_width: int = 0

    @classmethod
    def of(cls, spec: ModelSpec) -> Shape:
        """From a model's description and its config.json; without the file as its family usually is."""
        return _shape_of(spec)

    @classmethod
    def _described(cls, spec: ModelSpec) -> Shape:
        return cls(
            model_type=spec.model_type,
            H=spec.hidden_size,
            I=spec.intermediate_size,
            Q=spec.heads * spec.head_dim,
            K=spec.key_value_heads * spec.head_dim,
            V=spec.vocabulary_size,
            L=spec.layers,
            heads=spec.heads,
            tied=spec.tied_embeddings,
            parameters=spec.parameters,
            attention_cap=spec.model_type == "gemma2",
            logits_cap=spec.model_type == "gemma2",
            logits_scale=spec.model_type == "granite",
        )

    def thawed_weights(self, frozen: int) -> int:
        """Weights that full fine-tuning trains: with frozen layers neither these nor the embedding."""
        ends = self.V * self.H * (1 if self.tied else 2)
        held = self.V * self.H + frozen * ((self.parameters - ends) // self.L) if frozen else 0
        return self.parameters - held

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Shape:
        """From a `config.json` alone, its parameters counted; `TuneError` where a size is missing."""
        heads, hidden = _number(config, "num_attention_heads"), _number(config, "hidden_size")
        width = config.get("head_dim") or hidden // heads
        groups = config.get("num_key_value_heads") or heads
        model_type = str(config.get("model_type", ""))
        tied = config.get("tie_word_embeddings")
        shape = cls(
            model_type=model_type,
            H=hidden,
            Q=heads * width,
            K=groups * width,
            V=_number(config, "vocab_size"),
            L=_number(config, "num_hidden_layers"),
            heads=heads,
            tied=model_type not in _SEPARATE if tied is None else bool(tied),
            parameters=0,
            windows=_windows(config),
            **_scores(config),
            **_expert_sizes(config),
        )
        return replace(shape, parameters=shape.counted())

    @property
    def known(self) -> bool:
        """Whether the closed formula was compared with the simulation for this family."""
        return self.model_type in _COMPARED

    @property
    def width(self) -> int:
        """Width of a head."""
        return self.Q // self.heads

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.model_type in _QK_NORM

    @property
    def norms(self) -> int:
        """Norms of the hidden states in a layer."""
        return 4 if self.model_type in _SANDWICH else 2

    @property
    def fused(self) -> bool:
        """Whether one linear module makes queries, keys and values, and one gate and up."""
        return self.model_type in _FUSED

    @property
    def eager_only(self) -> bool:
        """Whether transformers has no other attention than the one with all scores in memory."""
        return self.model_type in _EAGER

    def linear(self) -> dict[str, tuple[int, int]]:
        """Input and output width of a layer's linear modules by name, in the order of their use."""
        if self.fused:
            first = {"qkv_proj": (self.H, self.Q + 2 * self.K)}
            second = {"gate_up_proj": (self.H, 2 * self.I)}
        else:
            first = {"q_proj": (self.H, self.Q), "k_proj": (self.H, self.K), "v_proj": (self.H, self.K)}
            second = {"gate_proj": (self.H, self.I), "up_proj": (self.H, self.I)}
        return {**first, "o_proj": (self.Q, self.H), **second, "down_proj": (self.I, self.H)}

    def targets(self, names: str | list[str]) -> dict[str, tuple[int, int]]:
        """The modules that get an adapter; an unknown name counts as a square one. Experts are none."""
        known = self._quantized()
        if isinstance(names, str):
            return known
        short = [name.rsplit(".", 1)[-1] for name in names]
        return {name: known.get(name, (self.H, self.H)) for name in short}

    def _quantized(self) -> dict[str, tuple[int, int]]:
        """The linear modules; experts are weights of one module of their own kind."""
        known = self.linear()
        return {name: known[name] for name in known if not self.experts or name not in _FEED_FORWARD}

    def linear_parameters(self) -> int:
        """Weights of the layers' linear modules, which NF4 shrinks."""
        return self.L * sum(inside * outside for inside, outside in self._quantized().values())

    @property
    def expert_weights(self) -> int:
        """Weights of all experts of a layer."""
        return 3 * self.experts * self.H * self.expert_width

    def adapts_experts(self, targets: str | list[str], frozen: int) -> bool:
        """Whether the experts get an adapter: peft gives them none where it is told modules or layers."""
        return bool(self.experts) and isinstance(targets, str) and not frozen

    def adapter(self, rank: int, targets: str | list[str], *, dora: bool, experts: bool) -> int:
        """Weights of an adapter in one layer: rank x (inputs + outputs) of every target; with DoRA a
        magnitude besides for each output."""
        sizes = self.targets(targets).values()
        linear = sum(rank * (inside + outside) + dora * outside for inside, outside in sizes)
        return linear + (self._expert_adapter(rank) if experts else 0)

    def _expert_adapter(self, rank: int) -> int:
        """Weights of peft's adapter on the experts of a layer and on what chooses them; gate and up are one
        tensor, whose adapter has twice the rank."""
        return rank * (self.experts * (3 * self.H + 5 * self.expert_width) + self.H + self.experts)

    def counted(self) -> int:
        """All parameters: linear modules, their biases, norms, embedding, and a head of its own."""
        biases = self.Q + 2 * self.K if self.model_type in _BIASED else 0
        of_heads = self.Q + self.K if self.model_type == "olmo2" else 2 * self.width
        norms = self.norms * self.H + (of_heads if self.qk_norm else 0)
        experts = self.expert_weights + self.H * self.experts
        embeddings = self.V * self.H * (1 if self.tied else 2)
        return self.linear_parameters() + self.L * (biases + norms + experts) + self.H + embeddings


@lru_cache(64)
def _shape_of(spec: ModelSpec) -> Shape:
    shape, config = Shape._described(spec), model_config(spec)
    if config is None:
        return shape
    return replace(shape, windows=_windows(config), **_scores(config), **_expert_sizes(config))


def model_config(spec: ModelSpec) -> dict[str, Any] | None:
    """The tree of the part of a model's config.json that writes text; None where there is no file."""
    config = read_json(spec.folder / "config.json")
    text = config.get("text_config") if config else None
    return text if isinstance(text, dict) else config


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """A model's config.json; of a listed model that is not here the sizes that the list knows."""
    return model_config(spec) or {
        "architectures": [spec.architecture],
        "model_type": spec.model_type,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.key_value_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocabulary_size,
        "tie_word_embeddings": spec.tied_embeddings,
        "pad_token_id": 0,
    }


def _number(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise TuneError(f"The model's config.json gives no usable value for {name}.", "Choose another model.")
    return value


def _scores(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model does to its scores: caps in attention, caps and scales of the logits.

    Gemma 2 caps both where its config does not say otherwise; Granite and Cohere scale.
    """
    gemma2 = config.get("model_type") == "gemma2"
    scales = ("logit_scale", "logits_scaling", "lm_head_multiplier")
    return {
        "attention_cap": config.get("attn_logit_softcapping", 50.0 if gemma2 else None) is not None,
        "logits_cap": config.get("final_logit_softcapping", 30.0 if gemma2 else None) is not None,
        "logits_scale": any(config.get(name) not in (None, 1, 1.0) for name in scales),
    }


def _expert_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Width of the feed-forward part and, in a mixture of experts, their number and width."""
    usual = _EXPERTS.get(str(config.get("model_type")), 0)
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((config[name] for name in names if isinstance(config.get(name), int)), usual)
    if experts < 2:
        return {"I": _number(config, "intermediate_size")}
    width = _number(
        config, "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    )
    return {"I": width * (config.get("num_experts_per_tok") or 2), "experts": experts, "expert_width": width}


def _windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The sliding window of every layer, by its list of kinds, its pattern, or for all alike."""
    window, layers = config.get("sliding_window") or 0, int(config["num_hidden_layers"])
    if not config.get("use_sliding_window", config.get("model_type") in _SLIDING):
        window = 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if config.get("model_type") == "gemma2":
        return tuple(window if index % 2 == 0 else 0 for index in range(layers))
    if config.get("model_type") == "gemma3_text":
        period = config.get("sliding_window_pattern") or 6
        return tuple(window if (index + 1) % period else 0 for index in range(layers))
    return (window,) * layers
