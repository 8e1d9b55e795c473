"""Which rows each optimizer step sees: a pure function of the seed, so that any step can be repeated."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.tokens.encoded import counted
from ollama_tune.core.data.tokens.pack import pack
from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings

if TYPE_CHECKING:
    import torch

GROUP = 64


class StepPlan:
    """The micro-batches (lists of row numbers) of every optimizer step of a run.

    Each epoch shuffles the rows. Packed, they are laid into full sequences, and `batch_size` sequences make
    a micro-batch; else `batch_size` rows do. Where those are padded, rows are sorted by length within groups
    of 64 batches so that little is padded. Then the batches are shuffled. The most expensive batch comes
    first in the first epoch: if memory does not suffice, that shows at once.
    """

    def __init__(self, lengths: Sequence[int], training: TrainingSettings, *, padded: bool = True) -> None:
        self._lengths = lengths
        self._padded = padded
        self._batch_size = training.batch_size
        self._accumulation = training.gradient_accumulation_steps
        self._seed = training.seed
        self._capacity = training.sequence_length if training.packing else 0
        self._epoch = -1
        self._batches: list[list[int]] = []
        packs = pack(lengths, self._capacity) if self._capacity else []
        self._fullest = self._fullest_batch(packs)
        batches = math.ceil(len(packs or lengths) / self._batch_size)
        self.most_rows = self._most_rows(packs)
        self.steps_per_epoch = math.ceil(batches / self._accumulation)
        self.total_steps = max(math.ceil(training.epochs * self.steps_per_epoch - 1e-9), 1)

    def window(self, step: int) -> list[list[int]]:
        """The micro-batches whose gradients are added up in a step; steps count from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        start = index * self._accumulation
        return self._batches[start : start + self._accumulation]

    def longest(self, count: int) -> list[int]:
        """Rows such that no micro-batch of at most so many needs more memory, in any epoch."""
        rows = self._longest_first(range(len(self._lengths)))[:count]
        if not self._capacity:
            return rows
        while len(lay([self._lengths[row] for row in rows], self._capacity)) > self._batch_size:
            rows.pop()
        fullest = self._fullest[:count]
        return fullest if self._cost(fullest) > self._cost(rows) else rows

    def most_tokens(self, count: int) -> int:
        """The tokens of `longest(count)`, without padding."""
        return sum(self._lengths[row] for row in self.longest(count))

    def shortest(self) -> list[int]:
        """The shortest row, as a micro-batch."""
        return [min(range(len(self._lengths)), key=self._lengths.__getitem__)]

    def epoch_at(self, step: int) -> float:
        """How many epochs are done after that many steps."""
        return step / self.steps_per_epoch

    def _order(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"rows {self._seed} {epoch}")
        rows = list(range(len(self._lengths)))
        chance.shuffle(rows)
        batches = self._packed(rows, chance) if self._capacity else self._grouped(rows)
        chance.shuffle(batches)
        if epoch == 0:
            first = max(range(len(batches)), key=lambda i: self._cost(batches[i]))
            batches[0], batches[first] = batches[first], batches[0]
        return batches

    def _grouped(self, rows: list[int]) -> list[list[int]]:
        if self._padded:
            group = GROUP * self._batch_size
            parts = [rows[start : start + group] for start in range(0, len(rows), group)]
            rows = [row for part in parts for row in self._longest_first(part)]
        return [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]

    def _longest_first(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=self._lengths.__getitem__, reverse=True)

    def _packed(self, rows: list[int], chance: random.Random) -> list[list[int]]:
        """Rows of equal length change places in each epoch; the number of sequences is always the same."""
        packs = pack([self._lengths[row] for row in rows], self._capacity)
        chance.shuffle(packs)
        return [
            [rows[place] for group in packs[start : start + self._batch_size] for place in group]
            for start in range(0, len(packs), self._batch_size)
        ]

    def _fullest_batch(self, packs: Sequence[Sequence[int]]) -> list[int]:
        filled = sorted(packs, key=lambda group: sum(self._lengths[row] for row in group), reverse=True)
        return [row for group in filled[: self._batch_size] for row in group]

    def _most_rows(self, packs: Sequence[Sequence[int]]) -> int:
        """The most rows of any micro-batch."""
        sizes = sorted(map(len, packs), reverse=True)
        return sum(sizes[: self._batch_size]) if packs else self._batch_size

    def _cost(self, batch: Sequence[int]) -> int:
        """Tokens computed, padding included."""
        lengths = [self._lengths[row] for row in batch]
        if not self._padded:
            return sum(lengths)
        widths = [sum(group) for group in lay(lengths, self._capacity)] if self._capacity else lengths
        return len(widths) * max(widths)


def lay(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The lengths in the same order, in as few sequences of at most `capacity` tokens as possible.

    Any part of the rows of some packs takes no more sequences than the packs.
    """
    sequences: list[list[int]] = []
    space = -1
    for length in lengths:
        if length > space:
            sequences.append([])
            space = capacity
        sequences[-1].append(length)
        space -= length
    return sequences


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right to one length; all tensors are sequences x tokens.

    `trained` marks the tokens whose prediction is learned; `attention` is 1 on tokens and 0 on padding.
    Packed sequences hold several rows each, `rows` tells how long they are; then `positions` start again
    with each row (padding counts as one) and there is no `attention`.
    """

    ids: torch.Tensor
    attention: torch.Tensor | None
    trained: torch.Tensor
    useful_tokens: int
    supervised_tokens: int
    positions: torch.Tensor | None = None
    rows: tuple[tuple[int, ...], ...] = ()

    @property
    def real(self) -> torch.Tensor | None:
        """Which tokens are no padding, over all sequences; None where every one is real."""
        import torch

        if self.attention is not None:
            return self.attention.reshape(-1).bool()
        lengths, width = [sum(group) for group in self.rows], self.ids.shape[1]
        if all(length == width for length in lengths):
            return None
        return (torch.arange(width) < torch.tensor(lengths)[:, None]).reshape(-1).to(self.ids.device)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """How many tokens lie together, over all sequences, and how many their row has; 0 for padding."""
        width = self.ids.shape[1]
        rows: Sequence[tuple[int, ...]] = self.rows or ((width,),) * len(self.ids)
        if self.attention is not None:
            rows = [(int(count),) for count in self.attention.sum(1)]
        return [p for group in rows for p in (*((n, n) for n in group), (width - sum(group), 0))]

    def inputs(self) -> dict[str, Any]:
        """What a model is called with; packed rows are told apart by their positions."""
        told = {"attention_mask": self.attention} | (
            {} if self.positions is None else {"position_ids": self.positions}
        )
        return {"input_ids": self.ids, "use_cache": False} | told


def collate(
    examples: Sequence[Example], pad_id: int, device: str, capacity: int = 0, least_width: int = 0
) -> Batch:
    """Make the tensors of one micro-batch on `device`; packed into sequences where a capacity is given."""
    import torch

    lengths = [len(example.ids) for example in examples]
    laid = lay(lengths, capacity) if capacity else [[length] for length in lengths]
    width = max(least_width, *map(sum, laid))
    ids = torch.full((len(laid), width), pad_id, dtype=torch.long)
    trained = torch.zeros((len(laid), width), dtype=torch.bool)
    waiting = iter(examples)
    for sequence, group in enumerate(laid):
        for start, length in zip(accumulate(group, initial=0), group, strict=False):
            example = next(waiting)
            ids[sequence, start : start + length] = torch.tensor(example.ids)
            trained[sequence, start : start + length] = torch.tensor(example.trained)
            trained[sequence, start] &= start == 0
    return Batch(
        ids=ids.to(device),
        attention=None if capacity else _attention(laid, width).to(device),
        trained=trained.to(device),
        useful_tokens=sum(lengths),
        supervised_tokens=sum(supervised(example) for example in examples),
        positions=_positions(laid, width).to(device) if capacity else None,
        rows=tuple(map(tuple, laid)) if capacity else (),
    )


def _attention(laid: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    import torch

    return (torch.arange(width) < torch.tensor([[sum(group)] for group in laid])).long()


def _positions(laid: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    import torch

    return torch.stack([torch.cat([torch.arange(n) for n in (*group, width - sum(group))]) for group in laid])


def supervised(example: Example) -> int:
    """How many tokens of a row are learned; the first token has nothing before it to predict it from."""
    return sum(example.trained[1:])


def fingerprint(examples: Sequence[Example]) -> str:
    """Names the rows and their order, so that a resumed run notices other data."""
    digest = hashlib.sha256()
    known = counted(examples)
    for index in range(len(known)):
        ids, trained = known.raw(index)
        digest.update(len(ids).to_bytes(8, "little") + ids + trained)
    return digest.hexdigest()
