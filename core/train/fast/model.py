"""A model of the fast path: embedding, layers, norm and head on a stream of rows, with or without adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ollama_tune.core.models.blueprint import Blueprint, LayerKind
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.train.fast.adapter import Adapter
from ollama_tune.core.train.fast.attention import Rule
from ollama_tune.core.train.fast.functions import Dropped, Norm
from ollama_tune.core.train.fast.kernels import Attention, choose_attention
from ollama_tune.core.train.fast.layers import GROUPS, Layer, LayerFunction, Pass, _vector
from ollama_tune.core.train.fast.offload import Parking
from ollama_tune.core.train.fast.products import even, product, wide
from ollama_tune.core.train.fast.rotary import Rotary
from ollama_tune.core.train.fast.stream import Stream
from ollama_tune.core.train.fast.weights import BaseWeights
from ollama_tune.core.train.noise import Pieces, noisy
from ollama_tune.core.train.path import Observe
from ollama_tune.core.train.sums import scaled, summed

CHUNK = 256
"""Supervised tokens whose logits exist at once."""


class FastModel:
    """Computes hidden states and loss; the frozen weights never get gradients.

    `recompute` chooses what backward makes again, `adapter_on` and `training` (dropout, and noise of the
    strength `neftune`) what is computed, `observe` is told the inputs of every linear layer. Backward ends at
    the first layer that has an adapter.
    """

    def __init__(self, blueprint: Blueprint, weights: BaseWeights, adapter: Adapter | None) -> None:
        self.blueprint = blueprint
        self.weights = weights
        self.adapter = adapter
        self.recompute: Recompute = "none"
        self.adapter_on = True
        self.training = False
        self.neftune = 0.0
        self.observe: Observe | None = None
        device, dtype = weights.embedding.device, weights.embedding.dtype
        self._rotaries = [Rotary(rope, blueprint.head_dim, device, dtype) for rope in blueprint.ropes]
        attentions = {kind: self._attention(kind) for kind in dict.fromkeys(blueprint.kinds)}
        self.layers = [
            Layer(blueprint, n, weights, adapter, attentions[kind]) for n, kind in enumerate(blueprint.kinds)
        ]
        trained = (number for number, layer in enumerate(self.layers) if layer.weights)
        self.first = next(trained, len(self.layers))
        self._norm = Norm(_vector(weights, "norm"), blueprint.norm_shift, blueprint.epsilon)

    def _attention(self, kind: LayerKind) -> Attention:
        sizes = self.blueprint
        rule = Rule(
            sizes.heads,
            sizes.key_value_heads,
            sizes.head_dim,
            sizes.attention_scale,
            sizes.attention_cap,
            kind.window,
        )
        rotary = None if kind.rope is None else self._rotaries[kind.rope]
        embedding = self.weights.embedding
        return choose_attention(rule, rotary, embedding.device, embedding.dtype)

    def embed(self, ids: torch.Tensor, noise: Pieces = ()) -> torch.Tensor:
        """The embeddings of tokens, with noise on these pieces, scaled as the family does: tokens x width."""
        states = functional.embedding(ids, self.weights.embedding)
        if noise:
            states = noisy(states, noise, self.neftune)
        if self.blueprint.embedding_scale == 1.0:
            return states
        return states.mul_(torch.tensor(self.blueprint.embedding_scale, dtype=states.dtype))

    def hidden(self, stream: Stream, *, grad: bool) -> torch.Tensor:
        """Normed hidden states at the stream's picked places (picked x width)."""
        return self._hidden(stream, grad)[: len(stream.picked)]

    def refresh(self) -> None:
        """Take over the adapter's weights as they are now; what computes with the layers does so first."""
        for layer in self.layers:
            layer.refresh(self.weights.embedding.dtype)

    def _hidden(self, stream: Stream, grad: bool) -> torch.Tensor:
        """The same, with states behind them that belong to no picked place."""
        self.refresh()
        if self.observe is None:
            stream = even(stream, self.weights.embedding)
        with torch.set_grad_enabled(grad):
            states = self.embed(stream.ids, self._noise(stream) if grad else ())
            parking = Parking(states.device) if grad and self.recompute == "offload" else None
            for number, layer in enumerate(self.layers):
                last = number == len(self.layers) - 1 and self.observe is None
                keep = grad and number >= self.first
                run = self._run(stream, keep, stream.picked if last else None, parking)
                if keep:
                    states = LayerFunction.apply(states, layer, run, *layer.weights)  # type: ignore[no-untyped-call]
                else:
                    states = layer.forward(states, run)[0]
            if self.observe is not None:
                states = states[stream.picked]
            return self.normed(states)

    def _noise(self, stream: Stream) -> Pieces:
        """How many tokens lie together, and how many their row has, where noise is put on them."""
        if not (self.training and self.neftune):
            return ()
        laid = [segment.length for segment in stream.segments]
        return list(zip(laid, stream.lengths, strict=True))

    def _run(self, stream: Stream, grad: bool, picked: torch.Tensor | None, parking: Parking | None) -> Pass:
        share = self.adapter.dropout if self.adapter and self.training and self.adapter_on else 0.0
        dropped = {}
        if share:
            seeds = torch.randint(2**62, (len(GROUPS),)).tolist()
            dropped = {group: Dropped(share, seed) for group, seed in zip(GROUPS, seeds, strict=True)}
        return Pass(
            stream.segments,
            self.adapter_on,
            grad,
            self.recompute,
            picked,
            dropped,
            self.observe,
            parking=parking,
        )

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states as the head takes them, from those behind the last layer."""
        return _NormFunction.apply(states, self._norm)  # type: ignore[no-untyped-call, no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits (tokens x vocabulary) of normed hidden states."""
        return _logits(functional.linear(hidden, self.weights.head), self.blueprint)

    def loss(self, stream: Stream, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """The summed cross entropy of the stream's targets, float32; differentiable where grad is on.

        With `lengths` the sums of runs of so many targets each.
        """
        grad = torch.is_grad_enabled() and self.adapter is not None and self.adapter_on
        hidden = self._hidden(stream, grad)
        head = self.weights.head, self.blueprint
        return _CrossEntropy.apply(hidden, stream.targets, *head, lengths)  # type: ignore[no-untyped-call, no-any-return]


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, norm: Norm) -> torch.Tensor:
        scales = norm.scales(states)
        ctx.save_for_backward(states, scales)
        ctx.norm = norm
        return norm.apply(states, scales)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.norm.backward(outer[0], *ctx.saved_tensors), None


def _logits(products: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
    logits = products.to(wide(products.dtype))
    if blueprint.logit_scale != 1.0:
        logits = logits * blueprint.logit_scale
    if blueprint.logit_cap:
        logits = torch.tanh(logits / blueprint.logit_cap) * blueprint.logit_cap
    return logits


class _CrossEntropy(torch.autograd.Function):
    """Sums of cross entropies; forward builds the gradient of the hidden states, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: torch.Tensor,
        blueprint: Blueprint,
        lengths: Sequence[int] | None,
    ) -> torch.Tensor:
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        losses = torch.empty(len(targets), dtype=wide(hidden.dtype), device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            losses[part] = _chunk(
                hidden[part], targets[part], head, blueprint, None if gradient is None else gradient[part]
            )
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.lengths = lengths
        return summed(losses, lengths)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, outer[0], ctx.lengths), None, None, None, None


def _chunk(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: torch.Tensor,
    blueprint: Blueprint,
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    """The losses of a chunk's tokens; the gradient of its hidden states goes into `gradient`."""
    products = product(hidden, head.t())
    own = products[: len(targets)]
    plain = blueprint.logit_scale == 1.0 and not blueprint.logit_cap
    narrow = plain and products.is_cpu and products.dtype == torch.bfloat16
    losses = _narrow_chunk(own, targets) if narrow else _wide_chunk(own, targets, blueprint)
    if gradient is not None:
        products[len(targets) :] = 0.0
        torch.mm(products, head, out=gradient)
    return losses


def _wide_chunk(products: torch.Tensor, targets: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
    """The losses, in the format of sums; the products of states and head give way to their gradient."""
    logits = _logits(products, blueprint)
    shares = torch.log_softmax(logits, -1)
    places = torch.arange(len(targets), device=targets.device), targets
    losses = -shares[places]
    shares.exp_()[places] -= 1.0
    if blueprint.logit_cap:
        shares *= 1 - (logits / blueprint.logit_cap).square_()
    products.copy_(shares.mul_(blueprint.logit_scale))
    return losses


def _narrow_chunk(products: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same for 16-bit products in two passes over them, of a quarter of the memory traffic.

    Softmax sums in float32 but rounds each share. The one of the target is therefore not read but made of
    all others: 1 minus their sum, which stays exact where the target is nearly certain.
    """
    places = torch.arange(len(targets)), targets
    shares = torch.softmax(products, -1, out=products)
    own = shares[places].float()
    shares[places] = 0.0
    others = shares.sum(-1).float()
    shares[places] = -others.to(shares.dtype)
    return -torch.where(others < 0.5, torch.log1p(-others), own.log())
