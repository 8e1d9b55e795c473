"""Models of a real size, made of random numbers: what a measurement needs and nobody can download here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 128_256
HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, HEAD = 2048, 8192, 32, 8, 64
LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 128,256 tokens: all pairs of bytes, then triples, with their merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters][: VOCABULARY - len(SPECIAL) - 256 - len(pairs)]
    merges = pairs + triples
    texts = letters + [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def build_model(folder: Path, layers: int) -> Path:
    """A Llama with the shape of Llama-3.2-1B (16 layers: 1.24 billion weights), bfloat16, a shard a layer."""
    folder.mkdir(parents=True)
    build_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "bos_token_id": VOCABULARY - 4,
        "eos_token_id": VOCABULARY - 3,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    for number in range(layers + 1):
        tensors = _layer(number) if number < layers else _ends()
        name = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _layer(number: int) -> dict[str, torch.Tensor]:
    weights = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in LINEAR.items()}
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"))
    weights |= {name: torch.ones(HIDDEN, dtype=torch.bfloat16) for name in norms}
    return {f"model.layers.{number}.{name}.weight": weight for name, weight in weights.items()}


def _ends() -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": torch.randn((VOCABULARY, HIDDEN), dtype=torch.bfloat16) * 0.02,
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }


def build_adapter(folder: Path, base: Path, layers: int, rank: int = 16) -> Path:
    """A random LoRA adapter on every linear layer, as PEFT stores it."""
    folder.mkdir(parents=True)
    tensors = {}
    for number in range(layers):
        for name, (rows, columns) in LINEAR.items():
            prefix = f"base_model.model.model.layers.{number}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, columns) * 0.02
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in LINEAR),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
