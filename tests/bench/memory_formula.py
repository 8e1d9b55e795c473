"""The closed formula against the simulation: 216 settings of each of 16 models.

    python -m tests.bench.memory_formula                      # everything, some hours on one core
    python -m tests.bench.memory_formula --sample 30          # that many settings of each model
    python -m tests.bench.memory_formula --model Gemma        # the models with that in their name

Every result is a line in the file of `--output`; what stands there is not run again, so the grid can be
run in pieces. The table is of everything in that file. Shapes are public facts of the models' configurations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.predict import Simulator, by_formula
from ollama_tune.core.plan.request import MemoryRequest


def _model(kind: str, V: int, H: int, I: int, L: int, heads: int, groups: int, **more: Any) -> dict[str, Any]:  # noqa: E741
    sizes = {"vocab_size": V, "hidden_size": H, "intermediate_size": I, "num_hidden_layers": L}
    shape = {"num_attention_heads": heads, "num_key_value_heads": groups}
    return {"model_type": kind, **sizes, **shape, "pad_token_id": 0, **more}


MODELS = {
    "Llama-3.2-1B": _model("llama", 128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True),
    "Llama-3.2-3B": _model("llama", 128256, 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True),
    "Llama-3.1-8B": _model("llama", 128256, 4096, 14336, 32, 32, 8, tie_word_embeddings=False),
    "Mistral-7B": _model("mistral", 32768, 4096, 14336, 32, 32, 8, sliding_window=None),
    "Qwen2.5-7B": _model("qwen2", 152064, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
    "Qwen3-4B": _model("qwen3", 151936, 2560, 9728, 36, 32, 8, head_dim=128, tie_word_embeddings=True),
    "Qwen3-8B": _model("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128, tie_word_embeddings=False),
    "Phi-4-mini": _model(
        "phi3", 200064, 3072, 8192, 32, 24, 8, tie_word_embeddings=True, sliding_window=262144
    ),
    "SmolLM3-3B": _model("smollm3", 128256, 2048, 11008, 36, 16, 4, tie_word_embeddings=True),
    "Gemma-2-9B": _model(
        "gemma2",
        256000,
        3584,
        14336,
        42,
        16,
        8,
        head_dim=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "Gemma-7B": _model("gemma", 256000, 3072, 24576, 28, 16, 16, head_dim=256),
    "Granite-3.1-8B": _model(
        "granite", 49155, 4096, 12800, 40, 32, 8, tie_word_embeddings=True, logits_scaling=16.0
    ),
    "OLMo-2-7B": _model("olmo2", 100352, 4096, 11008, 32, 32, 32, tie_word_embeddings=False),
    "Mixtral-8x7B": _model(
        "mixtral", 32000, 4096, 14336, 32, 32, 8, num_local_experts=8, tie_word_embeddings=False
    ),
    "Qwen3-30B-A3B": _model(
        "qwen3_moe",
        151936,
        2048,
        6144,
        48,
        32,
        4,
        head_dim=128,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=False,
    ),
    "Gemma-3-4B": _model("gemma3_text", 262208, 2560, 10240, 34, 8, 4, head_dim=256, sliding_window=1024),
}
SIZES = [(1, 512), (1, 2048), (1, 8192), (4, 1024), (2, 4096), (8, 512)]
KINDS: list[dict[str, Any]] = [
    {},
    {"adapter_dtype": "bfloat16"},
    {"rank": 128},
    {"dropout": 0.1},
    {"targets": ["q_proj", "v_proj"]},
    {"padded": True},
    {"loss": "full"},
    {"gradient_accumulation_steps": 8, "optimizer": "adamw_8bit", "rank": 64},
    {"attention": "eager"},
]


def grid(model: str) -> Iterator[dict[str, Any]]:
    """The settings of a model: base weights, checkpointing, sizes of a batch, and one thing changed."""
    for quantization, checkpointing, (rows, tokens), kind in itertools.product(
        ("nf4", "none"), ("layers", "none"), SIZES, KINDS
    ):
        found = {
            "quantization": quantization,
            "gradient_checkpointing": checkpointing,
            "batch_size": rows,
            "sequence_length": tokens,
            **kind,
        }
        if model.startswith("Phi") and "targets" in kind:
            found["targets"] = ["qkv_proj"]
        yield found


def run(models: list[str], sample: int | None, path: Path) -> None:
    """Add what is missing in the file."""
    known = {(row["model"], json.dumps(row["settings"])) for row in read(path)}
    with Simulator() as simulator, path.open("a") as file:
        for model in models:
            settings = list(grid(model))
            random.Random(7).shuffle(settings)
            for values in settings[:sample]:
                if (model, json.dumps(values)) not in known:
                    row = {"model": model, "settings": values} | simulated(MODELS[model], values, simulator)
                    file.write(json.dumps(row) + "\n")
                    file.flush()


def simulated(config: dict[str, Any], values: dict[str, Any], simulator: Simulator) -> dict[str, Any]:
    """The simulated bytes, or the reason why there are none."""
    try:
        return {"simulation": simulator.predict(config, MemoryRequest(**values)).allocated_bytes}
    except TuneError as error:
        return {"error": f"{error.what} {error.details}"}


def difference(row: dict[str, Any]) -> float:
    """How far the formula is off, in per cent."""
    found = by_formula(MODELS[row["model"]], MemoryRequest(**row["settings"])).allocated_bytes
    return 100 * (found / float(row["simulation"]) - 1)


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Differences of the formula from the simulation in per cent, a model a row."""
    yield "| model | settings | median difference | mean, signed | lowest | highest |"
    yield "|-|-|-|-|-|-|"
    groups = {model: [row for row in rows if row["model"] == model] for model in MODELS}
    for model, part in [*groups.items(), ("all", rows)]:
        off = [difference(row) for row in part if "simulation" in row]
        if off:
            median = statistics.median(map(abs, off))
            yield (
                f"| {model} | {len(off)} | {median:.2f} % | {statistics.fmean(off):+.2f} % "
                f"| {min(off):+.2f} % | {max(off):+.2f} % |"
            )
    for row in rows:
        if "error" in row:
            yield f"not simulated: {row['model']} {row['settings']}: {row['error']}"


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, help="settings a model, drawn always the same way")
    parser.add_argument("--model", default="", help="only models with this in their name")
    parser.add_argument("--output", type=Path, default=Path("build/memory_formula.jsonl"))
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    run([name for name in MODELS if asked.model in name], asked.sample, asked.output)
    print("\n".join(table(read(asked.output))))


if __name__ == "__main__":
    main()
