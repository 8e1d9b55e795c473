"""One training step under a tracker: phases, parts of the memory, and the layers' sections of the trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train.batches import Batch
from ollama_tune.core.train.fake_model import FakeModel
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.memtrace import Trace, Tracker
from ollama_tune.core.train.workspaces import CUBLAS, CUBLAS_HOPPER

SMALL_STATE = 4096
"""bitsandbytes keeps the states of tensors with fewer elements in float32."""
SMALL_PAGE = 100_000
"""States with fewer elements stay on the GPU with paged optimizers."""
STATE_BLOCK = 256


def hold(model: FakeModel, request: MemoryRequest, tracker: Tracker) -> None:
    """Count what lives through the whole training: weights, adapter, optimizer states, cuBLAS' workspaces."""
    trace = tracker.trace
    for _ in range(2):
        trace.allocate(CUBLAS_HOPPER if request.hopper else CUBLAS, "workspaces")
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
            for size in _states(weight, request):
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


def _states(weight: torch.Tensor, request: MemoryRequest) -> list[int]:
    """Bytes on the GPU of the optimizer's states of a weight."""
    count = weight.numel()
    paged = request.optimizer.startswith("paged") and count >= SMALL_PAGE
    if request.optimizer.endswith("8bit") and count >= SMALL_STATE:
        scales = 4 * -(-count // STATE_BLOCK)
        return [scales, scales] if paged else [count, count, scales, scales]
    if request.optimizer == "paged_adamw" or request.optimizer.endswith("8bit"):
        return [] if paged else [4 * count, 4 * count]
    return [count * weight.element_size()] * 2


@contextlib.contextmanager
def watched(model: FakeModel, tracker: Tracker) -> Iterator[None]:
    """While it lasts, the trace learns where the decoder and each layer begin, forward and backward."""
    trace, decoder = tracker.trace, model.causal.base_model
    handles = [decoder.register_forward_hook(_decoder_hook(trace))]
    for index, layer in enumerate(model.layers):
        before, after = _layer_hooks(trace, index)
        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    for weight in model.trained:
        hooked: Any = weight
        handles.append(hooked.register_post_accumulate_grad_hook(_gradient_hook(tracker)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_hooks(trace: Trace, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(*_: Any) -> None:
        trace.section("forward", index)

    def after(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda _: trace.section("backward", index))

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


def _gradient_hook(tracker: Tracker) -> Callable[[torch.Tensor], None]:
    def ready(weight: torch.Tensor) -> None:
        if weight.grad is not None:
            tracker.move(weight.grad, "gradients")

    return ready


def train_step(model: FakeModel, request: MemoryRequest, batch: Batch, trace: Trace) -> None:
    """One optimizer step, as the worker takes it; of several accumulated batches the first two.

    Autocast is the CPU's, where fake tensors live. The update of fused AdamW needs nothing besides.
    """
    compute = _loss(model, request)
    dtype = getattr(torch, request.compute_dtype)
    for _ in range(min(request.gradient_accumulation_steps, 2)):
        trace.phase("forward", "activations")
        trace.section("batch")
        with torch.autocast("cpu", dtype=dtype if request.mixed else None, enabled=request.mixed):
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


def _loss(model: FakeModel, request: MemoryRequest) -> Callable[[Batch], Any]:
    if request.loss == "full":
        return lambda batch: _usual_loss(model.causal, batch)
    objective = Objective(model.causal)
    return objective.reference if model.changes_logits else objective


def _usual_loss(causal: Any, batch: Batch) -> Any:
    """The loss that transformers computes from all logits, every token trained."""
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
    return causal(**inputs, labels=batch.ids).loss
