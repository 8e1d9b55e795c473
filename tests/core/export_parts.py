"""Random Llama models and adapters in every form the export has to know, and their truth."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.tiny import build_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PROMPT = (1, 318, 201, 42, 71, 78, 78, 81, 326, 17, 60, 44, 99, 120, 33, 45, 2, 201, 1, 320, 201)


def build_llama(folder: Path, *, shard: str | None = None, seed: int = 0, **changes: Any) -> Path:
    """A two-layer Llama with weights large enough that every fault shows in its answers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = build_tokenizer(folder)
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape | changes)).to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.dim() == 1 or name.endswith("bias"):
            weight.data += torch.randn_like(weight) * 0.2
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT's own warnings, about transformers and about a tied head, are none of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        yield


def load(base: Path, adapter: Path | None = None) -> Any:
    """The base in 32 bit, with the adapter if there is one, as transformers and PEFT compute it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with quiet():
        return (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()


def build_adapter(base: Path, folder: Path, *, size: float = 0.15, **changes: Any) -> Path:
    """A random LoRA adapter written by PEFT; `size` is the spread of B (0 would change nothing)."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    with quiet():
        model = get_peft_model(load(base), LoraConfig(**settings | changes))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, size)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.no_grad()
def log_probabilities(model: Any, ids: Sequence[int]) -> list[float]:
    """Natural log-probabilities of the next token over the whole vocabulary."""
    logits = model(torch.tensor([list(ids)])).logits[0, -1]
    return list(logits.float().log_softmax(-1).tolist())


SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
# What differs from SHAPE in the tests' model of a family; everything else is its configuration's default.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": True, "head_dim": 32},
    "Gemma": {},
    "Gemma2": {
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "num_hidden_layers": 4,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "Gemma3": {"query_pre_attn_scalar": 16, "sliding_window": 32, "num_hidden_layers": 7},
    "Phi3": {"original_max_position_embeddings": 512},
    "SmolLM3": {"num_hidden_layers": 5},
    "Granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.1,
    },
    "Olmo2": {},
    "Qwen3Moe": EXPERTS | {"moe_intermediate_size": 32, "norm_topk_prob": True},
    "Mixtral": EXPERTS,
}


def build_family(folder: Path, name: str, *, seed: int = 0, shard: str | None = None, **changes: Any) -> Path:
    """A tiny random model of a family in FAMILIES; all norms and biases are random, so that each counts.

    `changes` are keys of its configuration (SHAPE, then FAMILIES, then these decide).
    """
    import transformers

    vocabulary = build_tokenizer(folder)
    torch.manual_seed(seed)
    settings = {"vocab_size": vocabulary} | SHAPE | FAMILIES[name] | changes
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(torch.bfloat16)
    for key, weight in model.named_parameters():
        if weight.dim() == 1 or key.endswith("bias"):
            weight.data += torch.randn_like(weight) * 0.2
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def build_any_adapter(
    base: Path, folder: Path, *, resize: int = 0, store_embedding: bool = False, **changes: Any
) -> Path:
    """An adapter of any kind that PEFT writes, every trained number random: B, magnitudes, saved modules.

    `resize` more tokens are given to the model first; `store_embedding` is PEFT's `save_embedding_layers`.
    """
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base)
        if resize:
            model.resize_token_embeddings(model.config.vocab_size + resize, mean_resizing=False)
        model = get_peft_model(model, LoraConfig(**settings | changes))
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) * 0.15
        model.save_pretrained(folder, save_embedding_layers=store_embedding)
    return folder


def load_any(base: Path, adapter: Path, *, resize: int = 0) -> Any:
    """The base with an adapter of `build_any_adapter`, as PEFT computes it."""
    from peft import PeftModel

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base)
        if resize:
            model.resize_token_embeddings(model.config.vocab_size + resize, mean_resizing=False)
        return PeftModel.from_pretrained(model, str(adapter)).eval()
