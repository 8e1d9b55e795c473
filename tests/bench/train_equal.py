"""How far the losses of the two paths and of transformers with peft are apart, step by step, in float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ollama_tune.core.data.values import Example
from tests.bench.train_material import SEQUENCE, Material

Losses = list[float]


def equality(made: Material, steps: int) -> str:
    """Markdown: the largest difference between the losses of each two, and the losses of the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OLLAMA_TUNE_HOME"] = folder
        found = compare(made, steps, Path(folder))
    lines = [
        f"## Loss in float32, the same rows, order and adapter start, {steps} steps\n",
        "| | largest difference |",
        "|-|-|",
    ]
    names = list(found)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            apart = max(abs(a - b) for a, b in zip(found[one], found[other], strict=True))
            lines.append(f"| {one} and {other} | {apart:.1e} |")
    first, last = (", ".join(f"{found[name][at]:.6f}" for name in names) for at in (0, -1))
    return "\n".join([*lines, "", f"First step ({', '.join(names)}): {first}; last: {last}."])


def compare(made: Material, steps: int, folder: Path) -> dict[str, Losses]:
    """The losses of each way; the fast path's new adapter is everybody's start."""
    from ollama_tune.core.plan.settings import TrainingSettings
    from ollama_tune.core.train.batches import StepPlan
    from ollama_tune.core.train.fast.path import make_fast
    from ollama_tune.core.train.general import make_general

    training = TrainingSettings(
        compute_dtype="float32",
        batch_size=8,
        gradient_accumulation_steps=1,
        sequence_length=SEQUENCE,
        rank=16,
        alpha=32,
    )
    examples = rows_of(made)
    plan = StepPlan([len(example.ids) for example in examples], training)
    batches = [[examples[row] for part in plan.window(step) for row in part] for step in range(steps)]
    fast = make_fast(made.model, training, "bench", lambda done, total: None)
    start = folder / "start"
    start.mkdir()
    fast.write_adapter(start)
    found = {"fast": losses(fast.weights.values(), of_path(fast), batches)}
    general = make_general(made.model, training, "bench", "")
    general.load_adapter(tensors(start))
    found["general"] = losses(general.weights.values(), of_path(general), batches)
    model = plain_model(made.model, start)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found["transformers + peft"] = losses(trained, lambda rows: plain_loss(model, rows), batches)
    return found


def rows_of(made: Material) -> list[Example]:
    """The rows as tokens."""
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.core.data.tokens.lengths import encode_rows

    encoded, _ = encode_rows(ChatFormat.from_folder(made.model), load_dataset(str(made.rows)).rows)
    return [encoded[number] for number in range(len(encoded))]


def losses(
    weights: Any, loss_of: Callable[[Sequence[Example]], Any], batches: Sequence[Sequence[Example]]
) -> Losses:
    """Train on the batches with torch's AdamW; the mean loss of a supervised token in each step."""
    import torch

    trained = list(weights)
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    found = []
    for rows in batches:
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def of_path(path: Any) -> Callable[[Sequence[Example]], Any]:
    """The mean loss by one of our paths."""
    path.train(True)

    def loss(rows: Sequence[Example]) -> Any:
        batch = path.collate(rows)
        return path.loss(batch) / batch.supervised_tokens

    return loss


def tensors(folder: Path) -> dict[str, Any]:
    """The adapter's tensors in a PEFT folder."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def plain_model(model: Path, adapter: Path) -> Any:
    """transformers' model with peft's adapter, ready to train."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=True).train()


def plain_loss(model: Any, rows: Sequence[Example]) -> Any:
    """The model's own loss of a padded batch."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids)
        marks = torch.tensor(row.trained)
        labels[number, :length] = torch.where(marks, ids[number, :length], -100)
        attention[number, :length] = 1
    return model(input_ids=ids, attention_mask=attention, labels=labels, use_cache=False).loss
