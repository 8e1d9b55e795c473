"""Measured against predicted memory of training steps, on the GPU of this box: one command.

    python -m tests.bench.gpu_memory              # 16 settings from 1B to 8B, about ten minutes
    python -m tests.bench.gpu_memory --only 3     # the first three
    python -m tests.bench.gpu_memory --dry-run    # tiny models on the CPU: everything but the measuring

Weights are random and made on the spot; nothing is downloaded. Each setting runs in a process of its own,
so that NVML shows a fresh context. Results go to tests/bench/results/<gpu>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.predict import Prediction, Simulator
from ollama_tune.core.plan.request import MemoryRequest
from tests.bench.memory_formula import MODELS

RESULTS = Path(__file__).parent / "results"
GIB = 1 << 30
STEPS = 2
LIMIT = 900.0
QLORA: dict[str, Any] = {"quantization": "nf4", "gradient_checkpointing": "layers"}
LORA: dict[str, Any] = {"gradient_checkpointing": "layers"}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("Llama-3.2-1B", {**LORA, "sequence_length": 512}),
    ("Llama-3.2-1B", {"sequence_length": 2048}),
    ("Llama-3.2-1B", {**QLORA, "sequence_length": 8192}),
    ("Llama-3.2-1B", {**LORA, "sequence_length": 1024, "batch_size": 8, "padded": True}),
    ("Llama-3.2-1B", {"method": "full", "gradient_checkpointing": "layers", "sequence_length": 1024}),
    ("Llama-3.2-3B", {**LORA, "sequence_length": 2048, "adapter_dtype": "bfloat16"}),
    ("Llama-3.2-3B", {"quantization": "nf4", "sequence_length": 1024, "dropout": 0.05}),
    ("Qwen3-4B", {**QLORA, "sequence_length": 1024, "batch_size": 8, "padded": True}),
    ("Qwen3-4B", {**LORA, "sequence_length": 4096, "rank": 64, "gradient_accumulation_steps": 4}),
    ("Gemma-3-4B", {**QLORA, "sequence_length": 2048}),
    ("Mistral-7B", {**QLORA, "sequence_length": 2048, "expandable_segments": True}),
    ("Mistral-7B", {**QLORA, "sequence_length": 2048, "loss": "full"}),
    ("Qwen2.5-7B", {**QLORA, "sequence_length": 4096, "optimizer": "adamw_8bit", "rank": 128}),
    ("Llama-3.1-8B", {**QLORA, "sequence_length": 2048}),
    ("Llama-3.1-8B", {**QLORA, "sequence_length": 8192, "expandable_segments": True}),
    ("Llama-3.1-8B", {**LORA, "sequence_length": 2048, "targets": ["q_proj", "v_proj"]}),
]


def tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same family with sizes for a CPU."""
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return {**config, **sizes, **heads}


# -- the process that trains


def train(config: dict[str, Any], request: MemoryRequest, device: str) -> dict[str, Any]:
    """Two optimizer steps of random weights on random tokens; returns the peaks in bytes."""
    import torch

    from ollama_tune.core.train.fake_model import changes_logits, on_meta, read_config

    before = device_used() if device == "cuda" else 0
    model_config = read_config(config)
    causal = materialize(on_meta(model_config, request), request, device).train()
    optimizer = make_optimizer([w for w in causal.parameters() if w.requires_grad], request)
    loss_of = objective(causal, request, changes_logits(model_config))
    batch = random_batch(request, config["vocab_size"], device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    enabled, dtype = request.mixed, getattr(torch, request.compute_dtype)
    for _ in range(STEPS):
        for _ in range(min(request.gradient_accumulation_steps, 2)):
            with torch.autocast(device, dtype=dtype if enabled else None, enabled=enabled):
                loss = loss_of(batch)
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device != "cuda":
        return {"trained": True}
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "nvml": device_used() - before,
    }


def device_used() -> int:
    """Bytes in use on the first GPU, by NVML: total less free, all processes together."""
    import pynvml

    pynvml.nvmlInit()
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    return int(memory.total) - int(memory.free)


def materialize(causal: Any, request: MemoryRequest, device: str) -> Any:
    """Give every module random weights on the device, one after the other; NF4 layers are quantized there."""
    import bitsandbytes
    import torch

    trained = getattr(torch, request.trained_dtype)
    known: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in list(causal.modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            shape = (module.out_features, module.in_features)
            weight = torch.empty(shape, dtype=module.compute_dtype, device=device).normal_(std=0.02)
            module.weight = bitsandbytes.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=module
            )
            module.weight = module.weight.to(device)
        for name, old in module._parameters.items():
            if old is not None and old.device.type == "meta":
                if old not in known:
                    dtype = trained if old.requires_grad else old.dtype
                    made = torch.empty(old.shape, dtype=dtype, device=device).normal_(std=0.02)
                    known[old] = torch.nn.Parameter(made, old.requires_grad)
                module._parameters[name] = known[old]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    causal.tie_weights()
    return causal


def make_optimizer(weights: list[Any], request: MemoryRequest) -> Any:
    """The optimizer of the request."""
    import bitsandbytes
    import torch

    name = request.optimizer
    if name in ("adamw", "adamw_foreach"):
        return torch.optim.AdamW(weights, lr=1e-5, fused=name == "adamw", foreach=name == "adamw_foreach")
    kinds = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    return kinds[name](weights, lr=1e-5)


def objective(causal: Any, request: MemoryRequest, changed: bool) -> Any:
    """Our loss, or that of transformers."""
    from ollama_tune.core.train.loss import Objective

    if request.loss == "full":
        return lambda batch: (
            causal(
                input_ids=batch.ids, attention_mask=batch.attention, labels=batch.ids, use_cache=False
            ).loss
        )
    ours = Objective(causal)
    scale = 1 / (request.batch_size * request.sequence_length)
    return lambda batch: (ours.reference if changed else ours)(batch) * scale


def random_batch(request: MemoryRequest, vocabulary: int, device: str) -> Any:
    """Random tokens; with padding the last row is a quarter shorter."""
    import torch

    from ollama_tune.core.train.batches import Batch

    shape = (request.batch_size, request.sequence_length)
    attention = torch.ones(shape, dtype=torch.long)
    if request.padded:
        attention[-1, -(shape[1] // 4) :] = 0
    ids = torch.randint(0, vocabulary, shape)
    marks = torch.ones(shape, dtype=torch.bool)
    return Batch(ids.to(device), attention.to(device), marks.to(device), ids.numel(), ids.numel())


# -- the process that asks


def measure(config: dict[str, Any], request: MemoryRequest, device: str) -> dict[str, Any]:
    """Train in a process of its own; its result, or its last words as `error`."""
    asked = json.dumps({"config": config, "settings": request.model_dump(), "device": device})
    segments = "expandable_segments:True" if request.expandable_segments else ""
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": segments, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.gpu_memory", "--measure", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {LIMIT:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def gpu_name() -> tuple[str, str]:
    """Name of the first GPU and version of its driver."""
    import pynvml

    pynvml.nvmlInit()
    name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    return str(name), str(pynvml.nvmlSystemGetDriverVersion())


def compare(count: int, dry: bool, gpu: str) -> Iterator[dict[str, Any]]:
    """Predict and measure each setting."""
    with Simulator() as simulator:
        for model, values in SETTINGS[:count]:
            config = tiny(MODELS[model]) if dry else MODELS[model]
            short = {"sequence_length": 64} if dry else {"gpu": gpu}
            request = MemoryRequest(**{**values, **short})
            predicted = simulator.predict(config, request)
            row = {"model": model, "settings": values, "predicted": figures(predicted)}
            row["measured"] = measure(config, request, "cpu" if dry else "cuda")
            print(line(row), flush=True)
            yield row


def figures(found: Prediction) -> dict[str, int]:
    """The prediction under the names of the measurement."""
    return {
        "allocated": found.allocated_bytes,
        "reserved": found.reserved_bytes,
        "nvml": found.nvml_bytes,
    }


def line(row: Mapping[str, Any]) -> str:
    """A row of the Markdown table: GiB measured, and how far the prediction is off."""
    settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
    measured = row["measured"]
    if "allocated" not in measured:
        return f"| {row['model']} | {settings} | {measured.get('error', 'dry run')} | | |"
    cells = [
        f"{measured[name] / GIB:.2f} ({100 * (row['predicted'][name] / measured[name] - 1):+.1f} %)"
        for name in ("allocated", "reserved", "nvml")
    ]
    return f"| {row['model']} | {settings} | {' | '.join(cells)} |"


def report(rows: list[dict[str, Any]], gpu: str, driver: str) -> str:
    """The table with the versions it holds for."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    about = ", ".join(f"{name} {number}" for name, number in versions.items())
    machine = f"Driver {driver}, {about}, Python {platform.python_version()}."
    head = f"# Memory of training steps on {gpu}\n\n{machine}"
    columns = "| model | settings | allocated, GiB | reserved | NVML |\n|-|-|-|-|-|"
    table = "\n".join(line(row) for row in rows)
    return f"{head}\nMeasured, and how far the prediction is off.\n\n{columns}\n{table}\n\n{summary(rows)}\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """Median and largest difference of each figure."""
    found = []
    for name in ("allocated", "reserved", "nvml"):
        off = [abs(r["predicted"][name] / r["measured"][name] - 1) for r in rows if name in r["measured"]]
        if off:
            found.append(f"{name}: median {100 * statistics.median(off):.1f} %, most {100 * max(off):.1f} %")
    return "; ".join(found) or "Nothing was measured."


def main() -> None:
    """Measure all settings, or the one that the parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=int, default=len(SETTINGS), help="so many settings")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, nothing measured")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        task = json.loads(asked.measure)
        print(json.dumps(train(task["config"], MemoryRequest(**task["settings"]), task["device"])))
        return
    gpu, driver = ("dry run", "none") if asked.dry_run else gpu_name()
    rows = list(compare(asked.only, asked.dry_run, gpu))
    asked.output.mkdir(parents=True, exist_ok=True)
    path = asked.output / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    tree = {"gpu": gpu, "driver": driver, "platform": platform.platform(), "rows": rows}
    write_atomic(path.with_suffix(".json"), json.dumps(tree, indent=1))
    write_atomic(path.with_suffix(".md"), report(rows, gpu, driver))
    print(summary(rows))


if __name__ == "__main__":
    main()
