"""Rank 0 of several processes: what the loop wants computed is dealt to all of them.

Weights go from here to all ranks before anything is computed with them, gradients come back as one sum. So
the data order, the rows of a step and, up to rounding, the loss curve are those of one process, and nobody
else needs an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.train.compute import Computer, Rows, Scale, Summed
from ollama_tune.core.train.dealing import deal
from ollama_tune.core.train.group import Group, Order
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.path import TrainPath
from ollama_tune.core.train.session import Session
from ollama_tune.core.train.shortage import NEED_LESS, is_out_of_memory
from ollama_tune.core.train.world import LostMemory

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Choose, Engine

Ids = Sequence[int]
T = TypeVar("T")
Tallies = dict[str, tuple[float, int]]


class FollowerShortage(MemoryError):
    """Memory ran out on another rank; the message quotes what its allocator was asked for."""


def make_computer(
    session: Session, path: TrainPath, examples: Sequence[Example], validation: Sequence[Example]
) -> Computer:
    """What computes for the loop: this process alone, or all ranks by what the leader tells them."""
    if isinstance(session.group, Group) and session.leads:
        return Leader(session, path, examples, validation, session.group)
    return Computer(session, path, examples, validation)


class Leader(Computer):
    """Computes its own share of a step or measurement while the followers compute theirs.

    Memory that runs out anywhere raises here, after all ranks have forgotten what they began, so that the
    recovery makes the parts smaller for all. In lockstep (a sharded model) it ends the run instead
    (`LostMemory`): a rank that fails leaves the others waiting for its part of the model.
    """

    def __init__(
        self,
        session: Session,
        path: TrainPath,
        examples: Sequence[Example],
        validation: Sequence[Example],
        group: Group,
    ) -> None:
        super().__init__(session, path, examples, validation)
        self.ranks = group.size
        self.group = group
        self.weights = list(path.weights.values())
        self._kept: Recompute = self._training.gradient_checkpointing
        self._tallies: Tallies = {}

    @property
    def engine(self) -> Engine:
        """What writes answers, on all ranks where there are many questions."""
        return GroupEngine(self)

    def recompute(self, what: Recompute) -> None:
        """From now on all ranks keep less for the backward pass."""
        self._kept = what
        super().recompute(what)

    def gradients(self, window: Rows, step: int, scale: Scale) -> float:
        """As one process would: the gradients of all rows end up here."""
        capacity = self._training.sequence_length if self._training.packing else 0
        shares = deal(window, self.examples.counts, self.ranks, capacity)
        about = max(sum(self.examples.supervised[row] for batch in window for row in batch), 1)
        idle = [self._idle(share, shares) for share in shares]
        factor = float(scale(torch.ones((), device=self.path.device)))
        self.order("window", step=step, shares=shares, idle=idle, supervised=about, scale=factor)

        def own() -> Summed:
            batches = self.begin(shares[0], step)
            tokens = sum(batch.supervised_tokens for batch in batches)
            return Summed(self.backward(batches, about, scale, idle[0]), tokens)

        mine, others = self._all(own)
        self.group.order("reduce")
        losses = [mine, *(Summed(*answer["sum"]) for answer, _ in others)]
        tokens = sum(each.tokens for each in losses)
        self.group.add_gradients(self.weights, about / tokens)
        return sum(each.loss for each in losses) * (about / tokens)

    def losses(
        self,
        parts: Sequence[tuple[int, int]],
        *,
        tuned: bool,
        inputs: LayerInputs | None = None,
        idle: int = 0,
    ) -> Summed:
        """As one process would, each rank a part of the rows."""
        shares = [list(parts[rank :: self.ranks]) for rank in range(self.ranks)]
        waits = [self._idle(share, shares) for share in shares]
        self.order("losses", shares=shares, idle=waits, tuned=tuned, watch=inputs is not None)
        mine, others = self._all(
            lambda: super(Leader, self).losses(shares[0], tuned=tuned, inputs=inputs, idle=waits[0])
        )
        for answer, seen in others:
            mine = Summed(mine.loss + answer["sum"][0], mine.tokens + answer["sum"][1])
            if inputs is not None:
                inputs.add(seen)
        return mine

    def figures(self) -> dict[str, float]:
        """Of the rows of all ranks."""
        return {name: total / count for name, (total, count) in self._tallies.items() if count}

    def order(self, do: str, **about: Any) -> None:
        """Give the followers an order and the weights to do it with."""
        self.group.order(do, keep=self._kept, **about)
        self.group.spread(self.weights)

    def _idle(self, share: Sequence[Any], shares: Sequence[Sequence[Any]]) -> int:
        """Micro-batches that a rank computes in vain, because the others need its part of the model."""
        return max(map(len, shares)) - len(share) if self.group.lockstep else 0

    def in_step(self, own: Callable[[], T]) -> T:
        """Do what, in lockstep, all ranks do at once: where one fails there, the others cannot go on."""
        try:
            return own()
        except (RuntimeError, MemoryError) as error:
            if not self.group.lockstep:
                raise
            if not is_out_of_memory(error):
                self.group.confirm()
                raise
        raise LostMemory(
            f"The memory of rank 0 of {self.ranks} (counted from 0) was used up, while the others waited for "
            "its part of the model.",
            NEED_LESS,
        )

    def _all(self, own: Callable[[], T]) -> tuple[T, list[tuple[Order, bytes]]]:
        """Do the own share, and collect what the others answer."""
        try:
            mine = self.in_step(own)
        except Exception as error:
            if is_out_of_memory(error):
                self.group.answers()
                self.group.order("forget")
            raise
        others = self.group.answers()
        short = next((answer["short"] for answer, _ in others if "short" in answer), None)
        if short is not None:
            self.group.order("forget")
            raise FollowerShortage(short)
        self._tallies = dict(self.path.tallies())
        for answer, _ in others:
            for name, (total, count) in answer.get("tallies", {}).items():
                before = self._tallies.get(name, (0.0, 0))
                self._tallies[name] = before[0] + total, before[1] + count
        return mine, others


class GroupEngine:
    """Writes answers with all ranks; see `core/train/path.py`'s `Engine`.

    Questions that one rank answers at once stay here. In lockstep every rank writes the same answers, with
    the tokens that are chosen here.
    """

    def __init__(self, leader: Leader) -> None:
        self._leader, self._group = leader, leader.group
        self._own = leader.path.engine

    @property
    def rows(self) -> int:
        """Prompts that are well answered at once."""
        return self._own.rows * (1 if self._group.lockstep else self._group.size)

    def decode(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        stop_ids: Ids,
        choose: Choose | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_tokens: Callable[[Ids], None] | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, up to a stop token, which is included, or the limit."""
        shared: dict[str, Any] = {"max_new_tokens": max_new_tokens, "tuned": tuned}
        shared |= {"stop_ids": list(stop_ids)}
        if self._group.lockstep:
            self._leader.order("decode", shares=[list(map(list, prompts))] * self._group.size, **shared)
            voice = _Voice(self._group, choose, stopped)
            shared |= {"choose": voice.choose, "stopped": voice.stopped, "on_tokens": on_tokens}
            return self._leader.in_step(lambda: self._own.decode(prompts, **shared))
        if choose is not None or len(prompts) <= self._own.rows:
            return self._own.decode(prompts, **shared, choose=choose, stopped=stopped, on_tokens=on_tokens)
        return self._shared(prompts, shared, stopped, on_tokens)

    def _shared(
        self,
        prompts: Sequence[Ids],
        about: dict[str, Any],
        stopped: Callable[[], bool],
        on_tokens: Callable[[Ids], None] | None,
    ) -> list[list[int]]:
        ranks = self._group.size
        shares = [[list(prompt) for prompt in prompts[rank::ranks]] for rank in range(ranks)]
        self._leader.order("decode", shares=shares, **about)
        mine, others = self._leader._all(lambda: self._own.decode(shares[0], **about, stopped=stopped))
        found: list[list[int]] = [[] for _ in prompts]
        for rank, answers in enumerate([mine, *(answer["tokens"] for answer, _ in others)]):
            found[rank::ranks] = answers
        if on_tokens is not None and not stopped():
            for place in range(max(map(len, found))):
                on_tokens([answer[place] for answer in found if place < len(answer)])
        return found

    def logits(self, ids: Ids, positions: Sequence[int], *, tuned: bool) -> Any:
        """float32 logits (positions x vocabulary) of the token after each position."""
        if self._group.lockstep:
            self._leader.order("logits", ids=list(ids), positions=list(positions), tuned=tuned)
        return self._leader.in_step(lambda: self._own.logits(ids, positions, tuned=tuned))

    def likelihoods(self, examples: Sequence[Example], *, tuned: bool) -> list[float]:
        """Of each row the natural log of the probability of its supervised tokens, summed."""
        if self._group.lockstep:
            rows = [[list(example.ids), list(example.trained)] for example in examples]
            self._leader.order("likelihoods", rows=rows, tuned=tuned)
        return self._leader.in_step(lambda: self._own.likelihoods(examples, tuned=tuned))


class _Voice:
    """Says each token that is chosen, and whether the answers end there, so that all ranks go on alike."""

    def __init__(self, group: Group, choose: Choose | None, stopped: Callable[[], bool]) -> None:
        self._group, self._choose, self._asked = group, choose, stopped
        self._spoken, self._over = 0, False

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each answer."""
        chosen = logits.argmax(-1) if self._choose is None else self._choose(logits)
        self._over = self._asked()
        self._spoken += 1
        self._group.say(str(self._spoken), {"tokens": chosen.tolist(), "over": self._over})
        return chosen

    def stopped(self) -> bool:
        """What was said last."""
        return self._over


class Ear:
    """Hears a leader's `_Voice`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._heard, self._over = 0, False

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The token that the leader chose for each answer."""
        self._heard += 1
        said = self._group.hear(str(self._heard))
        self._over = said["over"]
        return torch.tensor(said["tokens"], device=logits.device)

    def stopped(self) -> bool:
        """What was heard last."""
        return self._over
