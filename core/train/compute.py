"""What is computed for the loop: gradients of a window, losses of held-out rows, answers.

`Computer` does it in one process. With several, rank 0 has a `Leader` in its place (`leader.py`), which deals
the rows out; the loop does not know the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from ollama_tune.core.data.tokens.encoded import counted
from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.path import Batch, TrainPath
from ollama_tune.core.train.session import Session

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Engine

Rows = Sequence[Sequence[int]]
Scale = Callable[[torch.Tensor], torch.Tensor]


class Summed(NamedTuple):
    """A sum of losses, and over how many supervised tokens."""

    loss: float
    tokens: int


class Computer:
    """Computes with a path's model in this process; `ranks` such processes work on a run."""

    ranks = 1

    def __init__(
        self, session: Session, path: TrainPath, examples: Sequence[Example], validation: Sequence[Example]
    ) -> None:
        self._session = session
        self._training = session.settings.training
        self.path = path
        self.examples = counted(examples)
        self.validation = validation

    @property
    def engine(self) -> Engine:
        """What writes answers with the model."""
        return self.path.engine

    def recompute(self, what: Recompute) -> None:
        """From now on keep less for the backward pass."""
        self.path.recompute(what)

    def collate(self, rows: Sequence[int]) -> Batch:
        """A micro-batch of training rows."""
        capacity = self._training.sequence_length if self._training.packing else 0
        return self.path.collate([self.examples[row] for row in rows], capacity)

    def gradients(self, window: Rows, step: int, scale: Scale) -> float:
        """Add up the gradients of the mean loss over the supervised tokens of a step; returns that loss.

        `scale` turns a loss into what is differentiated. A window computed again draws the same random
        numbers; in other parts, others (the masks' shapes differ), but always the same for the same parts.
        """
        batches = self.begin(window, step)
        return self.backward(batches, sum(batch.supervised_tokens for batch in batches), scale)

    def begin(self, window: Rows, step: int, rank: int = 0) -> list[Batch]:
        """Set the random numbers of a rank's share of a step, and make its micro-batches."""
        torch.manual_seed(self._training.seed * 1_000_003 + step + (rank << 40))
        return [self.collate(rows) for rows in window]

    def backward(self, batches: Sequence[Batch], supervised: int, scale: Scale, idle: int = 0) -> float:
        """Add up the gradients of the summed losses over `supervised` tokens; returns the loss.

        So many `idle` micro-batches are computed in vain, for ranks that need this one's part of the model.
        """
        self.path.train(True)
        for _ in range(idle):
            (0 * self.path.loss(self.collate(self._shortest))).backward()  # type: ignore[no-untyped-call]
        self._forget_idle(idle, on=True)
        total = torch.zeros((), device=self.path.device)
        for batch in batches:
            self._session.check_stop()
            loss = self.path.loss(batch) / supervised
            scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)

    def _forget_idle(self, idle: int, *, on: bool) -> None:
        """The figures of rows begin after those that were computed in vain."""
        if idle:
            self.path.train(on)

    @cached_property
    def _shortest(self) -> list[int]:
        """The shortest row, as a micro-batch."""
        return [min(range(len(self.examples)), key=self.examples.counts.__getitem__)]

    def mean_loss(
        self, size: int, rows: int | None = None, *, tuned: bool = True, inputs: LayerInputs | None = None
    ) -> float | None:
        """Mean loss over the supervised tokens of the (first) validation rows, `size` rows at once.

        None where there are no rows. Not `tuned`, the base model's. `inputs` gets what layers are fed with.
        """
        if not self.validation:
            return None
        count = len(self.validation[:rows])
        parts = [(start, min(start + size, count)) for start in range(0, count, size)]
        loss, tokens = self.losses(parts, tuned=tuned, inputs=inputs)
        return loss / tokens

    def figures(self) -> dict[str, float]:
        """Further figures of the window or the rows computed last, for their event."""
        return {name: total / count for name, (total, count) in self.path.tallies().items()}

    @torch.no_grad()
    def losses(
        self,
        parts: Sequence[tuple[int, int]],
        *,
        tuned: bool,
        inputs: LayerInputs | None = None,
        idle: int = 0,
    ) -> Summed:
        """The summed losses of these stretches of the validation rows, one computed after the other.

        `idle` as in `backward`.
        """
        self.path.train(False)
        total, tokens = 0.0, 0
        with contextlib.nullcontext() if tuned else self.path.without_adapter():
            for _ in range(idle):
                self.path.loss(self.collate(self._shortest))
        self._forget_idle(idle, on=False)
        with contextlib.ExitStack() as stack:
            if not tuned:
                stack.enter_context(self.path.without_adapter())
            if inputs is not None:
                stack.enter_context(self.path.watched(inputs.observe))
            for start, end in parts:
                self._session.check_stop()
                batch = self.path.collate(self.validation[start:end])
                total += float(self.path.loss(batch))
                tokens += batch.supervised_tokens
        return Summed(total, tokens)
