"""A training step of transformers and peft under a tracker: phases, parts, and the sections of each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train.batches import Batch
from ollama_tune.core.train.cuda_like import cuda_like
from ollama_tune.core.train.fake_model import FakeModel, build
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.memtrace import Trace, Tracker
from ollama_tune.core.train.optimizer import state_sizes
from ollama_tune.core.train.shortage import Offload
from ollama_tune.core.train.workspaces import hold_workspaces


def trace_general(config: Any, request: MemoryRequest) -> Tracker:
    """The trace of one optimizer step on fake tensors with every layer of the configuration."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = build(config, request, fake)
    tracker = Tracker(Trace())
    with cuda_like(padded=request.padded), fake:
        hold(model, request, tracker)
        batch = _batch(request)
        for tensor in (batch.ids, batch.trained, batch.attention, batch.positions):
            if tensor is not None:
                tracker.track(tensor, "activations")
        with tracker, watched(model, tracker):
            train_step(model, request, batch, tracker.trace)
        tracker.stop()
    return tracker


def _batch(request: MemoryRequest) -> Batch:
    """Rows of the full length, or end to end; without padding there are no marks, transformers drops them."""
    laid, tokens = request.apart, request.micro_batch
    shape = (1, tokens) if laid else (request.rows, request.sequence_length)
    attention: Any = torch.ones(shape, dtype=torch.long) if request.padded else None
    ids, trained = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    positions = torch.zeros(shape, dtype=torch.long) if laid else None
    rows = (request.row_lengths,) if laid else ()
    return Batch(ids, attention, trained, tokens, tokens - request.rows, positions, rows)


def hold(model: FakeModel, request: MemoryRequest, tracker: Tracker) -> None:
    """Count what lives through the whole training: weights, adapter, optimizer states, cuBLAS' workspaces."""
    trace = tracker.trace
    hold_workspaces(trace, request.hopper)
    scales: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for module, scale in model.quantization:
        scales.setdefault(module, []).append(scale)
    for part in _modules(model, trace, "weights"):
        for module in part:
            own: list[torch.Tensor | None] = [*module._parameters.values(), *module._buffers.values()]
            for tensor in [*own, *scales.get(module, [])]:
                if tensor is not None:
                    adapter = tensor.requires_grad and request.method == "lora"
                    tracker.track(tensor, "adapter" if adapter else "weights")
    for part in _modules(model, trace, "states"):
        for weight in _trained(part):
            for size in state_sizes(weight, request.optimizer):
                trace.allocate(size, "optimizer")


def _modules(model: FakeModel, trace: Trace, kind: str) -> Iterator[list[torch.nn.Module]]:
    """Every layer's modules, then all others, each part with a section of the trace."""
    for index, layer in enumerate(model.layers):
        trace.section(kind, index)
        yield list(layer.modules())
    trace.section(kind)
    inside = {module for layer in model.layers for module in layer.modules()}
    yield [module for module in model.causal.modules() if module not in inside]


def _trained(part: list[torch.nn.Module]) -> list[torch.nn.Parameter]:
    """The trained weights that these modules have themselves; one that two share comes once."""
    own = [weight for module in part for weight in module._parameters.values() if weight is not None]
    return [weight for weight in dict.fromkeys(own) if weight.requires_grad]


@contextlib.contextmanager
def watched(model: FakeModel, tracker: Tracker) -> Iterator[None]:
    """While it lasts, the trace learns where the decoder and each layer begin, forward and backward."""
    trace, decoder = tracker.trace, model.causal.base_model
    handles = [decoder.register_forward_hook(_decoder_hook(trace))]
    learning = [any(weight.requires_grad for weight in layer.parameters()) for layer in model.layers]
    for index, layer in enumerate(model.layers):
        before, after = _layer_hooks(trace, index, index == learning.index(True))
        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    for weight in model.trained:
        hooked: Any = weight
        handles.append(hooked.register_post_accumulate_grad_hook(tracker.note_gradient))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_hooks(trace: Trace, index: int, first: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(*_: Any) -> None:
        trace.section("forward", index)

    def backward() -> None:
        trace.section("backward", index)
        if first:
            trace.phase("first layer", "activations")

    def after(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda _: backward())

    return before, after


def _decoder_hook(trace: Trace) -> Callable[..., None]:
    def backward(_gradient: torch.Tensor) -> None:
        trace.phase("backward", "activations")
        trace.section("backward")

    def after(_module: Any, _inputs: Any, output: Any) -> None:
        trace.phase("loss", "loss")
        trace.section("loss")
        if output[0].requires_grad:
            output[0].register_hook(backward)

    return after


def train_step(model: FakeModel, request: MemoryRequest, batch: Batch, trace: Trace) -> None:
    """One optimizer step, as the worker takes it; of several accumulated batches the first two.

    Autocast is the CPU's, where fake tensors live. The update of fused AdamW needs nothing besides.
    """
    compute = _loss(model, request)
    dtype = getattr(torch, request.compute_dtype)
    for _ in range(min(request.gradient_accumulation_steps, 2)):
        trace.phase("forward", "activations")
        trace.section("batch")
        autocast = torch.autocast("cpu", dtype=dtype if request.mixed else None, enabled=request.mixed)
        with autocast, _away(model) if request.gradient_checkpointing == "offload" else nullcontext():
            loss = compute(batch)
        trace.phase("loss backward", "loss")
        trace.section("loss backward")
        loss.backward()
        del loss
    trace.phase("update", "optimizer")
    copies: list[int] = []
    if request.optimizer == "adamw_foreach":
        for part in _modules(model, trace, "copies"):
            sizes = [weight.numel() * weight.element_size() for weight in _trained(part)]
            copies += map(trace.allocate, sizes)
    trace.section("update")
    for number in copies:
        trace.free(number)
    for weight in model.trained:
        weight.grad = None


def _away(model: FakeModel) -> Any:
    """What the forward pass saves is elsewhere, as `shortage.Offload` does: only its sizes are known."""
    tensors = [*model.causal.parameters(), *model.causal.buffers()]
    own = {tensor.untyped_storage()._cdata for tensor in tensors}

    def pack(tensor: torch.Tensor) -> Any:
        small = tensor.numel() * tensor.element_size() < Offload.SMALL
        if small or tensor.untyped_storage()._cdata in own:
            return tensor
        return tensor.size(), tensor.stride(), tensor.dtype

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        size, stride, dtype = packed
        return torch.empty_strided(size, stride, dtype=dtype)

    return saved_tensors_hooks(pack, unpack)


def _loss(model: FakeModel, request: MemoryRequest) -> Callable[[Batch], Any]:
    if request.loss == "full":
        return lambda batch: _usual_loss(model.causal, batch)
    objective = Objective(model.causal)
    if request.apart:
        objective.pack()
    return objective.reference if model.changes_logits else objective


def _usual_loss(causal: Any, batch: Batch) -> Any:
    """The loss that transformers computes from all logits, every token trained."""
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
    return causal(**inputs, labels=batch.ids).loss
