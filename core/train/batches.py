"""Which rows each optimizer step sees: a pure function of the seed, so that any step can be repeated."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings

if TYPE_CHECKING:
    import torch

GROUP = 64


class StepPlan:
    """The micro-batches (lists of row numbers) of every optimizer step of a run.

    Each epoch shuffles the rows, sorts them by length within groups of 64 batches so that little is
    padded, and shuffles the batches. The most expensive batch comes first in the first epoch: if memory
    does not suffice, that shows at once.
    """

    def __init__(self, lengths: Sequence[int], training: TrainingSettings) -> None:
        self._lengths = lengths
        self._batch_size = training.batch_size
        self._accumulation = training.gradient_accumulation_steps
        self._seed = training.seed
        self._epoch = -1
        self._batches: list[list[int]] = []
        batches = math.ceil(len(lengths) / self._batch_size)
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
        """The longest rows: no micro-batch of so many rows needs more memory, in any epoch."""
        return sorted(range(len(self._lengths)), key=self._lengths.__getitem__, reverse=True)[:count]

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
        batches: list[list[int]] = []
        group = GROUP * self._batch_size
        for start in range(0, len(rows), group):
            part = sorted(rows[start : start + group], key=self._lengths.__getitem__, reverse=True)
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        chance.shuffle(batches)
        if epoch == 0:
            first = max(range(len(batches)), key=lambda i: self._cost(batches[i]))
            batches[0], batches[first] = batches[first], batches[0]
        return batches

    def _cost(self, batch: list[int]) -> int:
        return len(batch) * max(self._lengths[row] for row in batch)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length; all tensors are rows x tokens.

    `trained` marks the tokens whose prediction is learned; `attention` is 1 on tokens and 0 on padding.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    trained: torch.Tensor
    useful_tokens: int
    supervised_tokens: int


def collate(examples: Sequence[Example], pad_id: int, device: str) -> Batch:
    """Make the tensors of one micro-batch on `device`."""
    import torch

    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(examples), width), dtype=torch.long)
    trained = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        attention[row, :length] = 1
        trained[row, :length] = torch.tensor(example.trained)
    return Batch(
        ids=ids.to(device),
        attention=attention.to(device),
        trained=trained.to(device),
        useful_tokens=sum(len(example.ids) for example in examples),
        supervised_tokens=sum(supervised(example) for example in examples),
    )


def supervised(example: Example) -> int:
    """How many tokens of a row are learned; the first token has nothing before it to predict it from."""
    return sum(example.trained[1:])


def fingerprint(examples: Sequence[Example]) -> str:
    """Names the rows and their order, so that a resumed run notices other data."""
    digest = hashlib.sha256()
    for example in examples:
        ids = array("I", example.ids).tobytes()
        digest.update(len(ids).to_bytes(8, "little") + ids + bytes(example.trained))
    return digest.hexdigest()
