"""The model and the rows of the training benches, made on the spot from fixed seeds and kept under build/."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.files import write_atomic
from tests.tiny import build_tokenizer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bench-train"
ROWS = 2000
VOCABULARY = 16_384
SEQUENCE = 512
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without the line breaks between the turns; the `generation` marks are what TRL needs."""
SIZES: dict[str, int] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


@dataclass(frozen=True)
class Material:
    """A model folder, and rows without and with one system prompt."""

    model: Path
    rows: Path
    system_rows: Path


def material() -> Material:
    """Make what is not there yet."""
    made = Material(FOLDER / "model", FOLDER / "rows.jsonl", FOLDER / "rows-system.jsonl")
    if not (made.model / "model.safetensors").exists():
        write_tokenizer(made.model)
        write_model(made.model)
    if not made.system_rows.exists():
        write_rows(made)
    return made


def words() -> list[str]:
    """20,000 made words, the commonest first."""
    chance = random.Random(5)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    return ["".join(chance.choices(letters, k=chance.randrange(2, 10))) for _ in range(20_000)]


class Writer:
    """Texts of made words, common ones more often (Zipf)."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._words = words()
        self._shares = [1 / (rank + 10) for rank in range(len(self._words))]

    def text(self, count: int) -> str:
        """So many words."""
        return " ".join(self._chance.choices(self._words, self._shares, k=count))

    def length(self) -> tuple[int, float]:
        """Tokens of a row where at most 512 are allowed, long-tailed, and the share of it that is learned."""
        return int(self._chance.lognormvariate(4.95, 0.85)), self._chance.uniform(0.3, 0.85)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE trained on made text, with a chat template."""
    writer = Writer(1)
    texts = [*(writer.text(500) for _ in range(800)), "user assistant system\n"]
    build_tokenizer(folder, VOCABULARY, texts=texts, template=TEMPLATE, length=2 * SEQUENCE)


def write_model(folder: Path) -> None:
    """A random Llama of 40 million parameters in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=2 * SEQUENCE,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **SIZES,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def write_rows(made: Material) -> None:
    """Instruction rows, and the same with a system prompt of about 130 tokens; 512 tokens at most in both."""
    text = Writer(7).text(100)
    instructions(made.rows, made.model, ROWS, SEQUENCE)
    instructions(made.system_rows, made.model, ROWS, SEQUENCE, text)


def instructions(path: Path, model: Path, count: int, cap: int, system: str = "") -> None:
    """Rows of long-tailed lengths: half have less than 0.3 of the cap, none exceeds it, 54 % are learned."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    writer, rows = Writer(8), []
    rate = 4000 / tokens(writer.text(4000))
    opening = [{"role": "system", "content": system}] if system else []
    room = cap - 20 - (tokens(system) + 4 if system else 0)
    for _ in range(count):
        length, share = writer.length()
        length = min(max(length * cap // SEQUENCE, 12), room)
        while True:
            asked, told = (max(int(length * rate * part), 2) for part in (1 - share, share))
            question, answer = writer.text(asked), writer.text(told)
            if tokens(question) + tokens(answer) <= room:
                break
            length -= 4
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": [*opening, *turns]})
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
