"""What a device reaches: from what was measured here, from a card's public figures, or a low guess."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.paths import cache_dir
from ollama_tune.core.plan.cards import Card, find_card
from ollama_tune.core.plan.gpus import taken
from ollama_tune.core.plan.paths import PathName
from ollama_tune.core.plan.settings import TrainingSettings

CPU_CORE_FLOPS = {"float32": 80e9, "bfloat16": 60e9, "float16": 60e9}
"""float32: 80 to 140 measured on one core of an x86 server with AVX-512. bfloat16: a low figure for a CPU
without units for it."""
AMX_CORE_FLOPS = {"general": 130e9, "fast": 180e9}
"""bfloat16 with AMX on one core of such a server, by path: a model of 40 million parameters."""
CPU_SCALING = 0.85
"""n cores do the work of n to that power."""
CPU_LAYER_SECONDS = 1.6e-3
GPU_LAYER_SECONDS = 0.5e-3
CPU_BANDWIDTH = 20e9
REACHED = 0.4
REACHED_HOPPER = 0.3
"""Share of a card's dense 16-bit rate that fine-tuning through transformers reaches; of Hopper's, whose
matrix units wait for the rest sooner, less: 790 of 989 TFLOP/s is the most that was measured."""
BANDWIDTH_REACHED = 0.6
START_SECONDS = {"cuda general": 20.0, "cuda fast": 12.0, "cpu general": 6.0, "cpu fast": 2.0}
"""Until the first step, by device and path: imports and kernels; loading weights comes on top."""
LOW_PEAKS = {
    (12, 0): 40e12,
    (10, 0): 800e12,
    (9, 0): 400e12,
    (8, 9): 30e12,
    (8, 6): 25e12,
    (8, 0): 150e12,
    (7, 0): 30e12,
}
"""A low figure for a GPU of that compute capability or newer."""
LOW_BANDWIDTH = 250e9
UNMEASURED, KNOWN, MEASURED = 3.0, 2.0, 1.3
"""How far off a time may be: with a low guess, with known figures, with a speed measured here."""
TRUSTED = (0.02, 50.0)
TOGETHER = 0.85
"""Share of n times its speed that a GPU reaches beside n - 1 others: rows are not all alike, and what is
learned travels twice a step. A usual figure for adapters, not measured here."""
LINK_BYTES, NVLINK_BYTES = 10e9, 100e9
"""Bytes a second that a GPU gets from the others: through PCIe, and where NVLink joins the cards."""
JOINED = ("V100", "A100", "H100", "H200", "B200", "GH200")
"""Cards that usually stand in boxes with NVLink; those called PCIe do not."""


@dataclass(frozen=True)
class Rate:
    """What a device reaches: arithmetic and bytes a second, seconds a layer and pass cost at least.

    `start_seconds` pass before the first step. Times made of it may be off by the factor `spread`. So many
    `gpus` share the rows of a step; each gets `link` bytes a second from the others.
    """

    flops: float
    bandwidth: float
    layer_seconds: float
    start_seconds: float
    spread: float
    ground: str
    gpus: int = 1
    link: float = LINK_BYTES

    def together(self, rows_a_step: int) -> float:
        """How many times as fast as one device all are, in steps of so many rows."""
        if self.gpus == 1:
            return 1.0
        return max(TOGETHER * rows_a_step / math.ceil(rows_a_step / self.gpus), 1.0)


def rate_of(training: TrainingSettings, machine: Machine, path: PathName, parameters: int) -> Rate:
    """The device's rate for these settings, corrected by earlier runs of models of about that size."""
    rate = expected_rate(training, machine, path)
    device = "GPU" if training.device == "cuda" else "CPU"
    ratio = _known().get(_key(training, machine, path, parameters))
    if ratio is None:
        return rate
    return replace(
        rate,
        flops=rate.flops * ratio,
        bandwidth=rate.bandwidth * ratio,
        layer_seconds=rate.layer_seconds / ratio,
        spread=MEASURED,
        ground=f"as fast as the last run of a model of this size on this {device}",
    )


def remember(
    training: TrainingSettings, machine: Machine, path: PathName, parameters: int, ratio: float
) -> None:
    """Keep measured / expected speed of a run for the next plans on this device; nonsense is not kept.

    `ratio` is against the expectation without earlier measurements.
    """
    if not TRUSTED[0] <= ratio <= TRUSTED[1]:
        return
    found = {_key(training, machine, path, parameters): round(ratio, 4)}
    write_atomic(_path(), json.dumps(_known() | found, indent=1))


def expected_rate(training: TrainingSettings, machine: Machine, path: PathName = "general") -> Rate:
    """The rate without earlier measurements, which `remember` compares with."""
    if training.device == "cpu" or not machine.gpu.gpus:
        return _cpu(training, machine, path)
    gpus = taken(training, machine.gpu.gpus)
    found = min(map(_of_gpu, gpus), key=lambda rate: rate.flops)
    found = replace(found, start_seconds=START_SECONDS[f"cuda {path}"])
    if len(gpus) == 1:
        return found
    words = f"{found.ground}; {len(gpus)} GPUs that reach {TOGETHER:.0%} of {len(gpus)} times that"
    return replace(found, gpus=len(gpus), ground=words)


def _of_gpu(gpu: Gpu) -> Rate:
    card = find_card(gpu.name)
    return _unknown(gpu) if card is None else _carded(gpu, card)


def _path() -> Path:
    return cache_dir() / "speed.json"


def _known() -> dict[str, float]:
    return {
        key: float(ratio)
        for key, ratio in read_table(_path()).items()
        if isinstance(ratio, int | float) and TRUSTED[0] <= ratio <= TRUSTED[1]
    }


def _key(training: TrainingSettings, machine: Machine, path: PathName, parameters: int) -> str:
    """Device, number formats, path, and the model's size as a power of ten: small models mostly wait."""
    gpus = taken(training, machine.gpu.gpus)
    if gpus:
        device = gpus[0].name if len(gpus) == 1 else f"{len(gpus)} x {gpus[0].name}"
    else:
        device = f"{machine.host.cores} x {machine.host.cpu}"
    size = round(math.log10(max(parameters, 1)))
    return f"{device}, {training.compute_dtype} {training.quantization} {path}, 1e{size}"


def _cpu(training: TrainingSettings, machine: Machine, path: PathName) -> Rate:
    cores, per_core = machine.host.cores, CPU_CORE_FLOPS[training.compute_dtype]
    if training.compute_dtype == "bfloat16" and machine.host.bfloat16 == "AMX":
        per_core = AMX_CORE_FLOPS[path]
    words = f"{cores} cores at {per_core / 1e9:.0f} GFLOP/s a core, measured elsewhere"
    rate = per_core * cores**CPU_SCALING
    return Rate(rate, CPU_BANDWIDTH, CPU_LAYER_SECONDS, START_SECONDS[f"cpu {path}"], KNOWN, words)


def _carded(gpu: Gpu, card: Card) -> Rate:
    """By the card's figures; a MIG instance has the share of the chip that it has of the memory."""
    share = min(gpu.total / (card.mib << 20), 1.0) if gpu.mig else 1.0
    reached = REACHED_HOPPER if (9, 0) <= card.capability < (12, 0) else REACHED
    peak = card.teraflops * 1e12 * share
    part = f", {share:.0%} of the chip" if gpu.mig else ""
    words = f"{reached:.0%} of the {card.name}'s {card.teraflops:g} TFLOP/s{part}; not measured on this GPU"
    bandwidth = BANDWIDTH_REACHED * card.bandwidth * 1e9 * share
    joined = card.name.startswith(JOINED) and "PCIe" not in card.name
    link = NVLINK_BYTES if joined else LINK_BYTES
    return Rate(reached * peak, bandwidth, GPU_LAYER_SECONDS, 0.0, KNOWN, words, link=link)


def _unknown(gpu: Gpu) -> Rate:
    own = gpu.compute_capability
    peak = next((peak for least, peak in LOW_PEAKS.items() if own and own >= least), 10e12)
    kind = f"compute capability {own[0]}.{own[1]}" if own else "an unknown GPU"
    words = f"a low figure for {kind}: {REACHED:.0%} of {peak / 1e12:.0f} TFLOP/s"
    return Rate(REACHED * peak, LOW_BANDWIDTH, GPU_LAYER_SECONDS, 0.0, UNMEASURED, words)
