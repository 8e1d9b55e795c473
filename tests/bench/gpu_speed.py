"""Training of 8B models on the GPU of this box, beside its peers: one command.

    python -m tests.bench.gpu_speed --peers PYTHON [PYTHON ...]      # an hour; needs 17 GB of disk
    python -m tests.bench.gpu_speed --models Llama-3.1-8B --weights nf4 --only fast,unsloth
    python -m tests.bench.gpu_speed --tiny                           # tiny models on the CPU: that it works

Llama-3.1-8B and Qwen3-8B with random bfloat16 weights, written once into shards below --folder; LoRA r 16
on all linear layers with bfloat16 or NF4 weights; rows of up to 2,048 tokens, half of them below 600, 54 %
learned. Each contender runs in a process of its own. Ours is `ollama-tune run` with the settings that the
plan recommends for this card but for the batch, which is the same for everybody. The rate of the card is that
of its best bfloat16 product here; the share of it counts no arithmetic twice. Results go to
tests/bench/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.duration import token_flops
from ollama_tune.core.plan.prepare import Prepared, prepare_for
from ollama_tune.core.plan.settings import Settings
from tests.bench.gpu_memory import GIB, gpu_name
from tests.bench.memory_formula import MODELS
from tests.bench.train import (
    ALPHA,
    RANK,
    RATE,
    ROOT,
    SEED,
    UNCOUNTED,
    Contender,
    Result,
    interpreters,
    placed,
    train_ours,
    train_peer,
)
from tests.bench.train_material import VOCABULARY, instructions, write_tokenizer

RESULTS = Path(__file__).parent / "results"
NAMES = ("Llama-3.1-8B", "Qwen3-8B")
WEIGHTS = ("none", "nf4")
SEQUENCE, BATCH, STEPS = 2048, 8, 12
SHARD = 64
"""Tensors in a file of weights."""
CONTENDERS = (
    Contender("plain", "transformers + peft, padded", ("transformers", "peft")),
    Contender("trl", "TRL, defaults", ("trl",)),
    Contender("trl-liger", "TRL + Liger", ("trl", "liger-kernel")),
    Contender("unsloth", "Unsloth, defaults", ("unsloth",)),
    Contender("general", "ours, general path"),
    Contender("fast", "ours, fast path"),
)


@dataclass(frozen=True)
class Case:
    """A model with one way to hold its weights; `rate`: operations a second of the device's best product."""

    model: Path
    rows: Path
    weights: str
    device: str
    sequence: int
    steps: int
    rate: float

    @property
    def count(self) -> int:
        """Steps that are computed."""
        return self.steps + UNCOUNTED


# The models and rows


def tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same family with sizes for a CPU."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return {**config, **sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    """A model folder with random bfloat16 weights, a few tensors in memory at a time; norms are 1."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(folder)
    made = AutoConfig.for_model(**config, eos_token_id=2, max_position_embeddings=SEQUENCE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    made.architectures = [type(model).__name__]
    made.dtype = "bfloat16"
    made.save_pretrained(folder)
    torch.manual_seed(1)
    drawn = torch.randn(1 << 26).mul_(0.02).bfloat16()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names, places = list(shapes), {}
    for start in range(0, len(names), SHARD):
        file = f"model-{start // SHARD:05}.safetensors"
        part = {name: random_tensor(drawn, shapes[name]) for name in names[start : start + SHARD]}
        save_file(part, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_atomic(folder / "model.safetensors.index.json", json.dumps(index))


def random_tensor(drawn: Any, shape: Any) -> Any:
    """Numbers from a random place of what was drawn once, over and over."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    first = int(torch.randint(len(drawn), ()))
    turned = drawn.roll(first)
    return turned.repeat(-(-shape.numel() // len(turned)))[: shape.numel()].view(shape).clone()


# One contender


def planned(case: Case, path: str) -> tuple[Settings, Prepared]:
    """The settings of our run: what the plan recommends, but for what is the same for everybody."""
    fixed = {
        "training.path": path,
        "training.device": case.device,
        "training.quantization": case.weights,
        "training.compute_dtype": "bfloat16",
        "training.rank": RANK,
        "training.alpha": ALPHA,
        "training.learning_rate": RATE,
        "training.batch_size": BATCH,
        "training.gradient_accumulation_steps": 1,
        "training.sequence_length": case.sequence,
        "training.epochs": 1.0,
        "training.seed": SEED,
        "data.validation_split": 0.0,
        "evaluation.rows": 0,
    }
    prepared = prepare_for(str(case.model), str(case.rows), fixed)
    return prepared.plan.settings, prepared


def job(case: Case, contender: Contender, micro: int) -> dict[str, Any]:
    """What a peer is told; its micro-batch is smaller where it would not fit."""
    return {
        "name": contender.name,
        "device": case.device,
        "quantization": case.weights,
        "model": str(case.model),
        "rows": str(case.rows),
        "steps": case.count,
        "batch": micro,
        "accumulation": BATCH // micro,
        "checkpointing": True,
        "sequence": case.sequence,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": RATE,
        "seed": SEED,
    }


def attempt(case: Case, contender: Contender, python: str, micro: int) -> Result:
    """Train in an empty folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{contender.name}-", dir=case.model.parent))
    try:
        if contender.needs:
            return train_peer(python, job(case, contender, micro), folder)
        settings, _ = planned(case, contender.name)
        return train_ours(settings.model_dump(), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(case: Case, contender: Contender, python: str) -> Result | str:
    """A contender's figures, or its last words; a peer short of memory tries half the rows at once."""
    micro, words = BATCH, ""
    while micro:
        try:
            return attempt(case, contender, python, micro)
        except RuntimeError as error:
            words = str(error)
        micro = micro // 2 if contender.needs and "out of memory" in words else 0
    return (words.strip().splitlines() or ["ended without a word"])[-1][:200]


# All of them


def product_rate(device: str) -> float:
    """Operations a second of the best of a few bfloat16 products, in a process of its own."""
    asked = [sys.executable, "-m", "tests.bench.gpu_speed", "--rate", device]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.split()[-1])


def time_products(device: str) -> float:
    """The rate of the best of 30 products of square matrices."""
    import time

    import torch

    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def flops(case: Case) -> float:
    """Operations that a useful token needs, nothing computed twice."""
    settings, prepared = planned(case, "fast")
    lengths: Lengths = prepared.lengths
    once = settings.with_value("training.gradient_checkpointing", "none")
    return sum(token_flops(once, prepared.spec, lengths))


def cases(given: argparse.Namespace, folder: Path, rate: float) -> Iterator[tuple[str, Case]]:
    """Each model with each way to hold its weights; a model's folder lasts until the next one."""
    device, sequence = ("cpu", 256) if given.tiny else ("cuda", SEQUENCE)
    for name in given.models.split(","):
        model, rows = folder / name, folder / "rows.jsonl"
        write_model(model, tiny(MODELS[name]) if given.tiny else MODELS[name])
        instructions(rows, model, BATCH * (given.steps + UNCOUNTED), sequence)
        for weights in given.weights.split(","):
            yield name, Case(model, rows, weights, device, sequence, given.steps, rate)
        shutil.rmtree(model)


def line(name: str, case: Case, contender: Contender, found: Result | str) -> str:
    """A row of the table."""
    head = f"| {name} | {'NF4' if case.weights == 'nf4' else 'bf16'} | {contender.label} |"
    if isinstance(found, str):
        return f"{head} {found.replace('|', '/')} | | | |"
    share = found.speed * flops(case) / case.rate
    return f"{head} {found.speed:,.0f} | {share:.1%} | {found.memory / GIB:.1f} | {found.first_wall:.0f} |"


def head(card: str, driver: str, rate: float, have: Mapping[str, Mapping[str, str]], steps: int) -> str:
    """What the table holds for."""
    ours = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    told = ", ".join(f"{name} {number}" for name, number in ours.items())
    peers = "; ".join(
        f"peers {number + 1}: " + ", ".join(f"{n} {v}" for n, v in packages.items())
        for number, packages in enumerate(have.values())
    )
    best = f"Best bfloat16 product: {rate / 1e12:.1f} TFLOP/s."
    work = f"LoRA r {RANK} on all linear layers, {BATCH} rows a step, {steps} steps after {UNCOUNTED}"
    made = "that do not count. Made by `python -m tests.bench.gpu_speed`."
    columns = "| model | weights | | useful tokens a second | of that rate | peak, GiB | first step, s |"
    return (
        f"# Training 8B models on {card}\n\nDriver {driver}; Python {platform.python_version()}, {told}; "
        f"{peers}.\n{best} {work} {made}\n\n{columns}\n|-|-|-|-|-|-|-|"
    )


def chosen(
    wanted: Sequence[str], weights: str, have: dict[str, dict[str, str]]
) -> list[tuple[Contender, str]]:
    """The contenders with their interpreters; with 4-bit weights a peer needs bitsandbytes too."""
    more = ("bitsandbytes",) if weights == "nf4" else ()
    needing = [replace(c, needs=(*c.needs, *more)) if c.needs else c for c in CONTENDERS]
    return placed(needing, wanted, have)


def table(given: argparse.Namespace, have: dict[str, dict[str, str]], rate: float) -> Iterator[str]:
    """The rows of the table, as they are measured."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-speed-", dir=given.folder))
    try:
        for name, case in cases(given, folder, rate):
            for contender, python in chosen(given.only.split(","), case.weights, have):
                yield line(name, case, contender, measured(case, contender, python))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure every contender on every model, or the product's rate that the parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--peers", nargs="+", default=[], metavar="PYTHON", help="interpreters with the peers"
    )
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--weights", default=",".join(WEIGHTS), help="none, nf4")
    parser.add_argument("--only", default=",".join(c.name for c in CONTENDERS), help="names, with commas")
    parser.add_argument("--steps", type=int, default=STEPS, help="that count")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, to see that all works")
    parser.add_argument("--folder", type=Path, help="where the weights are written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--rate", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rate:
        print(time_products(given.rate))
        return
    card, driver = ("a CPU, tiny models", "none") if given.tiny else gpu_name()
    have = interpreters([*given.peers, sys.executable])
    rate = product_rate("cpu" if given.tiny else "cuda")
    lines = [head(card, driver, rate, have, given.steps)]
    print(lines[0], flush=True)
    for row in table(given, have, rate):
        lines.append(row)
        print(row, flush=True)
    if not given.tiny:
        name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        given.output.mkdir(parents=True, exist_ok=True)
        write_atomic(given.output / f"speed-{name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
