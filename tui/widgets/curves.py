"""A figure of every step, and the same in few buckets, as a chart needs it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

BUCKETS = 512
LONGEST = 4_000_000
"""Steps after this one are not kept: 32 MB a curve, and no run is so long."""
GAP = math.nan


@dataclass
class Bucket:
    """The losses of a few neighbouring steps."""

    low: float = math.inf
    high: float = -math.inf
    sum: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """The mean loss; only of a bucket that holds one."""
        return self.sum / self.count

    def merged(self, other: Bucket) -> Bucket:
        """Both as one."""
        return Bucket(
            min(self.low, other.low),
            max(self.high, other.high),
            self.sum + other.sum,
            self.count + other.count,
        )


class LossCurve:
    """The losses of a run: eight bytes a step, and at most 512 buckets, each of `width` steps.

    Bucket i holds the steps from i * width + 1 to (i + 1) * width. Buckets are made when somebody looks, of
    what is new since then, so that drawing costs the same however long the run is; reading a long log costs
    one append a step. What a resumed run does again replaces what it was.
    """

    def __init__(self) -> None:
        self._width = 1
        self._steps = array("d")
        self._made: list[Bucket] = []
        self._known = 0
        self._closer: dict[int, Bucket] = {}
        self._closer_width = 0

    def add(self, step: int, loss: float | None) -> None:
        """Take in the loss of one step (counted from 1); None and NaN leave a gap."""
        if loss is None or not math.isfinite(loss):
            return
        if step == len(self._steps) + 1:
            self._steps.append(loss)
        elif 1 <= step <= LONGEST:
            self._steps.extend([GAP] * (step - len(self._steps)))
            self._steps[step - 1] = loss
            self._forget(step - 1)

    def cut(self, step: int) -> None:
        """Forget the steps after `step`."""
        del self._steps[max(step, 0) :]
        self._forget(len(self._steps))

    def _forget(self, steps: int) -> None:
        """Only the buckets of the first `steps` steps are still what they were."""
        if steps < self._known:
            del self._made[steps // self._width :]
            self._known = len(self._made) * self._width
            self._closer.clear()

    @property
    def width(self) -> int:
        """Steps a bucket."""
        return self._width if self.buckets else 1

    @property
    def buckets(self) -> list[Bucket]:
        """All buckets up to the last step; one without a loss has the count 0."""
        total = len(self._steps)
        if self._known != total:
            while total > BUCKETS * self._width:
                self._merge()
            del self._made[self._known // self._width :]
            first = len(self._made) * self._width
            self._made += [self._bucket(at, self._width) for at in range(first, total, self._width)]
            self._known = total
        return self._made

    def points(self) -> Iterator[tuple[float, Bucket]]:
        """Each bucket that holds a loss, with the step in its middle."""
        for index, bucket in enumerate(self.buckets):
            if bucket.count:
                yield index * self._width + (self._width + 1) / 2, bucket

    def between(self, first: int, last: int, most: int) -> Iterator[tuple[float, Bucket]]:
        """The same for the steps from `first` to `last`, in about `most` buckets if that is finer."""
        buckets = self.buckets
        width = max(-(-(last - first + 1) // most), 1)
        last = min(last, len(self._steps))
        near = width < self._width
        width = width if near else self._width
        for index in range(max(first - 1, 0) // width, -(-last // width)):
            bucket = self._near(index, width) if near else buckets[index]
            if bucket.count:
                yield index * width + (width + 1) / 2, bucket

    def _near(self, index: int, width: int) -> Bucket:
        """A finer bucket than the usual ones; whole ones are kept."""
        if width != self._closer_width or len(self._closer) > 8 * BUCKETS:
            self._closer.clear()
            self._closer_width = width
        bucket = self._closer.get(index)
        if bucket is None:
            bucket = self._bucket(index * width, width)
            if (index + 1) * width <= len(self._steps):
                self._closer[index] = bucket
        return bucket

    def _bucket(self, start: int, width: int) -> Bucket:
        losses = [loss for loss in self._steps[start : start + width] if loss == loss]
        return Bucket(min(losses), max(losses), sum(losses), len(losses)) if losses else Bucket()

    def _merge(self) -> None:
        """Pairs become one; a last one without a partner, and what was not whole, is made again."""
        whole = min(self._known // self._width, len(self._made)) // 2 * 2
        pairs = zip(self._made[:whole:2], self._made[1:whole:2], strict=True)
        self._made = [first.merged(second) for first, second in pairs]
        self._width *= 2
        self._known = len(self._made) * self._width
