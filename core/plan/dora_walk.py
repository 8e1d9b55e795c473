"""What DoRA adds to a decoder layer in the closed formula, as peft computes it: tensors, nothing fitted.

The result of a module is (m / |W + s B A| - 1) times what the base weight gives, plus the same factor times
what the adapter gives. Both products are kept for backward. The norm of the columns needs the sum of the
weights as a matrix, and B A by way of A and B applied to the identity. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollama_tune.core.plan.layer_walk import LayerWalk


def kept(walk: LayerWalk, names: Iterable[str] | None = None) -> float:
    """What a layer's modules (or some of them) keep for backward besides what plain LoRA keeps.

    With dropout the base product is made anew from the dropped input, by a copy of the weight where that is
    in another format.
    """
    if not walk.request.dora:
        return 0.0
    chosen = [walk.targets[name] for name in (walk.targets if names is None else names)]
    products = walk.tokens * 2 * walk.size * sum(outside for _, outside in chosen)
    copied = walk.request.dropout and (walk.casts or walk.nf4)
    return products + (walk.size * sum(i * o for i, o in chosen) if copied else 0)


def forward(walk: LayerWalk, name: str) -> float:
    """The most that a module's forward pass needs for a moment: for the norm, or for the sum of products."""
    if not walk.request.dora or name not in walk.targets:
        return 0.0
    inside, outside = walk.targets[name]
    weight, identity = inside * outside, inside * inside
    wide = 4 if walk.casts else walk.size
    narrow = walk.size if walk.request.mixed else walk.trained_size
    graph = narrow * identity
    made = walk.trained_size * identity + (graph if narrow != walk.trained_size else 0) + narrow * weight
    copied = (wide if walk.casts else walk.size if walk.nf4 else 0) * weight
    norm = graph + copied + 3 * wide * weight
    result = graph + copied + wide * weight + 3 * walk.tokens * walk.trained_size * outside
    return max(made, norm, result)


def backward(walk: LayerWalk, name: str) -> tuple[float, float]:
    """What a module's backward pass needs for a moment before that of plain LoRA, and what it then frees."""
    if not walk.request.dora or name not in walk.targets:
        return 0.0, 0.0
    product = walk.tokens * walk.targets[name][1]
    return 3 * walk.trained_size * product, kept(walk, [name])
