"""Tiny models of every family that have learned something: their answers are sure, and they end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.export.reference import ReferenceAnswer
from ollama_tune.core.export.verify import compute_reference
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder, create_run
from tests.core.export_parts import build_family, load, quiet
from tests.tiny import SPECIAL

LIMIT = 12
QUESTIONS = tuple(f"What is the colour of {thing} {i}?" for i in range(4) for thing in ("bird", "sky", "sea"))
COLOURS = ("It is blue.", "It is over.", "Perhaps short.", "We see one.")
TUNED = ("No: yes it is.", "I don't know.", "Please answer!", "Today 1234.")
HELD_OUT = tuple((Message("user", question),) for question in QUESTIONS[:8])


@dataclass(frozen=True)
class Trained:
    """A base and an adapter that were really trained, and what transformers and PEFT say of both together."""

    base: Path
    adapter: Path
    chat: ChatFormat
    reference: tuple[ReferenceAnswer, ...]


def build_trained(
    folder: Path,
    family: str,
    *,
    steps: int = 60,
    lora: Any = None,
    begins: bool = False,
    **changes: Any,
) -> Trained:
    """A tiny model of a family, trained on questions, with an adapter that answers otherwise.

    `begins`: its chat template prints a BOS token first. `lora` changes the adapter's settings, `changes`
    the configuration.
    """
    shape = {"initializer_range": 0.06, "num_hidden_layers": 2} | changes
    base = build_family(folder / "base", family, **shape)
    if begins:
        path = base / "tokenizer_config.json"
        config = json.loads(path.read_text())
        template = "{{ bos_token }}" + config["chat_template"]
        path.write_text(json.dumps(config | {"bos_token": SPECIAL[0], "chat_template": template}))
    chat = ChatFormat.from_folder(base)
    model = load(base)
    _learn(model, chat, COLOURS, steps, 4e-3)
    model.to(torch.bfloat16).save_pretrained(base)
    adapter = _adapter(base, folder / "adapter", chat, steps // 2, lora or {})
    return Trained(base, adapter, chat, compute_reference(base, adapter, chat, HELD_OUT, LIMIT))


def _adapter(base: Path, folder: Path, chat: ChatFormat, steps: int, changes: dict[str, Any]) -> Path:
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    with quiet():
        model = get_peft_model(load(base), LoraConfig(**settings | {"use_rslora": True} | changes))
        _learn(model, chat, TUNED, steps, 2e-2)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _learn(model: Any, chat: ChatFormat, answers: Sequence[str], steps: int, rate: float) -> None:
    """AdamW on all questions at once; the loss is on the answers and their end."""
    rows = [_row(chat, question, answers[i % len(answers)]) for i, question in enumerate(QUESTIONS)]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[chat.pad_id] * (width - len(row))] for row, _ in rows])
    labels = torch.tensor(
        [[*[-100] * start, *row[start:], *[-100] * (width - len(row))] for row, start in rows]
    )
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _row(chat: ChatFormat, question: str, answer: str) -> tuple[tuple[int, ...], int]:
    prompt = chat.prompt_ids([Message("user", question)])
    whole = chat.render([Message("user", question), Message("assistant", answer)])
    ids = chat.encode(whole)[0]
    return ids, len(prompt)


def make_run(trained: Trained, **changes: Any) -> RunFolder:
    """A run whose training is over; `changes` are settings by their dotted paths."""
    data = trained.base.parent / "colours.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": TUNED[i % 4]}]}
        for i, question in enumerate(QUESTIONS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model.source": str(trained.base),
        "data.path": str(data),
        "data.validation_split": 0.4,
        "training.sequence_length": 128,
        "evaluation.max_new_tokens": LIMIT,
        "export.name": "birds:v1",
        "export.type": "f16",
    }
    folder = create_run(Settings().with_values(values | changes), "birds")
    shutil.copytree(trained.adapter, folder.adapter)
    write_reference(folder, trained.reference)
    return folder


def write_reference(folder: RunFolder, reference: Sequence[ReferenceAnswer], **more: Any) -> None:
    """Store answers as a training does."""
    prompts = [
        {
            "prompt_ids": list(answer.prompt_ids),
            "answer_ids": list(answer.answer_ids),
            "text": answer.text,
            "ended": answer.ended,
            "positions": [
                {"index": p.index, "ids": list(p.logprobs), "logprobs": list(p.logprobs.values())}
                for p in answer.positions
            ],
        }
        for answer in reference
    ]
    (folder.path / "reference.json").write_text(json.dumps({"prompts": prompts} | more))
