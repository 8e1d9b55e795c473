"""How long a run takes and what it writes, from its arithmetic and a stated rate of the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.memory import adapter_parameters, linear_parameters
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.values import WorkEstimate

PADDING = 1.05
"""Tokens computed for each useful one: batches are made of rows of similar length."""
NF4_FLOPS = 1400
"""Arithmetic that dequantizing a weight costs a micro-batch, at the rate of a GPU's matrix units."""
TYPE_BYTES = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
KEPT_CHECKPOINTS = 2
MEASUREMENTS = 8
VALIDATION_ROWS = 512
"""Held-out rows that a measurement computes at most."""
ANSWER_BATCH = 16


@dataclass(frozen=True)
class Rate:
    """What a device reaches: arithmetic a second, seconds a layer and pass cost at least, and its ground."""

    flops: float
    layer_seconds: float
    start_seconds: float
    ground: str


CPU_CORE_FLOPS = {"float32": 80e9, "bfloat16": 60e9}
"""float32: 80 to 140 measured with transformers + peft on one core of an x86 server with AVX-512.
bfloat16: 160 there with AMX, far less on a CPU without 16-bit units, so a low figure."""
CPU_SCALING = 0.85
"""n cores do the work of n to that power."""
CPU_LAYER_SECONDS = 1.6e-3
GPU_LAYER_SECONDS = 0.5e-3
LOAD_BYTES = 1e9
"""Bytes of weights read a second."""
REACHED = 0.4
"""Share of a GPU's dense 16-bit rate that fine-tuning through transformers reaches."""
GPU_PEAKS = {
    "B200": 2000e12,
    "H200": 800e12,
    "H100": 750e12,
    "A100": 300e12,
    "A6000": 150e12,
    "A10": 120e12,
    "L40": 180e12,
    "L4": 100e12,
    "T4": 50e12,
    "V100": 100e12,
    "5090": 200e12,
    "5080": 110e12,
    "4090": 160e12,
    "4080": 95e12,
    "4070": 60e12,
    "4060": 35e12,
    "3090": 71e12,
    "3080": 60e12,
    "3070": 40e12,
    "3060": 25e12,
}
CAPABILITY_PEAKS = {(10, 0): 800e12, (9, 0): 400e12, (8, 0): 200e12, (7, 0): 30e12}


def train_rows(lengths: Lengths, validation_split: float) -> int:
    """Rows that are learned from."""
    return max(lengths.rows - round(lengths.rows * validation_split), 0)


def steps_of(training: TrainingSettings, rows: int) -> int:
    """Optimizer steps of a run, counted as the worker does."""
    batches = math.ceil(rows / training.batch_size)
    return max(
        math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation_steps) - 1e-9), 1
    )


def estimate(settings: Settings, spec: ModelSpec, lengths: Lengths, machine: Machine) -> WorkEstimate:
    """Steps, tokens, seconds from start to the last answer, and bytes of checkpoints and export."""
    training = settings.training
    rows = train_rows(lengths, settings.data.validation_split)
    steps = steps_of(training, rows)
    mean = min(lengths.tokens / max(lengths.rows, 1), training.sequence_length)
    tokens = int(rows * mean * training.epochs)
    rate = _rate(training, machine)
    seconds = rate.start_seconds + spec.weight_bytes / LOAD_BYTES
    seconds += _training_seconds(settings, spec, lengths, rate)
    seconds += _answer_seconds(settings, spec, lengths, rate)
    adapter = 4 * adapter_parameters(spec, training.rank, training.targets)
    return WorkEstimate(
        steps=steps,
        tokens=tokens,
        seconds=seconds,
        checkpoint_bytes=KEPT_CHECKPOINTS * 3 * adapter + adapter,
        export_bytes=int(spec.parameters * TYPE_BYTES[settings.export.type]) if settings.export.name else 0,
        ground=rate.ground,
    )


def token_flops(settings: Settings, spec: ModelSpec, lengths: Lengths) -> tuple[float, float]:
    """Arithmetic of a forward and of a backward pass, a token.

    A forward pass takes 2 a weight, the head only on trained tokens, and attention over half the row;
    backward goes to the activations only, as much again, and once more where they are recomputed.
    """
    mean = min(lengths.tokens / max(lengths.rows, 1), settings.training.sequence_length)
    trained = lengths.trained_tokens / max(lengths.tokens, 1)
    head = spec.vocabulary_size * spec.hidden_size * trained
    adapter = adapter_parameters(spec, settings.training.rank, settings.training.targets)
    attention = mean * spec.heads * spec.head_dim * spec.layers
    forward = 2.0 * (linear_parameters(spec) + adapter + head) + 2 * attention
    backward = forward + 2.0 * adapter + 3 * attention
    return forward, backward + (forward if settings.training.gradient_checkpointing else 0.0)


def _training_seconds(settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate) -> float:
    """Training rows in both passes; validation rows forward, at each measurement."""
    training = settings.training
    rows = train_rows(lengths, settings.data.validation_split)
    held_out = min(lengths.rows - rows, VALIDATION_ROWS)
    mean = min(lengths.tokens / max(lengths.rows, 1), training.sequence_length) * PADDING
    forward, backward = token_flops(settings, spec, lengths)
    steps = steps_of(training, rows)
    measurements = steps // training.evaluation_interval if training.evaluation_interval else MEASUREMENTS
    seen, measured = rows * training.epochs, held_out * (measurements + 2)
    arithmetic = mean * (seen * (forward + backward) + measured * forward)
    passes = (3 * seen + measured) / training.batch_size
    if training.quantization == "nf4":
        arithmetic += NF4_FLOPS * linear_parameters(spec) * REACHED * passes
    return arithmetic / rate.flops + passes * spec.layers * rate.layer_seconds


def _answer_seconds(settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate) -> float:
    """Answers of the base and the tuned model, 16 rows at once; the base often runs on to the limit."""
    rows = min(settings.evaluation.rows, lengths.rows - train_rows(lengths, settings.data.validation_split))
    passes = 2 * math.ceil(rows / ANSWER_BATCH) * settings.evaluation.max_new_tokens
    weights = linear_parameters(spec) + spec.vocabulary_size * spec.hidden_size
    return passes * (spec.layers * rate.layer_seconds + 2.0 * ANSWER_BATCH * weights / rate.flops)


def _rate(training: TrainingSettings, machine: Machine) -> Rate:
    if training.device == "cpu" or not machine.gpu.gpus:
        cores, per_core = machine.host.cores, CPU_CORE_FLOPS[training.compute_dtype]
        words = f"{per_core / 1e9:.0f} GFLOP/s a core as measured on an x86 server, {cores} cores"
        return Rate(per_core * cores**CPU_SCALING, CPU_LAYER_SECONDS, 6.0, words)
    gpu = machine.gpu.gpus[0]
    peak, known = _gpu_peak(gpu)
    words = f"{REACHED:.0%} of about {peak / 1e12:.0f} TFLOP/s ({known}); not measured on this GPU"
    return Rate(REACHED * peak, GPU_LAYER_SECONDS, 20.0, words)


def _gpu_peak(gpu: Gpu) -> tuple[float, str]:
    for name, peak in GPU_PEAKS.items():
        if name in gpu.name:
            return peak, f"a {name}'s 16-bit rate"
    capability = gpu.compute_capability or (7, 0)
    for least, peak in CAPABILITY_PEAKS.items():
        if capability >= least:
            return peak, f"a low figure for compute capability {capability[0]}.{capability[1]}"
    return 10e12, "a low figure for an old GPU"
