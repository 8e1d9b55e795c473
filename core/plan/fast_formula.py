"""The closed formula for the fast path, whose layers keep what their own backward pass needs and no more.

Follows the lists of tensors in `train/fast`: sizes are bytes, T tokens lie end to end. Every layer keeps its
input; without recomputation also what attention reads, the stream behind it, and gate and up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from ollama_tune.core.plan.formula import Formula, Parts
from ollama_tune.core.plan.layer_walk import DTYPE_BYTES
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.rounding import round_up

CHUNK = 256
"""Supervised tokens whose logits exist at once."""
BLOCK, SHORT, EVEN = 128, 256, 32
"""Queries whose products with the keys exist at once; tokens up to which a row's are kept; what rows are
padded to."""
BEHIND = ("olmo2",)
"""Families that norm what a part made, and not its input."""


def formula_of(shape: Shape, request: MemoryRequest) -> Formula:
    """The formula of the path that the request names."""
    return (FastFormula if request.path == "fast" else Formula)(shape, request)


@dataclass(frozen=True)
class FastFormula(Formula):
    """The peak of training a model of this shape on the fast path."""

    @cached_property
    def size(self) -> int:
        """Bytes of a number in the arithmetic."""
        return DTYPE_BYTES[self.request.compute_dtype]

    @cached_property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.request.micro_batch

    @cached_property
    def _after(self) -> bool:
        """Whether what a part made is normed before it is added."""
        return self.shape.norms == 4 or self.shape.model_type in BEHIND

    def products(self) -> int:
        """As of the general path, but their rows come by 128 and 512 at most; attention's are a row's own."""
        lengths = round_up(self.request.sequence_length, EVEN) // EVEN
        few = min(-(-self.tokens // 128), 4)
        fused, adapted = 4, 2 * len(self.walk.targets)
        return few * (2 * fused + 3 * adapted + 2) + (6 * lengths if self.explicit else 0)

    def static(self) -> Parts:
        """With the adapter counts its copy in the arithmetic's number format, and what positions need."""
        copies = self.size * self.walk.layers * self._copies()
        return super().static() + Counter(adapter=round(copies + self._tables()))

    def _copies(self) -> float:
        """Numbers of a layer's A matrices, and of its B matrices on the diagonal of one a fused product."""
        shape = self.shape
        qkv, gate_up = shape.Q + 2 * shape.K, 2 * shape.I
        products = (
            (("q_proj", "k_proj", "v_proj", "qkv_proj"), shape.H + qkv),
            (("o_proj",), shape.Q + shape.H),
            (("gate_proj", "up_proj", "gate_up_proj"), shape.H + gate_up),
            (("down_proj",), shape.I + shape.H),
        )
        adapted = self.walk.targets
        return self.request.rank * sum(sum(n in adapted for n in names) * both for names, both in products)

    def _tables(self) -> float:
        """Cosines and sines of the positions: for one head, or for one key head's queries and for itself."""
        shape, rows = self.shape, max(1 << (self.request.sequence_length - 1).bit_length(), 256)
        heads = shape.Q // shape.K + 1 if self.explicit else 1
        return 2 * self.size * rows * shape.width * heads

    @cached_property
    def explicit(self) -> bool:
        """Whether attention is computed by products, row by row, as on a CPU; no kernel caps its scores."""
        return self.request.attention == "eager" or self.shape.attention_cap

    def _weight(self, count: int) -> float:
        """A weight of so many numbers made of its 4 bits, with its blocks' scales."""
        return count * (self.size + 4 / 64) if self.walk.nf4 else 0

    @cached_property
    def _hidden(self) -> float:
        return self.size * self.tokens * self.shape.H

    @cached_property
    def _inner(self) -> float:
        return self.size * self.tokens * self.shape.I

    @cached_property
    def _attention(self) -> float:
        """Queries, keys and values, what they attend to, and probabilities of short rows or sums of all."""
        shape, size = self.shape, self.size
        if not self.explicit:
            mixed = shape.Q + 2 * shape.K
            kept = 2 if shape.qk_norm else 1
            return self.tokens * (size * (kept * mixed + shape.Q) + 4 * shape.heads)
        lengths = [round_up(length, EVEN) for length in self.request.row_lengths]
        cap = 2 if shape.attention_cap else 1
        scores = sum(cap * shape.heads * _triangle(length) for length in lengths if length <= SHORT)
        normed = shape.Q + 2 * shape.K if shape.qk_norm else 0
        return size * (sum(lengths) * (shape.Q + 2 * shape.K) + self.tokens * (shape.Q + normed) + scores)

    @cached_property
    def _full(self) -> float:
        """What a layer keeps besides its input when nothing is computed again."""
        shape, size = self.shape, self.size
        low = size * self.request.rank * len(self.walk.targets) + 4 * 4
        heads = 4 * (shape.Q + shape.K) / shape.width if shape.qk_norm else 0
        behind = 2 * self._hidden if self._after else 0
        return self._attention + self._hidden + 2 * self._inner + behind + self.tokens * (low + heads)

    @cached_property
    def _a_layer(self) -> float:
        """What a layer keeps for the backward pass, its input included."""
        mode = self.request.gradient_checkpointing
        if mode in ("layers", "offload"):
            return self._hidden if mode == "layers" else 0
        return self._hidden + self._full - (2 * self._inner if mode == "mlp" else 0)

    def _attention_forward(self) -> float:
        """What attention needs besides what it keeps: two blocks of products, or the turned queries."""
        return 2 * self._row_scores() if self.explicit else self.size * self.tokens * self.shape.Q

    def _attention_backward(self) -> float:
        """What its backward pass needs besides its result: a row's gradients, or all and the kernel's own."""
        shape, size, tokens = self.shape, self.size, self.tokens
        if self.explicit:
            return 4 * self._row_scores() + self._one_row()
        wide = 256 if shape.width > 128 else round_up(shape.width, 32)
        kernel = round_up(tokens, 128) * shape.heads * 4 * (wide + 1)
        spread = 2 * tokens * size * shape.Q if shape.K < shape.Q else 0
        return size * tokens * (shape.Q + 2 * shape.K) + max(kernel + spread, size * tokens * shape.Q)

    def _row_scores(self) -> float:
        """Products of a block of queries with all keys of the longest row."""
        longest = round_up(max(self.request.row_lengths), EVEN)
        return self.size * self.shape.heads * min(longest, BLOCK) * longest

    def _norm(self, width: int) -> float:
        """Three float32 tensors at once in the backward pass of a norm."""
        return (12 if self.size < 4 else 8) * self.tokens * width

    def _forward(self) -> float:
        """The most that a layer's forward pass needs besides its input: in a product, or in attention."""
        shape = self.shape
        down = self._full + self._inner + self._hidden + self._weight(shape.H * shape.I)
        mixed = self.size * self.tokens * (shape.Q + 2 * shape.K)
        attention = self._hidden + mixed + self._attention + self._attention_forward()
        up = self._full + self._hidden + self._weight(2 * shape.H * shape.I)
        return max(down + self._dropped(shape.I), attention, up + self._dropped(shape.H))

    def _dropped(self, width: int) -> float:
        return self.size * self.tokens * width if self.request.dropout else 0

    def _backward(self) -> float:
        """The most that a layer's backward pass needs besides all that the layer keeps and its input.

        The gradient of its output is alive all the time. In turn: down, the activation, gate and up with
        their norm, o, attention, and queries, keys and values with their norm.
        """
        shape, hidden, inner = self.shape, self._hidden, self._inner
        wide, queries = self._norm(shape.H), self.size * self.tokens * shape.Q
        mixed = self.size * self.tokens * (shape.Q + 2 * shape.K)
        kept, less = self._full + hidden, self._full - 2 * inner + hidden
        behind = hidden if self._after else 0
        late = less + behind + hidden + queries + mixed
        return max(
            kept + behind + inner + self._weight(shape.H * shape.I),
            kept + behind + 6 * inner + self._dropped(shape.I),
            less + behind + 2 * inner + 2 * hidden + self._weight(2 * shape.H * shape.I),
            less + behind + 2 * inner + 2 * hidden + wide,
            late + self._attention_backward(),
            late + (self._norm(shape.Q) + 2 * queries if shape.qk_norm else 0),
            late + 2 * hidden + max(wide, self._weight(shape.H * (shape.Q + 2 * shape.K))),
        )

    def _one_row(self) -> float:
        """Gradients of the longest row's queries, keys and values by heads, and of what they attend to."""
        longest = round_up(max(self.request.row_lengths), EVEN)
        keys = 4 if longest > 8 * BLOCK else self.size
        return longest * (2 * self.size * self.shape.Q + 2 * keys * self.shape.K)

    def _moments(self) -> list[Parts]:
        """In a forward pass, the loss and its backward pass, the last and the first layer, the update."""
        shape, request = self.shape, self.request
        gradients = self.walk.trained_weights * self.walk.trained_size
        before = gradients if request.gradient_accumulation_steps > 1 else 0
        kept, loss = self.walk.layers * self._a_layer, self._head()
        again = self._a_layer if request.gradient_checkpointing in ("none", "mlp") else 0
        fetched = 2 if request.gradient_checkpointing == "offload" else 0
        layer = self._backward() + (1 + fetched + (not again)) * self._hidden
        rest = kept - max(again - self._hidden, 0)
        return [
            self._moment(before, kept - again + self._hidden + self._forward(), 0),
            self._moment(before, kept + self._hidden, 3 * self._hidden + loss),
            self._moment(before, kept + self._hidden + self._norm(shape.H), self._hidden),
            self._moment(before, rest + layer, 0),
            self._moment(max(gradients, before), 2 * self._hidden + layer, 0),
            self._moment(gradients, 0, 0),
        ]

    def _head(self) -> float:
        """Logits of a chunk of tokens: products, which take up their gradient, float32 logits, shares."""
        size = self.size
        a_logit = 16 + size if self.shape.logits_cap else 8 if size == 4 else 8 + size
        return min(self.tokens, CHUNK) * self.shape.V * a_logit


def _triangle(length: int) -> int:
    """Products of a row's queries with the keys up to the end of their block."""
    return sum(
        (min(begin + BLOCK, length) - begin) * min(begin + BLOCK, length) for begin in range(0, length, BLOCK)
    )
