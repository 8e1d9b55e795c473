"""Pre-trains the bundled chat model from nothing and writes `assets/model`.

The same seed gives the same corpus, the same `tokenizer.json` and the same batches on every machine.
The weights are equal bit for bit on the same machine with the same torch and the same number of threads;
elsewhere the order of the sums differs, so the weights agree only in what the model has learned.
Takes about 15 minutes on 2 CPU cores. Where others use them too, set `OMP_WAIT_POLICY=PASSIVE`: threads
that wait for each other then leave the cores alone.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ollama_tune.assets.build.corpus import draw_corpus
from ollama_tune.assets.build.tokenizer import (
    CONTEXT,
    SPECIAL_TOKENS,
    TURN_END,
    TURN_START,
    save_tokenizer,
    train_tokenizer,
)

SEED = 7
CONVERSATIONS = 65_000
TOKENIZER_CONVERSATIONS = 20_000
BATCH_TOKENS = 2048
MATRIX_RATE = 0.02
OTHER_RATE = 1e-2
WARMUP_STEPS = 60

Sample = tuple[list[int], list[bool]]
"""Token ids of a conversation and, for each, whether the model learns to say it."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Ids and what is learned, both [rows, tokens]."""


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of about 2.9 million random weights; every width is a multiple of 256 or of a head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(TURN_END),
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> Sample:
    """A conversation in the chat template; only the assistant's words and ends of turn are learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for message in messages:
        for text, wanted in (
            (f"{TURN_START}{message['role']}\n", False),
            (f"{message['content']}{TURN_END}", message["role"] == "assistant"),
            ("\n", False),
        ):
            piece = tokenizer.encode(text).ids
            ids += piece
            learned += [wanted] * len(piece)
    return ids[:CONTEXT], learned[:CONTEXT]


def batches(samples: list[Sample], seed: int) -> Iterator[Batch]:
    """Every sample once, in random batches of about `BATCH_TOKENS` tokens of similar length."""
    rng = random.Random(seed)
    order = list(range(len(samples)))
    rng.shuffle(order)
    order.sort(key=lambda index: len(samples[index][0]))
    groups: list[list[Sample]] = [[]]
    for index in order:
        if groups[-1] and len(samples[index][0]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(samples[index])
    rng.shuffle(groups)
    return map(_padded, groups)


def _padded(group: list[Sample]) -> Batch:
    longest = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group])
    learned = torch.tensor([learned + [False] * (longest - len(learned)) for _, learned in group])
    return ids, learned


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean loss a learned token. Padding is at the right, so causal attention never sees it."""
    ids, learned = batch
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = learned[:, 1:]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), ids[:, 1:][wanted])


def rate_share(step: int, steps: int) -> float:
    """Share of the top learning rate: a linear warm-up, then a cosine down to a hundredth."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    share = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: LlamaForCausalLM, work: list[Batch]) -> Iterator[float]:
    """One step a batch in float32; yields the loss of each step."""
    both = optimizers(model)
    tops = [optimizer.param_groups[0]["lr"] for optimizer in both]
    model.train()
    for step, batch in enumerate(work):
        loss = answer_loss(model, batch)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, top in zip(both, tops, strict=True):
            optimizer.param_groups[0]["lr"] = top * rate_share(step, len(work))
            optimizer.step()
        yield loss.item()


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights in bfloat16 with `config.json` and `generation_config.json`."""
    end = SPECIAL_TOKENS.index(TURN_END)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)  # type: ignore[no-untyped-call]
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def build(folder: Path, conversations: int = CONVERSATIONS, seed: int = SEED) -> None:
    """Corpus, tokenizer, training, files; prints the loss as it goes."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    corpus = draw_corpus(conversations, seed)
    tokenizer = train_tokenizer(corpus[:TOKENIZER_CONVERSATIONS])
    work = list(batches([encode(tokenizer, messages) for messages in corpus], seed))
    model = new_model(tokenizer.get_vocab_size(), seed)
    tokens = sum(ids.numel() for ids, _ in work)
    print(f"{len(corpus)} conversations, {tokens} tokens, {model.num_parameters()} weights", flush=True)
    for step, loss in enumerate(train(model, work), 1):
        if step % 50 == 0 or step == len(work):
            print(f"step {step}/{len(work)}  loss {loss:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)


def main() -> None:
    """Command line: where to write, how much to train, the seed and the threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "model")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    choice = parser.parse_args()
    torch.set_num_threads(choice.threads)
    build(choice.output, choice.conversations, choice.seed)


if __name__ == "__main__":
    main()
