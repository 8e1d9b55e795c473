"""How long a run takes and what it writes, from its arithmetic and a stated rate of the device."""

from __future__ import annotations

import math

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.about import missing_bytes
from ollama_tune.core.models.locate import HUB_FACTS, is_complete, is_hub_id, snapshots
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.answers import answer_rows
from ollama_tune.core.plan.gguf_types import export_bytes, ollama_copies, written_bytes
from ollama_tune.core.plan.memory import adapter_parameters, linear_parameters, weight_bytes
from ollama_tune.core.plan.padding import sequences
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.speed import REACHED, Rate, expected_rate, rate_of, remember
from ollama_tune.core.plan.values import WorkEstimate

PADDING = 1.05
"""Tokens computed for each useful one where rows are padded: batches are made of rows of similar length."""
HOST_BYTES = 10e9
"""Bytes a second between a GPU and the computer's memory, there and back one after the other."""
NF4_FLOPS = 1400
"""Arithmetic that dequantizing a weight costs a micro-batch, at the rate of a GPU's matrix units."""
KEPT_CHECKPOINTS = 2
MEASUREMENTS = 8
VALIDATION_ROWS = 512
"""Held-out rows that a measurement computes at most."""
LOAD_BYTES = 1e9
"""Bytes of weights read a second."""


def train_rows(lengths: Lengths, validation_split: float) -> int:
    """Rows that are learned from."""
    return max(lengths.rows - round(lengths.rows * validation_split), 0)


def steps_of(training: TrainingSettings, rows: int, lengths: Lengths | None = None) -> int:
    """Optimizer steps of a run, counted as the worker does; packed, by the lengths of typical rows."""
    count = sequences(lengths, training, rows) if lengths else rows
    batches = math.ceil(count / training.batch_size)
    return max(
        math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation_steps) - 1e-9), 1
    )


def estimate(settings: Settings, spec: ModelSpec, lengths: Lengths, machine: Machine) -> WorkEstimate:
    """Steps, tokens, seconds from start to the last answer, and bytes of checkpoints and export."""
    training = settings.training
    rows = train_rows(lengths, settings.data.validation_split)
    steps = steps_of(training, rows, lengths)
    mean = min(lengths.tokens / max(lengths.rows, 1), training.sequence_length)
    tokens = int(rows * mean * training.epochs)
    rate = rate_of(training, machine, way_of(spec, training).path, spec.parameters)
    held_out = min(lengths.rows - rows, VALIDATION_ROWS)
    computing = training_seconds(settings, spec, lengths, rate, held_out)
    computing += _answer_seconds(settings, spec, lengths, rate)
    adapter = 4 * adapter_parameters(spec, training.rank, training.targets)
    return WorkEstimate(
        steps=steps,
        tokens=tokens,
        seconds=rate.start_seconds + spec.weight_bytes / LOAD_BYTES + computing,
        checkpoint_bytes=KEPT_CHECKPOINTS * 3 * adapter + adapter,
        export_bytes=written_bytes(spec, settings),
        ground=rate.ground,
        ollama_bytes=_ollama_bytes(settings, spec, machine),
        download_bytes=download_bytes(spec),
        spread=rate.spread,
        energy_kwh=_energy(training, machine, computing),
    )


def learn_speed(
    settings: Settings, spec: ModelSpec, lengths: Lengths, machine: Machine, tokens_per_second: float
) -> None:
    """Let later plans on this device count with the speed that a run reached in its training steps.

    `lengths` are those of the run's rows; tokens are counted without padding, as in `step` events.
    """
    rows = train_rows(lengths, settings.data.validation_split)
    mean = min(lengths.tokens / max(lengths.rows, 1), settings.training.sequence_length)
    tokens = rows * mean * settings.training.epochs
    path = way_of(spec, settings.training).path
    expected = training_seconds(settings, spec, lengths, expected_rate(settings.training, machine, path), 0)
    if tokens > 0:
        ratio = tokens_per_second * expected / tokens
        remember(settings.training, machine, path, spec.parameters, ratio)


def download_bytes(spec: ModelSpec) -> int:
    """Bytes of the base model's weights that are still to be fetched from the hub."""
    if not is_hub_id(spec.source) or any(map(is_complete, [spec.folder, *snapshots(spec.source)])):
        return 0
    return missing_bytes(spec, read_json(spec.folder / HUB_FACTS) or {})


def _energy(training: TrainingSettings, machine: Machine, seconds: float) -> float | None:
    """The most that the GPU draws while it computes, in kWh; the rest of the box is not known."""
    limit = machine.gpu.gpus[0].power_limit if machine.gpu.gpus else None
    if training.device != "cuda" or limit is None:
        return None
    return limit * seconds / 3.6e6


def _ollama_bytes(settings: Settings, spec: ModelSpec, machine: Machine) -> int:
    """What an Ollama on this box writes for the model; another host's disk is not ours."""
    wanted, server = settings.export, machine.ollama
    if wanted.name is None or not wanted.push or not server.local or not server.reachable:
        return 0
    return ollama_copies(server) * export_bytes(spec, wanted.type)


def token_flops(settings: Settings, spec: ModelSpec, lengths: Lengths) -> tuple[float, float]:
    """Arithmetic of a forward and of a backward pass, a token.

    A forward pass takes 2 a weight, the head only on trained tokens, and attention over half the row;
    backward goes to the activations only, as much again, and what is recomputed once more.
    """
    mean = min(lengths.tokens / max(lengths.rows, 1), settings.training.sequence_length)
    trained = lengths.trained_tokens / max(lengths.tokens, 1)
    head = spec.vocabulary_size * spec.hidden_size * trained
    adapter = adapter_parameters(spec, settings.training.rank, settings.training.targets)
    attention = mean * spec.heads * spec.head_dim * spec.layers
    layers = 2.0 * (linear_parameters(spec) + adapter) + 2 * attention
    forward = layers + 2.0 * head
    backward = forward + 2.0 * adapter + 3 * attention
    return forward, backward + _again(settings.training, spec, layers)


def _again(training: TrainingSettings, spec: ModelSpec, layers: float) -> float:
    """Arithmetic a token that the backward pass repeats: of the layers, or of their feed-forward part.

    The fast path makes gate and up again, transformers the whole part.
    """
    if training.gradient_checkpointing == "none":
        return 0.0
    if training.gradient_checkpointing != "mlp":
        return layers
    products = 2 if way_of(spec, training).path == "fast" else 3
    return 2.0 * products * spec.hidden_size * spec.intermediate_size * spec.layers


def training_seconds(
    settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate, held_out: int = 0
) -> float:
    """Training rows in both passes; `held_out` validation rows forward, at each measurement."""
    training = settings.training
    rows = train_rows(lengths, settings.data.validation_split)
    mean = min(lengths.tokens / max(lengths.rows, 1), training.sequence_length)
    way = way_of(spec, training)
    mean *= PADDING if way.padded and not training.packing else 1.0
    forward, backward = token_flops(settings, spec, lengths)
    steps = steps_of(training, rows, lengths)
    measurements = steps // training.evaluation_interval if training.evaluation_interval else MEASUREMENTS
    seen, measured = rows * training.epochs, held_out * (measurements + 2)
    arithmetic = mean * (seen * (forward + backward) + measured * forward)
    batches = sequences(lengths, training, rows) * training.epochs
    passes = (3 * batches + measured) / training.batch_size
    if training.quantization == "nf4":
        arithmetic += NF4_FLOPS * linear_parameters(spec) * REACHED * passes
    moved = 0.0
    if training.gradient_checkpointing == "offload" and training.device == "cuda":
        moved = 4.0 * seen * mean * spec.hidden_size * spec.layers / HOST_BYTES
    return arithmetic / rate.flops + passes * spec.layers * rate.layer_seconds + moved


def _answer_seconds(settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate) -> float:
    """Answers of the base and the tuned model, some rows at once; the base often runs on to the limit.

    A token takes the arithmetic of these rows or reading all weights once, whichever is longer.
    """
    rows = min(settings.evaluation.rows, lengths.rows - train_rows(lengths, settings.data.validation_split))
    if rows <= 0:
        return 0.0
    groups = math.ceil(rows / answer_rows(spec, settings.training))
    passes = 2 * groups * settings.evaluation.max_new_tokens
    weights = linear_parameters(spec) + spec.vocabulary_size * spec.hidden_size
    reading = weight_bytes(spec, settings.training) / rate.bandwidth
    computing = 2.0 * rows / groups * weights / rate.flops
    return passes * (spec.layers * rate.layer_seconds + max(reading, computing))
