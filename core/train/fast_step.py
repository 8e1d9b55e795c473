"""One training step of the fast path under a tracker: its own model on fake tensors, as on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from ollama_tune.core.models.blueprint import Blueprint
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train.fast import attention, kernels
from ollama_tune.core.train.fast import model as fast_model
from ollama_tune.core.train.fast.adapter import Adapter, new_adapter
from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.stream import Segment, Stream
from ollama_tune.core.train.fast.weights import BaseWeights, Quantized, Weight
from ollama_tune.core.train.memtrace import NotSimulated, Trace, Tracker
from ollama_tune.core.train.optimizer import state_sizes
from ollama_tune.core.train.workspaces import hold_workspaces

PHASES = {"forward", "loss", "loss backward", "backward", "first layer", "update"}
"""What a step goes through."""


class _Model(FastModel):
    """Draws the seeds of dropout from real random numbers: fake ones have no values."""

    def _run(self, *arguments: Any) -> Any:
        with unset_fake_temporarily():
            return super()._run(*arguments)


class _Flash(torch.autograd.Function):
    """The tensors of the varlen flash kernel (tokens x heads x width): what it keeps, makes and needs."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out, sums = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *_outer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        found = tuple(torch.empty_like(part) for part in (query, key, value))
        _held = [query.new_empty(size, dtype=torch.uint8) for size in flash_workspaces(query, key)]
        return found


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """In place of the kernel: no numbers, the same memory."""
    out: torch.Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


def flash_workspaces(query: torch.Tensor, key: torch.Tensor) -> list[int]:
    """Bytes: gradient of the queries in float32, softmax sums, and grouped keys and values of all heads."""
    tokens, heads, width = query.shape
    padded = -(-tokens // 128) * 128
    accumulated = padded * heads * (256 if width > 128 else -(-width // 32) * 32) * 4
    spread = [tokens * heads * width * query.element_size()] * 2 if key.shape[1] != heads else []
    return [accumulated, padded * heads * 4, *spread]


def _chosen(eager: bool) -> Callable[..., kernels.Attention]:
    """The choice on a GPU: by the kernel, where the model does not cap the scores."""

    def choose(rule: attention.Rule, rotary: Any, _device: Any, _dtype: Any) -> kernels.Attention:
        plain = eager or rule.cap
        return (
            attention.RowsAttention(rule, rotary) if plain else kernels.KernelAttention(rule, rotary, flash)
        )

    return choose


def trace_fast(blueprint: Blueprint, request: MemoryRequest) -> Tracker:
    """The trace of one optimizer step. What the model makes at first use is made before, as it stays."""
    tracker = Tracker(Trace())
    with _as_on_a_gpu(request.attention == "eager"), FakeTensorMode(allow_non_fake_inputs=True):
        model = _build(blueprint, request)
        stream = _stream(request)
        model.loss(stream).backward()  # type: ignore[no-untyped-call]
        assert model.adapter is not None
        _forget_gradients(model.adapter)
        _hold(model, request, tracker)
        for tensor in (stream.ids, stream.positions, stream.picked, stream.targets):
            tracker.track(tensor, "activations")
        with tracker, _watched(model, tracker):
            _step(model, request, stream, tracker.trace)
        tracker.stop()
    if not tracker.trace.peaks.keys() >= PHASES:
        raise NotSimulated("The fast path was not seen to go through a whole step.", "Report this.")
    return tracker


class _Away:
    """Inputs of layers that wait in another memory: their sizes alone are known; the next one is fetched."""

    def __init__(self, _device: torch.device) -> None:
        self._parked: list[tuple[torch.Size, torch.dtype]] = []
        self._fetched: dict[int, torch.Tensor] = {}

    def put(self, states: torch.Tensor) -> int:
        self._parked.append((states.shape, states.dtype))
        return len(self._parked) - 1

    def take(self, number: int) -> torch.Tensor:
        self._fetch(number)
        self._fetch(number - 1)
        return self._fetched.pop(number)

    def _fetch(self, number: int) -> None:
        if number >= 0 and number not in self._fetched:
            shape, dtype = self._parked[number]
            self._fetched[number] = torch.empty(shape, dtype=dtype)


@contextlib.contextmanager
def _as_on_a_gpu(eager: bool) -> Iterator[None]:
    """Fake tensors live on the CPU, but no way of computing is to be taken for that; none are left behind."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cpu", False, create=True))
        stack.enter_context(mock.patch.object(fast_model, "choose_attention", _chosen(eager)))
        stack.enter_context(mock.patch.object(fast_model, "Parking", _Away))
        for cache in (attention._mask, kernels.bounds_of):
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        yield


def _build(blueprint: Blueprint, request: MemoryRequest) -> FastModel:
    training = request.model_copy(update={"device": "cpu"})
    adapter = new_adapter(blueprint, training)
    model = _Model(blueprint, _weights(blueprint, request), adapter)
    model.training, model.recompute = True, request.gradient_checkpointing
    return model


def _weights(blueprint: Blueprint, request: MemoryRequest) -> BaseWeights:
    dtype = getattr(torch, request.compute_dtype)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    linears: dict[str, Weight] = {}
    vectors = {name: empty(width) for name, width in blueprint.norms().items()}
    for layer in range(blueprint.layers):
        for group, parts in blueprint.groups.items():
            name, rows = f"layers.{layer}.{group}", sum(part.rows for part in parts)
            shapes = [(part.rows, part.columns) for part in parts]
            nf4 = request.quantization == "nf4"
            linears[name] = _quantized(shapes, dtype) if nf4 else empty(rows, parts[0].columns)
            if parts[0].bias:
                vectors[f"{name}.bias"] = empty(rows)
    embedding = empty(blueprint.vocabulary, blueprint.hidden)
    head = embedding if blueprint.tied else torch.empty_like(embedding)
    return BaseWeights(linears, vectors, embedding, head)


def _quantized(shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Quantized:
    from ollama_tune.core.train.fake_nf4 import empty_nf4

    pieces = tuple(empty_nf4(shape, dtype)[:2] for shape in shapes)
    return Quantized(pieces, (sum(rows for rows, _ in shapes), shapes[0][1]), dtype)


def _stream(request: MemoryRequest) -> Stream:
    """Rows that share nothing, every token of them trained."""
    lengths, tokens = request.row_lengths, sum(request.row_lengths)
    starts = accumulate(lengths, initial=0)
    segments = tuple(Segment(start, length) for start, length in zip(starts, lengths, strict=False))
    ids, places = (torch.zeros(count, dtype=torch.long) for count in (tokens, tokens - len(lengths)))
    return Stream(ids, torch.zeros_like(ids), segments, places, torch.zeros_like(places), tokens, len(places))


def _forget_gradients(adapter: Adapter) -> None:
    for weight in adapter.named().values():
        weight.grad = None


def _hold(model: FastModel, request: MemoryRequest, tracker: Tracker) -> None:
    """Count what lives through the whole training, layer by layer: weights, adapter, tables, states."""
    trace = tracker.trace
    hold_workspaces(trace, request.hopper)
    frozen = {tensor.untyped_storage()._cdata for tensor in tensors_in(model.weights)}
    parts: list[Any] = [[*layer_parts(model, index)] for index in range(len(model.layers))]
    for index, part in enumerate([*parts, model]):
        trace.section("weights", index if index < len(parts) else None)
        for tensor in tensors_in(part):
            base = tensor.untyped_storage()._cdata in frozen
            tracker.track(tensor, "weights" if base else "adapter")
    for index, layer in enumerate(model.layers):
        trace.section("states", index)
        for weight in layer.weights:
            for size in state_sizes(weight, request.optimizer):
                trace.allocate(size, "optimizer")
    trace.section("states")


def layer_parts(model: FastModel, index: int) -> Iterator[Any]:
    """What belongs to one layer alone: its frozen weights, its norms, its adapter."""
    layer = model.layers[index]
    for group, projection in layer.projections.items():
        yield model.weights.linear(f"layers.{index}.{group}")
        yield projection
    yield layer.weights
    yield {name: value for name, value in vars(layer).items() if name != "_attention"}


def tensors_in(held: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor that an object refers to, however deep, each once."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, Mapping):
        for value in held.values():
            yield from tensors_in(value, seen)
    elif isinstance(held, (list, tuple, set)):
        for value in held:
            yield from tensors_in(value, seen)
    elif type(held).__module__.startswith(("ollama_tune.", "bitsandbytes.")):
        yield from tensors_in(getattr(held, "__dict__", {}), seen)


@contextlib.contextmanager
def _watched(model: FastModel, tracker: Tracker) -> Iterator[None]:
    """While it lasts, the trace learns where the loss and each layer begin, forward and backward."""
    trace = tracker.trace
    assert model.adapter is not None
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(model.layers):
            for way in ("forward", "backward"):
                marked = _marked(getattr(layer, way), trace, way, index, model.first)
                stack.enter_context(mock.patch.object(layer, way, marked))
        stack.enter_context(mock.patch.object(model, "normed", _ending(model.normed, trace)))
        for weight in model.adapter.named().values():
            hooked: Any = weight
            stack.callback(hooked.register_post_accumulate_grad_hook(tracker.note_gradient).remove)
        yield


def _marked(
    function: Callable[..., Any], trace: Trace, kind: str, index: int, first: int
) -> Callable[..., Any]:
    """The function with a section of the trace; what a backward pass computes again is part of its own."""

    def marked(*arguments: Any, **options: Any) -> Any:
        if kind == "backward" or trace.sections[-1].kind != "backward":
            trace.section(kind, index)
        if kind == "backward" and index == first:
            trace.phase("first layer", "activations")
        return function(*arguments, **options)

    return marked


def _ending(normed: Callable[..., torch.Tensor], trace: Trace) -> Callable[..., torch.Tensor]:
    def backward(_gradient: torch.Tensor) -> None:
        trace.phase("backward", "activations")
        trace.section("backward")

    def ended(*arguments: Any, **options: Any) -> torch.Tensor:
        states = normed(*arguments, **options)
        trace.phase("loss", "loss")
        trace.section("loss")
        states.register_hook(backward)  # type: ignore[no-untyped-call]
        return states

    return ended


def _step(model: FastModel, request: MemoryRequest, stream: Stream, trace: Trace) -> None:
    """One optimizer step as the worker takes it; of several accumulated batches the first two."""
    for _ in range(min(request.gradient_accumulation_steps, 2)):
        trace.phase("forward", "activations")
        trace.section("batch")
        loss = model.loss(stream) / len(stream.targets)
        trace.phase("loss backward", "loss")
        trace.section("loss backward")
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    trace.phase("update", "optimizer")
    trace.section("update")
    assert model.adapter is not None
    _forget_gradients(model.adapter)
