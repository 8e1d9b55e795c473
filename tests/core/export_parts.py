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
