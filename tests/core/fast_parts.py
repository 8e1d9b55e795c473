"""Tiny random models of every family, in transformers with PEFT and in the fast path, of equal weights."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ollama_tune.core.data.values import Example
from ollama_tune.core.models.blueprint import Blueprint, read_blueprint
from ollama_tune.core.train.fast.adapter import Adapter, Group, Layout, Pair
from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.weights import BaseWeights

VOCABULARY = 160
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 6.0],
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "partial_rotary_factor": 0.75,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
WINDOWS = ["sliding_attention", "full_attention"]
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {"head_dim": 16, "sliding_window": 20}),
    "qwen2": ("Qwen2ForCausalLM", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3ForCausalLM",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 20, "layer_types": WINDOWS},
    ),
    "gemma": ("GemmaForCausalLM", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": WINDOWS,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            },
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}),
    "granite": (
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 3.0,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {}),
}


def rows(*lengths: int, shared: int = 0, seed: int = 0) -> list[Example]:
    """Rows of random tokens, the later half of each supervised, all opening with the same `shared` tokens."""
    chance = random.Random(seed)
    opening = tuple(chance.randrange(1, VOCABULARY) for _ in range(shared))
    made = []
    for length in lengths:
        own = tuple(chance.randrange(1, VOCABULARY) for _ in range(length))
        trained = [False] * (shared + length // 2) + [True] * (length - length // 2)
        made.append(Example("", opening + own, tuple(trained), ((0, 0),) * (shared + length)))
    return made


ROWS = rows(41, 9, 30)


@dataclass
class Twins:
    """The same model twice: with PEFT, whose LoRA weights go by the fast path's names, and fast."""

    causal: Any
    theirs: dict[str, torch.nn.Parameter]
    fast: FastModel

    @property
    def ours(self) -> dict[str, torch.nn.Parameter]:
        assert self.fast.adapter is not None
        return self.fast.adapter.named()

    def reference(self, examples: Sequence[Example]) -> torch.Tensor:
        """The summed loss by transformers, one row at a time."""
        total = torch.zeros(())
        for row in examples:
            logits = self.causal(torch.tensor([row.ids])).logits[0, :-1]
            trained = torch.tensor(row.trained[1:])
            targets = torch.tensor(row.ids[1:])[trained]
            total = total + functional.cross_entropy(logits[trained].float(), targets, reduction="sum")
        return total


def twins(family: str, *, rank: int = 4, targets: Any = "all-linear") -> Twins:
    """A random model with random norms, biases and LoRA weights, B included."""
    import transformers
    from peft import LoraConfig, get_peft_model

    name, changes = FAMILIES[family]
    torch.manual_seed(1)
    kind = getattr(transformers, name)
    config = kind.config_class(**{**COMMON, **changes}, attn_implementation="eager")
    causal = kind(config).eval().requires_grad_(False)
    for key, weight in causal.state_dict().items():
        if key.endswith("bias") or "norm" in key:
            weight += 0.1 * torch.randn_like(weight)
    frozen = {key: weight.clone() for key, weight in causal.state_dict().items()}
    lora = LoraConfig(r=rank, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
        model = get_peft_model(causal, lora)
    theirs = {}
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            theirs[key.replace(".default", "")] = weight
            weight.data = 0.1 * torch.randn_like(weight)
    blueprint = read_blueprint({**config.to_dict(), "architectures": [name]})
    adapter = adapter_of(blueprint, theirs, Layout(rank, 6, ()))
    return Twins(model, theirs, FastModel(blueprint, base_weights(blueprint, frozen), adapter))


def base_weights(
    blueprint: Blueprint, frozen: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> BaseWeights:
    """The fast path's weights from a state dict."""
    found = {key: weight.to(dtype) for key, weight in frozen.items()}
    linears, vectors = {}, {name: found[f"model.{name}.weight"] for name in blueprint.norms()}
    for layer in range(blueprint.layers):
        for group, parts in blueprint.groups.items():
            stems = [f"model.layers.{layer}.{part.name}" for part in parts]
            linears[f"layers.{layer}.{group}"] = torch.cat([found[f"{stem}.weight"] for stem in stems])
            if parts[0].bias:
                vectors[f"layers.{layer}.{group}.bias"] = torch.cat([found[f"{stem}.bias"] for stem in stems])
    embedding = found["model.embed_tokens.weight"]
    return BaseWeights(linears, vectors, embedding, embedding if blueprint.tied else found["lm_head.weight"])


def adapter_of(
    blueprint: Blueprint,
    weights: Mapping[str, torch.Tensor],
    layout: Layout,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """An adapter on exactly the modules that the weights name."""
    groups = {}
    for layer in range(blueprint.layers):
        for name, parts in blueprint.groups.items():
            pairs, start = [], 0
            for part in parts:
                module = f"model.layers.{layer}.{part.name}"
                a = weights.get(f"base_model.model.{module}.lora_A.weight")
                if a is not None:
                    b = weights[f"base_model.model.{module}.lora_B.weight"]
                    made = [torch.nn.Parameter(w.detach().to(dtype, copy=True)) for w in (a, b)]
                    pairs.append(Pair(module, made[0], made[1], start, start + part.rows))
                start += part.rows
            if pairs:
                stacked = torch.cat([pair.a.detach() for pair in pairs])
                groups[f"layers.{layer}.{name}"] = Group(tuple(pairs), stacked)
    return Adapter(layout, groups)


def changed(model: FastModel, dtype: torch.dtype) -> FastModel:
    """The same model in another number format; the adapter in the format of sums."""
    adapter, weights = model.adapter, model.weights
    assert adapter is not None
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return FastModel(
        model.blueprint,
        BaseWeights(
            {name: weight.to(dtype) for name, weight in weights._linears.items()},  # type: ignore[union-attr]
            {name: weight.to(dtype) for name, weight in weights._vectors.items()},
            weights.embedding.to(dtype),
            weights.head.to(dtype),
        ),
        adapter_of(model.blueprint, adapter.named(), adapter.layout, kept),
    )
