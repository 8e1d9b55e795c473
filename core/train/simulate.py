"""Simulates the memory of a training step: `python -m ollama_tune.core.train.simulate`.

One JSON request a line on stdin (`config`: the tree of a config.json, `settings`: a `MemoryRequest`), one
JSON answer a line on stdout. What the worker would run runs on fake tensors: our own model, or the installed
transformers, peft and bitsandbytes; no weights, no GPU, little RAM. A step runs with few layers and is
extrapolated to all: each phase's peak is linear in the number of layers, their maximum is not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

import torch

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.blueprint import read_blueprint
from ollama_tune.core.plan.paths import named
from ollama_tune.core.plan.request import MemoryRequest, parse_request
from ollama_tune.core.train.memtrace import NotSimulated, Tracker
from ollama_tune.core.train.replay import LAYERS, NotUniform, replayed

MOST_KINDS = 4
"""With more kinds of layers than this a model runs whole."""

Peaks = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Subject:
    """A model to simulate: what tells each of its layers from another, and a step with some of them."""

    kinds: Sequence[Hashable]
    trace: Callable[[Sequence[int]], Tracker]


def subject(config: Mapping[str, Any], request: MemoryRequest) -> Subject:
    """The model of a config.json on the path of the request; `TuneError` where it cannot be computed."""
    if request.path == "general":
        return _general(config, request)
    from ollama_tune.core.train.fast_step import trace_fast

    blueprint = read_blueprint(named(config))

    def trace(layers: Sequence[int]) -> Tracker:
        kinds = tuple(blueprint.kinds[index] for index in layers)
        return trace_fast(replace(blueprint, layers=len(layers), kinds=kinds), _of(request, layers))

    return Subject(_kinds(blueprint.kinds, request), trace)


def _kinds(kinds: Sequence[Hashable], request: MemoryRequest) -> Sequence[Hashable]:
    """What tells each layer from another, frozen ones from those that learn too.

    Then the last one counts as a kind, so that two that learn stand for all: the first of them passes nothing
    on.
    """
    frozen, last = request.freeze_layers, len(kinds) - 1
    if not frozen:
        return kinds
    return [(kind, number < frozen, number == last) for number, kind in enumerate(kinds)]


def _of(request: MemoryRequest, layers: Sequence[int]) -> MemoryRequest:
    """The request for a model with only these layers."""
    frozen = sum(number < request.freeze_layers for number in layers)
    return request.model_copy(update={"freeze_layers": frozen})


def _general(config: Mapping[str, Any], request: MemoryRequest) -> Subject:
    from ollama_tune.core.train.fake_model import layer_kinds, read_config, shortened
    from ollama_tune.core.train.traced_step import trace_general

    whole = read_config(config)

    def trace(layers: Sequence[int]) -> Tracker:
        return trace_general(shortened(whole, layers), _of(request, layers))

    return Subject(_kinds(layer_kinds(whole), request), trace)


def layer_choices(kinds: Sequence[Hashable]) -> tuple[list[int], dict[Hashable, list[int]]]:
    """Which layers stand for all: a few of them, and for each kind the same with one more of it.

    Two layers of a uniform model; else one of each kind, in the order in which the kinds end. A model
    with hardly more layers stands for itself.
    """
    last = {kind: index for index, kind in enumerate(kinds)}
    few = sorted(last.values()) if len(last) > 1 else list(range(min(2, len(kinds))))
    if len(kinds) <= len(few) + 1 or len(last) > MOST_KINDS:
        return list(range(len(kinds))), {}
    more = {kinds[index]: sorted([*few, index]) for index in few}
    return few, more


def extrapolate(kinds: Sequence[Hashable], runs: Mapping[tuple[int, ...], Peaks]) -> Peaks:
    """The peaks with all layers from runs with some of them, keyed by the layers that ran."""
    few, more = layer_choices(kinds)
    base = runs[tuple(few)]
    present = [kinds[index] for index in few]
    found = {phase: dict(parts) for phase, parts in base.items()}
    for kind, layers in more.items():
        missing = kinds.count(kind) - present.count(kind)
        for phase, parts in runs[tuple(layers)].items():
            for part in {*parts, *base[phase]}:
                step = parts.get(part, 0) - base[phase].get(part, 0)
                found[phase][part] = found[phase].get(part, 0) + step * missing
    return found


def simulate(config: Mapping[str, Any], request: MemoryRequest) -> dict[str, Any]:
    """The predicted peak in bytes: `allocated_bytes`, its `parts`, its `phase`, and `unknown` operators.

    `reserved_bytes` is None where the trace does not tell it.
    """
    model = subject(config, request)
    kinds = model.kinds
    few, more = layer_choices(kinds)
    runs = {tuple(layers): model.trace(layers) for layers in [few, *more.values()]}
    peaks = extrapolate(kinds, {layers: done.trace.peaks for layers, done in runs.items()})
    phase = max(peaks, key=lambda name: sum(peaks[name].values()))
    parts = {part: round(size) for part, size in peaks[phase].items() if size}
    return {
        "allocated_bytes": sum(parts.values()),
        "reserved_bytes": _reserved(runs, kinds, request),
        "parts": parts,
        "phase": phase,
        "unknown": sorted(set().union(*(done.unknown for done in runs.values()))),
    }


def _reserved(
    runs: Mapping[tuple[int, ...], Tracker], kinds: Sequence[Hashable], request: MemoryRequest
) -> int | None:
    """What the caching allocator would hold; None where the trace of few layers does not tell."""
    traced = [done for layers, done in runs.items() if len(layers) == LAYERS]
    if len(set(kinds)) > 1 or not traced:
        return None
    try:
        sections = traced[0].trace.sections
        return replayed(sections, len(kinds), expandable=request.expandable_segments).reserved
    except NotUniform:
        return None


def answer(line: str) -> dict[str, Any]:
    """The answer to one request, or its `error`; `refused` says that the request itself was wrong."""
    start = time.perf_counter()
    try:
        asked = json.loads(line)
        found = simulate(asked["config"], parse_request(asked["settings"]))
    except TuneError as error:
        return _failure(error, refused=not isinstance(error, NotSimulated))
    except Exception as error:
        what = f"The model cannot be simulated: {type(error).__name__} while a step ran on fake tensors."
        failed = NotSimulated(what, "The closed formula still gives a figure.", details=str(error))
        return _failure(failed, refused=False)
    return found | {"seconds": round(time.perf_counter() - start, 3)}


def _failure(error: TuneError, *, refused: bool) -> dict[str, Any]:
    told = {"what": error.what, "fix": error.fix, "details": error.details, "refused": refused}
    return {"error": told}


def main() -> None:
    """Answer until stdin ends. What libraries print goes to stderr, so that stdout stays JSON."""
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        out.write(json.dumps(answer(line)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
