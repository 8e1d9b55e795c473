"""Cross entropy on the supervised tokens only, without a tokens x vocabulary tensor for the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ollama_tune.core.rounding import round_up
from ollama_tune.core.train.attention import FAR, packed_inputs, use_rows_apart
from ollama_tune.core.train.batches import Batch
from ollama_tune.core.train.sums import scaled, summed

CHUNK = 512
EVEN = 128
"""In 16 bit the head gets tokens in multiples of this: its product is compiled anew for each other number."""
NOTHING = -100
"""The target of a token that was added."""

Logits = Callable[[torch.Tensor], torch.Tensor]
Lengths = Sequence[int] | None


class _MadeInForward(torch.autograd.Function):
    """Keeps the gradient of its first input, built in the forward pass; backward only scales it."""

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, outer[0], ctx.lengths), None, None, None


class _CrossEntropy(_MadeInForward):
    """The same where the head is a frozen product and no more: softmax minus one-hot, times the head.

    All chunks share their buffers, because making tensors of that size costs more than what is done in them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: torch.Tensor, lengths: Lengths
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        even = EVEN if head.dtype.itemsize == 2 else 1
        states = hidden.new_zeros(min(CHUNK, round_up(len(targets), even)), hidden.shape[1], dtype=head.dtype)
        logits = states.new_empty(len(states), len(head))
        wide = logits.to(torch.promote_types(head.dtype, torch.float32))
        shares = torch.empty_like(wide)
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            wanted = targets[part, None]
            count, laid = len(wanted), slice(round_up(len(wanted), even))
            states[:count] = hidden[part]
            if wide is not logits:
                wide[laid].copy_(torch.mm(states[laid], head.t(), out=logits[laid]))
            else:
                torch.mm(states[laid], head.t(), out=logits[laid])
            torch.softmax(wide[laid], -1, out=shares[laid])
            sums = wide[:count].amax(-1) - shares[:count].amax(-1).log()  # the largest logit tells its share
            losses[part] = sums - wide[:count].gather(1, wanted)[:, 0]
            shares[:count].scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=shares.dtype))
            chosen = shares[laid] if wide is logits else logits[laid].copy_(shares[laid])
            gradient[part] = (chosen @ head)[:count]
        ctx.save_for_backward(gradient)
        ctx.lengths = lengths
        return summed(losses, lengths)


class _ChunkedCrossEntropy(_MadeInForward):
    """Sum of cross entropies; the gradient of the hidden states is built in the forward pass.

    Each chunk's logits are freed before the next chunk, and backward only scales.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, logits: Logits, lengths: Lengths
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = hidden[start : start + CHUNK].detach().requires_grad_()
            with torch.enable_grad():
                loss = _chunk_losses(part, targets[start : start + CHUNK], logits)
                gradient[start : start + CHUNK] = torch.autograd.grad(loss.sum(), part)[0]
            losses[start : start + CHUNK] = loss.detach()
        ctx.save_for_backward(gradient)
        ctx.lengths = lengths
        return summed(losses, lengths)


def _chunk_losses(hidden: torch.Tensor, targets: torch.Tensor, logits: Logits) -> torch.Tensor:
    """Each token's cross entropy; those added to make their number even have neither loss nor gradient."""
    count = len(targets)
    more = round_up(count, EVEN) - count if _in_sixteen_bit(hidden) else 0
    if more:
        hidden = functional.pad(hidden, (0, 0, 0, more))
        targets = functional.pad(targets, (0, more), value=NOTHING)
    losses = functional.cross_entropy(logits(hidden).float(), targets, reduction="none", ignore_index=NOTHING)
    return losses[:count]


def _in_sixteen_bit(hidden: torch.Tensor) -> bool:
    """Whether the head's product of these states is in 16 bit, by autocast or because they are."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return dtype.itemsize == 2


def summed_loss(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    logits: Logits,
    lengths: Lengths = None,
    *,
    train_head: bool = False,
) -> Any:
    """Sum of the cross entropies of `targets` (tokens) given `hidden` (tokens x width), in float32.

    With `lengths` the sums of runs of so many tokens each. A head that is itself trained needs gradients of
    its own weights: then each chunk is recomputed.
    """
    if torch.is_grad_enabled() and not train_head:
        if type(logits) is torch.nn.Linear and getattr(logits, "bias", None) is None:
            return _CrossEntropy.apply(hidden, targets, logits.weight, lengths)  # type: ignore[no-untyped-call]
        return _ChunkedCrossEntropy.apply(hidden, targets, logits, lengths)  # type: ignore[no-untyped-call]
    losses = [hidden.new_empty(0, dtype=torch.float32)]
    for start in range(0, len(targets), CHUNK):
        part = (hidden[start : start + CHUNK], targets[start : start + CHUNK], logits)
        losses.append(
            checkpoint(_chunk_losses, *part, use_reentrant=False) if train_head else _chunk_losses(*part)
        )
    return summed(torch.cat(losses), lengths)


def supervised_positions(hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states (tokens x width) whose next token is trained, and those next tokens.

    `hidden` is rows x tokens x width. A row's last token predicts nothing, so rows never meet.
    """
    rows, columns = batch.trained[:, 1:].nonzero(as_tuple=True)
    return hidden[rows, columns], batch.ids[rows, columns + 1]


class Objective:
    """The training loss of a causal language model: the sum over a batch's supervised tokens."""

    def __init__(self, causal: Any, lay: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> None:
        """`lay` gives a model's inputs their last form, such as embeddings in the place of ids."""
        self._causal = causal
        self._lay = lay
        self._decoder = causal.base_model
        self._head = causal.get_output_embeddings()
        self._train_head = any(weight.requires_grad for weight in self._head.parameters())
        self._whole = False
        self._apart = False

    def pack(self) -> bool:
        """Get ready for several rows in a sequence: where the model can (True), attention goes row by row."""
        self._apart = use_rows_apart(self._causal)
        return self._apart

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return self._lay(batch.inputs() | (packed_inputs(batch) if batch.rows and self._apart else {}))

    def __call__(self, batch: Batch, lengths: Lengths = None) -> Any:
        """Sum of cross entropies, float32, on the batch's device; with `lengths` the sums of runs of so many
        supervised tokens each, in the order of the rows."""
        if self._whole:
            return self.reference(batch, lengths)
        hidden = self._decoder(**self._inputs(batch))[0]
        states, targets = supervised_positions(hidden, batch)
        return summed_loss(states, targets, self._head, lengths, train_head=self._train_head)

    def reference(self, batch: Batch, lengths: Lengths = None) -> Any:
        """The same by the model's own forward pass with all logits: slower, but with every model's extras."""
        output = self._causal(**self._inputs(batch))
        logits, targets = supervised_positions(output.logits, batch)
        return summed(functional.cross_entropy(logits.float(), targets, reduction="none"), lengths)

    @torch.no_grad()
    def check(self, batch: Batch) -> bool:
        """Compare the logits of both ways on a batch; use the slow one from now on where they differ.

        Some models scale or cap their logits after the head, which the fast way does not see.
        """
        fast = self._head(self._decoder(**self._inputs(batch))[0]).float()
        slow = self._causal(**self._inputs(batch)).logits.float()
        self._whole = bool((fast - slow).norm() > 0.01 * slow.norm())
        return not self._whole

    @torch.no_grad()
    def keeps_rows_apart(self, packed: Batch, alone: Batch) -> bool:
        """Whether the last row of a packed batch gets the states that it gets alone.

        A model whose layers carry something on from token to token besides attention mixes rows.
        """
        together = self._decoder(**self._inputs(packed))[0][0].float()
        single = self._decoder(**self._inputs(alone))[0][0].float()
        last = together[: sum(packed.rows[0])][-len(single) :]
        return bool((last - single).norm() <= FAR * single.norm())
