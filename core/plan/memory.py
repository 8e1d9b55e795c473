"""The predicted peak of memory, by part, from the model's shape; pure arithmetic, so instant.

The figure is for what the worker runs, by the path that it takes: rows end to end where that is known to be
right, and a loss that only ever holds the logits of a chunk of supervised tokens. What a step allocates comes
from `formula` and `fast_formula`; here stands what comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.calibration import gpu_ratio
from ollama_tune.core.plan.fast_formula import formula_of
from ollama_tune.core.plan.formula import Formula
from ollama_tune.core.plan.gpus import of_one, taken, world_of
from ollama_tune.core.plan.methods import extra_parts
from ollama_tune.core.plan.padding import largest_batch, longest_row
from ollama_tune.core.plan.paths import PathName, way_of
from ollama_tune.core.plan.predict import CUDA_CONTEXT
from ollama_tune.core.plan.request import as_request
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.sharding import can_share_out, of_many
from ollama_tune.core.plan.values import MemoryEstimate, MemoryPart

GIB = 1 << 30
Settled = Literal["ddp", "fsdp"]
MIB = 1 << 20
LIBRARIES: Mapping[PathName, int] = {"fast": 264 * MIB, "general": 440 * MIB}
"""A worker of a path with its libraries and no model; the fast one has no transformers and peft. Measured."""
BITSANDBYTES = 120 * MIB
"""What bitsandbytes adds where the fast path computes with it; peft loads it in any case. Measured."""
EXPORT = 512 * MIB
"""A worker that proves an export: torch, and transformers and PEFT as independent readers. Measured after
runs of the bundled model: 477 to 479 MiB, and 629 where 16-bit products had been compiled."""
VOCABULARY_ENTRY = 1100
"""Bytes of the tokenizer for each entry of its vocabulary; measured from 32,000 to 256,000."""
COMPILED = int(0.9 * MIB)
COMPILED_LIMIT = 1024
"""A product in 16 bit on the CPU, which oneDNN compiles for its shape: 0.6 to 1.7 MiB measured; it keeps so
many."""
HEAP_COPIES = 48
HEAP_LIMIT = int(0.75 * GIB)
HEAP_LEAST, HEAP_SHARE = 64 * MIB, 0.25
"""The C library keeps about that many freed buffers of a layer, of 32 MiB at most, but not much more than
that share of what a step makes and frees; measured."""
ALLOCATOR = 0.08
"""Share by which PyTorch's reserved memory exceeds what is allocated besides the weights."""
FORMULA = "formula"
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "loss")
_UNSURE = ("other", "workspaces", "context")


def linear_parameters(spec: ModelSpec) -> int:
    """Weights of the layers' linear modules (what NF4 shrinks), without embeddings and head."""
    return min(Shape.of(spec).linear_parameters(), spec.parameters)


def weight_bytes(spec: ModelSpec, training: TrainingSettings) -> int:
    """The frozen base weights as the worker holds them."""
    return int(_formula(training, spec, training.sequence_length).weights())


def _formula(training: TrainingSettings, spec: ModelSpec, longest: int, tokens: int = 0) -> Formula:
    return formula_of(Shape.of(spec), as_request(training, way_of(spec, training), longest, tokens))


def predict(
    settings: Settings,
    spec: ModelSpec,
    machine: Machine,
    longest: int,
    correction: float = 1.0,
    tokens: int = 0,
) -> MemoryEstimate:
    """The peak of training by part against what is free; `longest` is the longest row in tokens.

    `tokens` are those of the largest micro-batch without padding; 0: its rows are all as long. On the CPU
    `free` is the RAM available; on a GPU the driver's free memory less a spare for the desktop and for what
    changes during the run. Of several GPUs it is the need of each, against the one with the least memory.
    `correction` is what the formula is known to be off by.
    """
    if settings.training.sharding == "auto":
        sharding = settled(settings.training, spec, machine, longest, tokens)
        settings = with_sharding(settings, sharding)
    world = world_of(settings.training, machine)
    exported = settings.export.name is not None
    parts = predict_parts(settings.training, spec, longest, tokens, world, exported=exported)
    return estimate_of(settings.training, spec, machine, parts, FORMULA, correction)


def with_sharding(settings: Settings, sharding: Settled) -> Settings:
    """The settings with what `auto` means here."""
    training = settings.training.model_copy(update={"sharding": sharding})
    return settings.model_copy(update={"training": training})


def settled(
    training: TrainingSettings, spec: ModelSpec, machine: Machine, longest: int, tokens: int = 0
) -> Settled:
    """What `auto` means on this box: the whole model on each GPU, or a part where only that fits.

    Longest and tokens as `predict` takes them; settings that name one are taken at their word.
    """
    if training.sharding != "auto":
        return training.sharding
    world = world_of(training, machine)
    if world == 1 or not can_share_out(training):
        return "ddp"

    def fits(sharding: Settled) -> bool:
        asked = training.model_copy(update={"sharding": sharding})
        parts = predict_parts(asked, spec, longest, tokens, world)
        return estimate_of(asked, spec, machine, parts, FORMULA).fits

    return "fsdp" if not fits("ddp") and fits("fsdp") else "ddp"


def predicted(
    settings: Settings, spec: ModelSpec, machine: Machine, lengths: Lengths, correction: float = 1.0
) -> MemoryEstimate:
    """As `predict`, of the longest rows of the data."""
    training = of_one(settings.training, world_of(settings.training, machine))
    longest, tokens = longest_row(lengths, training), largest_batch(lengths, training)
    return predict(settings, spec, machine, longest, correction, tokens)


def predict_parts(
    training: TrainingSettings,
    spec: ModelSpec,
    longest: int,
    tokens: int = 0,
    world: int = 1,
    *,
    exported: bool = False,
) -> tuple[MemoryPart, ...]:
    """The parts of the peak by the plain formula, of rows as `predict` takes them.

    Of `world` processes on GPUs it is the peak of one; on the CPU, which they share, of all together. There
    a tiny model's peak is that of the export, where the same process has one to make.
    """
    formula = _formula(of_one(training, world), spec, longest, tokens)
    found = of_many(formula.parts() + extra_parts(training, spec), formula.shape, training, world)
    if training.device == "cuda":
        return gpu_parts(found)
    passing = found.get("activations", 0) + found.get("loss", 0)
    whole = _cpu_parts(found, _process(formula, passing))
    *named, other = (replace(part, bytes=world * part.bytes) for part in whole)
    if exported:
        least = _exporting(formula) - sum(part.bytes for part in named)
        other = replace(other, bytes=max(other.bytes, least))
    return *named, other


def gpu_parts(found: Mapping[str, int]) -> tuple[MemoryPart, ...]:
    """Allocated bytes by part, and what the allocator and the CUDA context hold besides."""
    parts = {name: found.get(name, 0) for name in _PARTS}
    other = int(ALLOCATOR * (sum(parts.values()) - parts["weights"]))
    parts |= {"other": other, "workspaces": found.get("workspaces", 0), "context": CUDA_CONTEXT}
    return tuple(MemoryPart(name, count) for name, count in parts.items())


def _cpu_parts(found: Mapping[str, int], process: int) -> tuple[MemoryPart, ...]:
    parts = {name: found.get(name, 0) for name in _PARTS}
    other = int(ALLOCATOR * (sum(parts.values()) - parts["weights"])) + process
    return tuple(MemoryPart(name, count) for name, count in (parts | {"other": other}).items())


def estimate_of(
    training: TrainingSettings,
    spec: ModelSpec,
    machine: Machine,
    parts: tuple[MemoryPart, ...],
    method: str,
    correction: float = 1.0,
) -> MemoryEstimate:
    """Parts against what is free, corrected by what a probe measured on this GPU, if one did.

    `method` is the layer that the parts come from: the formula or the simulation.
    """
    ratio = gpu_ratio(machine, spec.model_type, training)
    free, total = _free(training, machine)
    words = method if ratio is None else f"measured x {ratio:.2f}, {method}"
    world = world_of(training, machine)
    return MemoryEstimate(
        training.device,
        _corrected(parts, (ratio or 1.0) * correction),
        free,
        total,
        words,
        processes=world,
        sharded=world > 1 and training.sharding == "fsdp",
    )


def _corrected(parts: tuple[MemoryPart, ...], factor: float) -> tuple[MemoryPart, ...]:
    """The parts with a sum that is larger by that factor.

    The difference goes to what is known least: allocator, context and workspaces; the tensors stay as they
    are counted, so the sum never falls below them.
    """
    missing = round((factor - 1) * sum(part.bytes for part in parts))
    found = []
    for part in parts:
        change = max(missing, -part.bytes) if part.name in _UNSURE else 0
        missing -= change
        found.append(MemoryPart(part.name, part.bytes + change))
    return tuple(found)


def _compiled(formula: Formula) -> int:
    """What oneDNN keeps of a training in 16 bit, to the end of the process."""
    return COMPILED * min(formula.products(), COMPILED_LIMIT) if formula.walk.size < 4 else 0


def _exporting(formula: Formula) -> int:
    """What a CPU worker holds in an export after the training: two tokenizers, and no model of its own."""
    return EXPORT + 2 * VOCABULARY_ENTRY * formula.shape.V + _compiled(formula)


def _process(formula: Formula, passing: int) -> int:
    """What a CPU worker holds besides tensors: libraries, tokenizer, compiled products, freed memory.

    `passing` are the bytes of tensors that a step makes and frees.
    """
    request = formula.request
    few_bits = request.quantization == "nf4" or request.optimizer.endswith("8bit")
    extra = BITSANDBYTES if request.path == "fast" and few_bits else 0
    libraries = LIBRARIES[request.path] + extra + VOCABULARY_ENTRY * formula.shape.V
    return libraries + _compiled(formula) + _heap(formula, passing)


def _heap(formula: Formula, passing: int) -> int:
    """Memory of a CPU worker that is free but not given back to the system."""
    walk = formula.walk
    buffer = walk.tokens * (formula.shape.H + formula.shape.I) * walk.size
    return min(HEAP_COPIES * buffer, HEAP_LIMIT, HEAP_LEAST + int(HEAP_SHARE * passing))


def _free(training: TrainingSettings, machine: Machine) -> tuple[int, int]:
    if training.device == "cpu":
        return machine.host.ram_available, machine.host.ram_total
    gpus = taken(training, machine.gpu.gpus)
    if not gpus:
        return 0, 0
    return min((max(gpu.free - _spare(gpu), 0), gpu.total) for gpu in gpus)


def _spare(gpu: Gpu) -> int:
    desktop = GIB // 2 if gpu.display else 0
    return max(GIB // 4, gpu.total // 50) + desktop
