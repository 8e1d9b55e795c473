"""Direct preference optimisation: a better and a worse answer, and a loss on how far apart they are.

Of a pair (question, better, worse) the loss is -log sigmoid(beta x margin), where the margin is how much more
likely the model finds the better answer than the model without its adapter does, less the same of the worse
one; likelihoods are natural logs, summed over the answer's tokens (Rafailov et al. 2023, arXiv 2305.18290,
equation 7). No logits are kept: a path gives the summed cross entropies of rows, which are those logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional

from ollama_tune.core.data.tokens.sides import Pair
from ollama_tune.core.data.values import Example
from ollama_tune.core.train.batches import fingerprint, supervised
from ollama_tune.core.train.path import Batch, Observe, TrainPath
from ollama_tune.core.train.session import Session
from ollama_tune.core.train.sums import summed

_ENTRY = struct.Struct("<dd")
_NONE = (0.0, 0.0)


class Reference:
    """What the model without adapter makes of each pair: the logs of the likelihoods of both answers.

    They never change, so they are kept in a file of the run: 16 bytes a pair, by its place. What a killed
    worker had not written is computed again, in the same batches and thus with the same result; so is what
    another process is just writing.
    """

    def __init__(self, path: Path) -> None:
        self._file = -1
        with contextlib.suppress(OSError):  # without a file they are computed each time
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self, places: Sequence[int]) -> list[tuple[float, float]] | None:
        """The logs of the pairs at these places; None unless all of them are known."""
        found = [self._entry(place) for place in places]
        return None if _NONE in found else found

    def _entry(self, place: int) -> tuple[float, float]:
        try:
            entry = os.pread(self._file, _ENTRY.size, place * _ENTRY.size)
            better, worse = _ENTRY.unpack(entry)
        except (OSError, struct.error):
            return _NONE
        return (better, worse) if better and worse else _NONE

    def keep(self, places: Sequence[int], found: Sequence[tuple[float, float]]) -> None:
        """Write the logs of some pairs."""
        with contextlib.suppress(OSError):
            for place, pair in zip(places, found, strict=True):
                os.pwrite(self._file, _ENTRY.pack(*pair), place * _ENTRY.size)

    def sync(self) -> None:
        """What was kept is on the disk."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)


@dataclass(frozen=True)
class PairBatch:
    """Pairs made ready to be computed at once: the row of each better answer, and after it that of the other.

    `lengths` are the trained tokens of these rows, `places` those of the pairs in the `Reference`.
    """

    sides: Batch
    lengths: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def useful_tokens(self) -> int:
        """Tokens of all rows."""
        return self.sides.useful_tokens

    @property
    def supervised_tokens(self) -> int:
        """What the summed loss is divided by: the pairs."""
        return len(self.places)


class PreferencePath:
    """A path that learns preferences; all that is not told here is that path's own (`TrainPath`).

    `anywhere` tells whether any rank says so of those that share out the model: what one of them has to
    compute, all compute.
    """

    def __init__(
        self,
        path: TrainPath,
        beta: float,
        reference: Reference,
        anywhere: Callable[[bool, str], bool] = lambda missing, device: missing,
    ) -> None:
        self._path, self._beta, self._reference = path, beta, reference
        self._anywhere = anywhere
        self._on = self._referring = False
        self._margins: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def collate(self, examples: Sequence[Example], capacity: int = 0) -> PairBatch:
        """Pairs as one micro-batch."""
        pairs, rows = cast(Sequence[Pair], examples), _sides(examples)
        lengths, places = (supervised(row) for row in rows), (pair.place for pair in pairs)
        return PairBatch(self._path.collate(rows, capacity), tuple(lengths), tuple(places))

    def loss(self, batch: Any, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """The sum of the pairs' losses, float32; with `lengths` the sums of runs of so many pairs each."""
        known = self._known(batch)
        found = -self._path.loss(batch.sides, batch.lengths).view(-1, 2)
        gains = found - found.new_tensor(known)
        margins = self._beta * (gains[:, 0] - gains[:, 1])
        self._margins.append(margins.detach())
        return summed(-functional.logsigmoid(margins), lengths)

    def _known(self, batch: PairBatch) -> list[tuple[float, float]]:
        """The logs by the model without adapter and dropout, computed the first time."""
        known = self._reference.read(batch.places)
        if self._anywhere(known is None, self._path.device):
            computed = self._computed(batch)
            if known is None:
                self._reference.keep(batch.places, computed)
                known = computed
        return known or []

    @torch.no_grad()
    def _computed(self, batch: PairBatch) -> list[tuple[float, float]]:
        self._referring = True
        self._path.train(False)
        try:
            with self._path.without_adapter():
                found = -self._path.loss(batch.sides, batch.lengths).view(-1, 2)
        finally:
            self._path.train(self._on)
            self._referring = False
        return [(better, worse) for better, worse in found.tolist()]

    def tallies(self) -> Mapping[str, tuple[float, int]]:
        """Of the pairs beta x margin, and how many better answers gained more than their worse ones."""
        if not self._margins:
            return {}
        margins = torch.cat(self._margins)
        sums = {"reward_margin": margins.sum(), "reward_accuracy": (margins > 0).sum()}
        return {name: (float(total), len(margins)) for name, total in sums.items()}

    def train(self, on: bool) -> None:
        """Dropout on or off; the figures begin anew."""
        self._on, self._margins = on, []
        self._path.train(on)

    def check(self, examples: Sequence[Example]) -> str:
        """As the path below does, with the rows of these pairs."""
        return self._path.check(_sides(examples))

    @contextlib.contextmanager
    def watched(self, observe: Observe) -> Iterator[None]:
        """As the path below does; what the model without adapter gets is not told."""

        def told(name: str, inputs: torch.Tensor) -> None:
            if not self._referring:
                observe(name, inputs)

        with self._path.watched(told):
            yield

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter, when what the next steps read is on the disk."""
        self._reference.sync()
        self._path.write_adapter(folder)


def _sides(examples: Sequence[Example]) -> list[Example]:
    """The rows of pairs."""
    return [side for pair in cast(Sequence[Pair], examples) for side in (pair.chosen, pair.rejected)]


def preferring(
    session: Session, path: TrainPath, training: Sequence[Example], validation: Sequence[Example]
) -> TrainPath:
    """The path with the run's beta, and a file of references that is named by the run's pairs.

    Processes of one machine share it; those of other machines have one of their own, for machines that write
    into the same parts of a file lose what the other wrote.
    """
    rows = hashlib.sha256((fingerprint(training) + fingerprint(validation)).encode()).hexdigest()
    first = session.world.rank - session.world.local_rank if session.world else 0
    reference = Reference(session.folder.path / f"preferences-{rows[:16]}{f'-{first}' if first else ''}")
    return PreferencePath(path, session.settings.training.beta, reference, session.group.anywhere)
