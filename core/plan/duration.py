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
from ollama_tune.core.plan.gpus import rows_a_step, taken
from ollama_tune.core.plan.memory import linear_parameters, weight_bytes
from ollama_tune.core.plan.methods import adapter_parameters, trained_parameters, virtual_tokens
from ollama_tune.core.plan.padding import sequences
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.sharding import layer_bytes
from ollama_tune.core.plan.speed import REACHED, Rate, expected_rate, rate_of, remember
from ollama_tune.core.plan.stopping import OF_LABELS, SCORED_ROWS
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
    training, lengths = settings.training, lengths.learned(settings.training.objective)
    rows = train_rows(lengths, settings.data.validation_split)
    steps = steps_of(training, rows, lengths)
    mean = lengths.mean(training.sequence_length)
    tokens = int(rows * mean * training.epochs)
    rate = rate_of(training, machine, way_of(spec, training).path, spec.parameters)
    held_out = min(lengths.rows - rows, VALIDATION_ROWS)
    computing = training_seconds(settings, spec, lengths, rate, held_out)
    computing += _answer_seconds(settings, spec, lengths, rate)
    trained = 4 * trained_parameters(training, spec)
    kept = 4 * spec.parameters if training.method == "full" else trained
    return WorkEstimate(
        steps=steps,
        tokens=tokens,
        seconds=rate.start_seconds + spec.weight_bytes / LOAD_BYTES + computing,
        checkpoint_bytes=KEPT_CHECKPOINTS * 3 * trained + kept,
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
    mean = lengths.mean(settings.training.sequence_length)
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
    """The most that the GPUs draw while they compute, in kWh; the rest of the box is not known."""
    limits = [gpu.power_limit for gpu in taken(training, machine.gpu.gpus)]
    known = [limit for limit in limits if limit is not None]
    return sum(known) * seconds / 3.6e6 if known and len(known) == len(limits) else None


def _ollama_bytes(settings: Settings, spec: ModelSpec, machine: Machine) -> int:
    """What an Ollama on this box writes for the model; another host's disk is not ours."""
    wanted, server = settings.export, machine.ollama
    if wanted.name is None or not wanted.push or not server.local or not server.reachable:
        return 0
    return ollama_copies(server) * export_bytes(spec, wanted.type)


def token_flops(settings: Settings, spec: ModelSpec, lengths: Lengths) -> tuple[float, float]:
    """Arithmetic of a forward and of a backward pass, a token.

    A forward pass takes 2 a weight, the head only on trained tokens, and attention over half the row;
    backward as much again for the activations of the layers that learn, as much for the weights that learn,
    and what is recomputed once more.
    """
    training = settings.training
    share = 1 - training.freeze_layers / spec.layers
    mean = lengths.mean(training.sequence_length)
    trained = lengths.trained_tokens / max(lengths.tokens, 1)
    head = spec.vocabulary_size * spec.hidden_size * trained
    adapter = adapter_parameters(training, spec)
    learned = adapter + (share * linear_parameters(spec) + head if training.method == "full" else 0)
    attention = mean * spec.heads * spec.head_dim * spec.layers
    layers = 2.0 * (linear_parameters(spec) + adapter) + 2 * attention
    forward = layers + 2.0 * head
    backward = share * (layers + 3 * attention + _again(training, spec, layers)) + 2.0 * head
    return forward, backward + 2.0 * learned


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


def measurements(training: TrainingSettings, steps: int) -> int:
    """How often a run measures on the held-out rows."""
    return steps // training.evaluation_interval if training.evaluation_interval else MEASUREMENTS


def training_seconds(
    settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate, held_out: int = 0
) -> float:
    """Training rows in both passes; `held_out` validation rows forward, at each measurement, and those whose
    labels decide which state is best once more."""
    training, lengths = settings.training, lengths.learned(settings.training.objective)
    rows = train_rows(lengths, settings.data.validation_split)
    mean = lengths.mean(training.sequence_length)
    mean += virtual_tokens(training)
    way = way_of(spec, training)
    mean *= PADDING if way.padded and not training.packing else 1.0
    forward, backward = token_flops(settings, spec, lengths)
    steps = steps_of(training, rows, lengths)
    times = measurements(training, steps)
    seen, measured = rows * training.epochs, held_out * (times + 2)
    if training.early_stopping_metric in OF_LABELS:
        measured += min(settings.evaluation.rows, SCORED_ROWS, held_out) * times
    arithmetic = mean * (seen * (forward + backward) + measured * forward)
    if training.objective == "dpo":
        arithmetic += mean * (rows + held_out) * forward
    batches = sequences(lengths, training, rows) * training.epochs
    passes = (3 * batches + measured) / training.batch_size
    if training.quantization == "nf4":
        arithmetic += NF4_FLOPS * linear_parameters(spec) * REACHED * passes
    moved = 0.0
    if training.gradient_checkpointing == "offload" and training.device == "cuda":
        moved = 4.0 * seen * mean * spec.hidden_size * spec.layers / HOST_BYTES
    alone = arithmetic / rate.flops + passes * spec.layers * rate.layer_seconds + moved
    together = rate.together(rows_a_step(training))
    gathered = (
        (2 * batches + measured) / training.batch_size / together * _gather_seconds(training, spec, rate)
    )
    return max(alone / together, gathered)


def _gather_seconds(training: TrainingSettings, spec: ModelSpec, rate: Rate) -> float:
    """What the layers' weights take that a GPU gets from the others in one pass through a shared-out model.

    They travel while the layer before is computed, so the longer of both counts.
    """
    if training.sharding != "fsdp" or rate.gpus == 1:
        return 0.0
    held = layer_bytes(Shape.of(spec), training)
    return held * (rate.gpus - 1) / rate.gpus / rate.link


def _answer_seconds(settings: Settings, spec: ModelSpec, lengths: Lengths, rate: Rate) -> float:
    """Answers of the base and the tuned model, some rows at once; the base often runs on to the limit.

    Where answers decide which state is best, they are written at each measurement too. A token takes the
    arithmetic of these rows or reading all weights once, whichever is longer.
    """
    held = lengths.rows - train_rows(lengths, settings.data.validation_split)
    rows = min(settings.evaluation.rows, held)
    if rows <= 0:
        return 0.0
    at_once = answer_rows(spec, settings.training)
    groups = math.ceil(rows / at_once)
    passes = 2 * groups * settings.evaluation.max_new_tokens
    if settings.training.early_stopping_metric not in ("loss", *OF_LABELS):
        steps = steps_of(settings.training, lengths.rows - held, lengths)
        scored = math.ceil(min(rows, SCORED_ROWS) / at_once) * settings.evaluation.max_new_tokens
        passes += measurements(settings.training, steps) * scored
    weights = linear_parameters(spec) + spec.vocabulary_size * spec.hidden_size
    reading = weight_bytes(spec, settings.training) / rate.bandwidth
    computing = 2.0 * rows / groups * weights / rate.flops
    return passes * (spec.layers * rate.layer_seconds + max(reading, computing))
