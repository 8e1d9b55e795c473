"""One layer, forward and backward by hand: what is kept for backward is chosen, not left to autograd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ollama_tune.core.models.blueprint import Blueprint
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.train.fast.adapter import Adapter
from ollama_tune.core.train.fast.attention import tokens_of
from ollama_tune.core.train.fast.functions import Dropped, Norm, Projection, activate, activate_backward
from ollama_tune.core.train.fast.kernels import Attention
from ollama_tune.core.train.fast.offload import Parking
from ollama_tune.core.train.fast.stream import Segment
from ollama_tune.core.train.fast.weights import BaseWeights
from ollama_tune.core.train.path import Observe

GROUPS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Pass:
    """What a pass through the layers depends on besides the states.

    `picked` are the places that are needed after the last attention, None in all other layers; `dropped` is
    the dropout of each group's LoRA inputs. `keep` says that a backward follows. `attention` takes the place
    of the layer's own, for rows whose keys and values are held elsewhere; `parking` takes the layers' inputs.
    """

    segments: tuple[Segment, ...]
    adapted: bool
    keep: bool
    recompute: Recompute = "none"
    picked: torch.Tensor | None = None
    dropped: Mapping[str, Dropped] = field(default_factory=dict)
    observe: Observe | None = None
    attention: Any = None
    parking: Parking | None = None


@dataclass
class Kept:
    """What backward needs of one layer; what is None is made again from what is there."""

    states: torch.Tensor
    scales: torch.Tensor | None = None
    mixed: torch.Tensor | None = None
    head_scales: tuple[torch.Tensor, torch.Tensor] | None = None
    rows: Any = None
    attended: torch.Tensor | None = None
    low: dict[str, torch.Tensor | None] = field(default_factory=dict)
    after_attention: tuple[torch.Tensor, torch.Tensor] | None = None
    middle: torch.Tensor | None = None
    middle_scales: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None
    after_mlp: tuple[torch.Tensor, torch.Tensor] | None = None


Gradients = dict[str, list[torch.Tensor]]


class Layer:
    """The computation of one layer of a model."""

    def __init__(
        self,
        blueprint: Blueprint,
        number: int,
        weights: BaseWeights,
        adapter: Adapter | None,
        attention: Attention,
    ) -> None:
        stem = f"layers.{number}."
        self._blueprint = blueprint
        self._stem = stem
        self.attention = attention
        self.projections = {group: _projection(stem + group, weights, adapter) for group in GROUPS}
        self.weights = [weight for group in GROUPS for weight in self.projections[group].weights]
        self._norms = {
            name: Norm(_vector(weights, stem + name), blueprint.norm_shift, blueprint.epsilon)
            for name in _norm_names(blueprint)
        }

    def _norm(self, name: str, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        norm = self._norms.get(name)
        if norm is None:
            return states, None
        scales = norm.scales(states)
        return norm.apply(states, scales), scales

    def _again(self, name: str, states: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        """Normed states made again."""
        return states if scales is None else self._norms[name].apply(states, scales)

    def _back(
        self, name: str, gradient: torch.Tensor, states: torch.Tensor, scales: torch.Tensor | None
    ) -> torch.Tensor:
        return gradient if scales is None else self._norms[name].backward(gradient, states, scales)

    def _project(self, group: str, states: torch.Tensor, run: Pass, kept: Kept) -> torch.Tensor:
        if run.observe is not None:
            for part in self._blueprint.groups[group]:
                run.observe(f"model.{self._stem}{part.name}", states)
        made, kept.low[group] = self.projections[group].forward(
            states, adapted=run.adapted, dropped=run.dropped.get(group)
        )
        return made

    def refresh(self, dtype: torch.dtype) -> None:
        """Take over the adapter's weights as they are now."""
        for projection in self.projections.values():
            projection.refresh(dtype)

    def forward(self, states: torch.Tensor, run: Pass) -> tuple[torch.Tensor, Kept]:
        """The residual stream behind the layer (tokens or picked places x width), and what to keep of it."""
        kept = Kept(states)
        attended = self._attend(states, run, kept)
        if run.picked is not None:
            attended, states = attended[run.picked], states[run.picked]
        middle = self._add(states, self._project("o", attended, run, kept), "after_attention", kept)
        made = self._feed_forward(middle, run, kept)
        out = self._add(middle, made, "after_mlp", kept)
        kept.attended, kept.middle = attended, middle
        return out, kept

    def _attend(self, states: torch.Tensor, run: Pass, kept: Kept) -> torch.Tensor:
        normed, kept.scales = self._norm(self._blueprint.norm_names.attention, states)
        mixed = self._project("qkv", normed, run, kept)
        query, key, value = self._split(mixed)
        if self._blueprint.head_norm:
            kept.mixed = mixed
            query, first = self._head_norm("self_attn.q_norm", query)
            key, second = self._head_norm("self_attn.k_norm", key)
            kept.head_scales = first, second
        attention = run.attention or self.attention
        attended, kept.rows = attention.forward(query, key, value, run.segments, keep=run.keep)
        return attended

    def _split(self, mixed: torch.Tensor) -> list[torch.Tensor]:
        keys = self._blueprint.key_width
        return list(torch.split(mixed, [self._blueprint.query_width, keys, keys], 1))

    def _head_norm(self, name: str, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._heads(states)
        norm = self._norms[name]
        scales = norm.scales(rows)
        return norm.apply(rows, scales).view(len(states), -1), scales

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """What is normed at once as a row: a token's heads together, or each."""
        whole = self._blueprint.head_norm == "whole"
        return states.reshape(-1, states.shape[1] if whole else self._blueprint.head_dim)

    def _feed_forward(self, middle: torch.Tensor, run: Pass, kept: Kept) -> torch.Tensor:
        gate_up = self._gate_up(middle, run, kept)
        if run.recompute != "mlp":
            kept.gate_up = gate_up
        return self._project("down", activate(gate_up, self._blueprint.activation), run, kept)

    def _gate_up(self, middle: torch.Tensor, run: Pass, kept: Kept) -> torch.Tensor:
        normed, kept.middle_scales = self._norm(self._blueprint.norm_names.mlp, middle)
        return self._project("gate_up", normed, run, kept)

    def _add(self, states: torch.Tensor, made: torch.Tensor, place: str, kept: Kept) -> torch.Tensor:
        """What a part made, normed where the family does so, added to the residual stream."""
        name = getattr(self._blueprint.norm_names, place)
        if name:
            normed, scales = self._norm(name, made)
            assert scales is not None
            setattr(kept, place, (made, scales))
            made = normed
        if self._blueprint.residual_scale != 1.0:
            made = made * self._blueprint.residual_scale
        return states + made

    def backward(
        self, gradient: torch.Tensor, kept: Kept, run: Pass, *, inputs: bool
    ) -> tuple[torch.Tensor | None, Gradients]:
        """The gradient of the layer's input, where `inputs` asks for it, and of the adapter by group."""
        if kept.middle is None:
            _, kept = self.forward(kept.states, replace(run, recompute="none"))
        found: Gradients = {}
        gradient = self._feed_forward_backward(gradient, kept, run, found)
        return self._attend_backward(gradient, kept, run, found, inputs), found

    def _through(self, gradient: torch.Tensor, kept: Kept, place: str) -> torch.Tensor:
        """The gradient of what a part made, from that of the residual stream behind it."""
        if self._blueprint.residual_scale != 1.0:
            gradient = gradient * self._blueprint.residual_scale
        known = getattr(kept, place)
        return self._back(getattr(self._blueprint.norm_names, place), gradient, *known) if known else gradient

    def _product_backward(
        self, group: str, gradient: torch.Tensor, run: Pass, inputs: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        dropped = run.dropped.get(group)
        return self.projections[group].backward(gradient, adapted=run.adapted, dropped=dropped, inputs=inputs)

    def _gradients(
        self,
        group: str,
        outer: torch.Tensor,
        low: torch.Tensor | None,
        states: torch.Tensor,
        kept: Kept,
        run: Pass,
    ) -> list[torch.Tensor]:
        dropped = run.dropped.get(group)
        return self.projections[group].gradients(outer, low, states, kept.low[group], dropped)

    def _feed_forward_backward(
        self, gradient: torch.Tensor, kept: Kept, run: Pass, found: Gradients
    ) -> torch.Tensor:
        assert kept.middle is not None
        name = self._blueprint.norm_names.mlp
        inner = self._through(gradient, kept, "after_mlp")
        gate_up = kept.gate_up if kept.gate_up is not None else self._gate_up(kept.middle, run, kept)
        kept.gate_up = None
        outer, low = self._product_backward("down", inner, run)
        assert outer is not None
        active, both = activate_backward(outer, gate_up, self._blueprint.activation)
        found["down"] = self._gradients("down", inner, low, active, kept, run)
        del outer, active, gate_up
        made, low = self._product_backward("gate_up", both, run)
        assert made is not None
        normed = self._again(name, kept.middle, kept.middle_scales)
        found["gate_up"] = self._gradients("gate_up", both, low, normed, kept, run)
        return self._back(name, made, kept.middle, kept.middle_scales) + gradient

    def _attend_backward(
        self, gradient: torch.Tensor, kept: Kept, run: Pass, found: Gradients, inputs: bool
    ) -> torch.Tensor | None:
        assert kept.attended is not None
        name = self._blueprint.norm_names.attention
        inner = self._through(gradient, kept, "after_attention")
        outer, low = self._product_backward("o", inner, run)
        assert outer is not None
        found["o"] = self._gradients("o", inner, low, kept.attended, kept, run)
        if run.picked is not None:
            outer = _spread(outer, run.picked, len(kept.states))
            gradient = _spread(gradient, run.picked, len(kept.states))
        mixed = self._mixed_backward(outer, kept, run)
        made, low = self._product_backward("qkv", mixed, run, inputs)
        normed = self._again(name, kept.states, kept.scales)
        found["qkv"] = self._gradients("qkv", mixed, low, normed, kept, run)
        return None if made is None else self._back(name, made, kept.states, kept.scales) + gradient

    def _mixed_backward(self, gradient: torch.Tensor, kept: Kept, run: Pass) -> torch.Tensor:
        """The gradient of queries, keys and values side by side, from that of what they attend to."""
        made = gradient.new_empty(len(gradient), self._blueprint.query_width + 2 * self._blueprint.key_width)
        made[tokens_of(run.segments) :] = 0.0
        parts = self._split(made)
        self.attention.backward(gradient, parts, run.segments, kept.rows)
        if kept.mixed is not None and kept.head_scales is not None:
            names, mixed = ("self_attn.q_norm", "self_attn.k_norm"), self._split(kept.mixed)
            for name, part, states, scales in zip(names, parts, mixed, kept.head_scales, strict=False):
                back = self._norms[name].backward(self._heads(part), self._heads(states), scales)
                part.copy_(back.view(part.shape))
        return made


def _spread(gradient: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """The rows of a gradient at their places among others that are zero."""
    return gradient.new_zeros(length, gradient.shape[1]).index_copy_(0, places, gradient)


def _projection(name: str, weights: BaseWeights, adapter: Adapter | None) -> Projection:
    group = adapter.group(name) if adapter else None
    return Projection(
        weights.linear(name), weights.vector(f"{name}.bias"), group, adapter.scale if adapter else 1.0
    )


def _norm_names(blueprint: Blueprint) -> list[str]:
    heads = ["self_attn.q_norm", "self_attn.k_norm"] if blueprint.head_norm else []
    return [*blueprint.norm_names.names(), *heads]


def _vector(weights: BaseWeights, name: str) -> torch.Tensor:
    vector = weights.vector(name)
    assert vector is not None
    return vector


class LayerFunction(torch.autograd.Function):
    """A layer in an autograd graph: its input and its adapter's weights get gradients, nothing else does."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, layer: Layer, run: Pass, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute the layer; what backward needs waits here, or in the pass' parking."""
        out, kept = layer.forward(states, run)
        ctx.layer, ctx.run = layer, run
        if run.recompute in ("layers", "offload"):
            kept = Kept(states)
        ctx.kept = run.parking.put(states) if run.parking is not None else kept
        return out

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of the input and of `weights`, in the order of `Layer.weights`."""
        kept, ctx.kept = ctx.kept, None
        if ctx.run.parking is not None:
            kept = Kept(ctx.run.parking.take(kept))
        inner, found = ctx.layer.backward(outer[0], kept, ctx.run, inputs=ctx.needs_input_grad[0])
        flat = [gradient for group in GROUPS for gradient in found[group]]
        return (inner, None, None, *flat)
