"""Machines, models and data as values, for tests of the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Disk, Gpu, GpuReport, Host, Machine, OllamaStatus
from ollama_tune.core.models.values import ModelSpec

GIB = 1 << 30


def machine(
    ram: float = 24,
    cores: int = 2,
    disk: float = 80,
    gpu: float | None = None,
    **gpu_fields: Any,
) -> Machine:
    """A box; sizes in GiB, `gpu` is the GPU's total memory, nearly all of it free."""
    gpus: tuple[Gpu, ...] = ()
    if gpu is not None:
        fields = {"name": "NVIDIA GeForce RTX 4090", "compute_capability": (8, 9)} | gpu_fields
        free = int((gpu - 0.5) * GIB)
        gpus = (replace(Gpu(0, "GPU-1", "", int(gpu * GIB), free, None), **fields),)
    report = GpuReport(gpus, "570.86.10" if gpus else None, "" if gpus else "There is no NVIDIA driver here.")
    return Machine(
        gpu=report,
        host=Host("A CPU", cores, int(ram * GIB), int((ram - 1) * GIB), "Linux 6"),
        disk=Disk("/data", int(disk * GIB), 500 * GIB),
        ollama=OllamaStatus("http://127.0.0.1:11434", None, "No Ollama answers.", local=True),
    )


def spec(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    head_dim: int,
    vocabulary: int,
    tied: bool,
    **more: Any,
) -> ModelSpec:
    """A Llama-type model of that shape, with all its parameters counted."""
    q, k = heads * head_dim, key_value_heads * head_dim
    a_layer = 2 * hidden * q + 2 * hidden * k + 3 * hidden * intermediate
    parameters = layers * a_layer + vocabulary * hidden * (1 if tied else 2) + hidden * (2 * layers + 1)
    made = ModelSpec(
        source="org/model",
        folder=Path("/models/model"),
        name="Model",
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=parameters,
        weight_bytes=2 * parameters,
        weight_dtype="bfloat16",
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocabulary_size=vocabulary,
        tied_embeddings=tied,
        context_length=131_072,
        chat_template="{{ messages }}",
        licence="Apache-2.0",
        export_reason="",
    )
    return replace(made, **more)


TINY = spec(256, 768, 4, 4, 2, 64, 2048, True, source="bundled", name="Tickets 3M", context_length=512)
LLAMA_1B = spec(2048, 8192, 16, 32, 8, 64, 128_256, True)
LLAMA_8B = spec(4096, 14336, 32, 32, 8, 128, 128_256, False, name="Llama-3.1-8B-Instruct")
QWEN3_4B = spec(2560, 9728, 36, 32, 8, 128, 151_936, True, model_type="qwen3", name="Qwen/Qwen3-4B")
LLAMA_70B = spec(8192, 28672, 80, 64, 8, 128, 128_256, False)


def lengths(
    rows: int = 400,
    mean: int = 50,
    trained: int = 14,
    longest: int = 75,
    longest_answer: int = 0,
    **more: Any,
) -> Lengths:
    """Token lengths of a data set with a short tail."""
    return replace(
        Lengths(
            rows=rows,
            tokens=rows * mean,
            trained_tokens=rows * trained,
            median=mean,
            percentile_95=(mean + 2 * longest) // 3,
            percentile_99=(mean + 8 * longest) // 9,
            longest=longest,
            longest_answer=longest_answer,
        ),
        **more,
    )


SHORT = lengths()
CHAT = lengths(5000, 300, 160, 2040, 800, percentile_95=900, percentile_99=1500)
