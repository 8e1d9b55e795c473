"""Confirms a plan's memory by the simulation of the installed libraries, and remembers what it found.

The closed formula chooses, at once; the simulation of the chosen settings takes seconds and runs in a
process of its own. Where its figure does not fit, the nearest plan that does by it is offered.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.paths import cache_dir
from ollama_tune.core.plan.calibration import installed
from ollama_tune.core.plan.checks import plan_warnings
from ollama_tune.core.plan.gpus import of_one, world_of
from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.memory import estimate_of, gpu_parts, predicted, with_sharding
from ollama_tune.core.plan.methods import extra_parts
from ollama_tune.core.plan.offers import MEMORY_FIELDS
from ollama_tune.core.plan.padding import largest_batch, longest_row
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.predict import Simulator
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.request import MemoryRequest, as_request
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.shape import Shape, config_of
from ollama_tune.core.plan.sharding import of_many
from ollama_tune.core.plan.values import MemoryEstimate, Offer, Plan
from ollama_tune.core.text import human_bytes, one_line

SIMULATED = "simulated"
NOTEWORTHY = 0.02
"""Smaller differences between formula and simulation are not worth a word."""
ROUNDS = 2
"""Plans that are simulated to find one that fits."""
MOST = 200
"""Remembered results."""


def can_confirm(plan: Plan, machine: Machine) -> bool:
    """Whether there is something to simulate: tensors on a GPU. Of the CPU's memory the formula is all.

    So it is for a soft prompt, whose tensors besides the model's own are few.
    """
    training = plan.settings.training
    simulated = training.device == "cuda" and training.method not in SOFT_PROMPTS
    return simulated and bool(machine.gpu.gpus) and not is_confirmed(plan)


def is_confirmed(plan: Plan) -> bool:
    """Whether the simulation has had its say."""
    return SIMULATED in plan.memory.method or bool(plan.memory.remark)


def confirm(plan: Plan, machine: Machine, spec: ModelSpec, lengths: Lengths, simulator: Simulator) -> Plan:
    """The plan with its memory simulated; where that does not fit, with the nearest plan that does.

    A model that the libraries cannot simulate keeps the formula's figure, and the reason beside it.
    """
    try:
        memory = _simulate(plan.settings, machine, spec, lengths, simulator)
    except TuneError as error:
        return replace(plan, memory=replace(plan.memory, remark=one_line(error.what, 120)))
    confirmed = replace(plan, memory=_compared(memory, plan.memory), offers=())
    if not memory.fits:
        offers = _nearest(plan, machine, spec, lengths, simulator, memory) or plan.offers
        confirmed = replace(confirmed, offers=offers)
    old = set(plan_warnings(plan, machine, spec, lengths))
    kept = [warning for warning in plan.warnings if warning not in old]
    return replace(confirmed, warnings=(*kept, *plan_warnings(confirmed, machine, spec, lengths)))


def _simulate(
    settings: Settings, machine: Machine, spec: ModelSpec, lengths: Lengths, simulator: Simulator
) -> MemoryEstimate:
    """The simulated peak of these settings, of one process; `TuneError` where the libraries cannot."""
    world = world_of(settings.training, machine)
    sharded = predicted(settings, spec, machine, lengths).sharded
    whole = with_sharding(settings, "fsdp" if sharded else "ddp").training
    training = of_one(whole, world)
    asked = as_request(training, way_of(spec, training), *_largest(lengths, training))
    found = Counter(_parts(config_of(spec), asked, simulator)) + extra_parts(training, spec)
    parts = gpu_parts(of_many(found, Shape.of(spec), training, world))
    return estimate_of(whole, spec, machine, parts, SIMULATED)


def _largest(lengths: Lengths, training: TrainingSettings) -> tuple[int, int]:
    return longest_row(lengths, training), largest_batch(lengths, training)


def _compared(memory: MemoryEstimate, formula: MemoryEstimate) -> MemoryEstimate:
    """The simulated figure, with the formula's where they differ."""
    share = formula.needed / max(memory.needed, 1) - 1
    if abs(share) < NOTEWORTHY:
        return memory
    return replace(memory, remark=f"formula {human_bytes(formula.needed)}")


def _nearest(
    plan: Plan,
    machine: Machine,
    spec: ModelSpec,
    lengths: Lengths,
    simulator: Simulator,
    memory: MemoryEstimate,
) -> tuple[Offer, ...]:
    """A plan that fits when the formula is corrected by what the simulation says, and simulated itself."""
    mine = {path: plan.settings.get(path) for path in plan.changed}
    settings = plan.settings
    for _ in range(ROUNDS):
        correction = memory.needed / max(predicted(settings, spec, machine, lengths).needed, 1)
        other = make_plan(machine, spec, lengths, mine, max(correction, 1.0))
        if not other.memory.fits:
            return other.offers
        settings = other.settings
        memory = _simulate(settings, machine, spec, lengths, simulator)
        if memory.fits:
            return (_offer(plan.settings, settings, memory),)
    return ()


def _offer(before: Settings, after: Settings, memory: MemoryEstimate) -> Offer:
    changes = {path: after.get(path) for path in MEMORY_FIELDS if after.get(path) != before.get(path)}
    steps = [f"{path.partition('.')[2]} {before.get(path)} → {value}" for path, value in changes.items()]
    return Offer(changes, f"{', '.join(steps)}: simulated, it fits", memory)


# What was simulated before


def _parts(config: Mapping[str, Any], request: MemoryRequest, simulator: Simulator) -> dict[str, int]:
    """Allocated bytes by part, from the memory of earlier simulations with the same libraries if there."""
    key, known = _key(config, request), _known()
    if key not in known:
        known[key] = dict(simulator.predict(config, request).allocated)
        write_atomic(_path(), json.dumps(dict(list(known.items())[-MOST:])))
    return known[key]


def _key(config: Mapping[str, Any], request: MemoryRequest) -> str:
    told = [dict(config), request.deciding(), installed(), version("ollama-tune")]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _path() -> Path:
    return cache_dir() / "simulations.json"


def _known() -> dict[str, dict[str, int]]:
    """Earlier results; a damaged file counts as none."""
    tree = read_table(_path())
    try:
        return {key: {name: int(size) for name, size in parts.items()} for key, parts in tree.items()}
    except (ValueError, AttributeError, TypeError):
        return {}
