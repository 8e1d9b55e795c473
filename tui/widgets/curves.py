"""The loss of every step in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BUCKETS = 512


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
    """At most 512 buckets, each of `width` steps; when they are full, pairs merge and the width doubles.

    Bucket i holds the steps from i * width + 1 to (i + 1) * width, so a chart knows where each one
    lies and a resumed run can take back the steps after its checkpoint.
    """

    def __init__(self) -> None:
        self.width = 1
        self.buckets: list[Bucket] = []

    def add(self, step: int, loss: float | None) -> None:
        """Take in the loss of one step (counted from 1); None and NaN leave a gap."""
        if loss is None or not math.isfinite(loss) or step < 1:
            return
        while step > BUCKETS * self.width:
            self._merge()
        index = (step - 1) // self.width
        while index >= len(self.buckets):
            self.buckets.append(Bucket())
        bucket = self.buckets[index]
        bucket.low = min(bucket.low, loss)
        bucket.high = max(bucket.high, loss)
        bucket.sum += loss
        bucket.count += 1

    def cut(self, step: int) -> bool:
        """Forget the steps after `step`; False where a bucket that the border crosses still holds some."""
        known = len(self.buckets)
        del self.buckets[-(-step // self.width) :]
        return step % self.width == 0 or known * self.width <= step

    def points(self) -> Iterator[tuple[float, Bucket]]:
        """Each bucket that holds a loss, with the step in its middle."""
        for index, bucket in enumerate(self.buckets):
            if bucket.count:
                yield index * self.width + (self.width + 1) / 2, bucket

    def _merge(self) -> None:
        if len(self.buckets) % 2:
            self.buckets.append(Bucket())
        pairs = zip(self.buckets[::2], self.buckets[1::2], strict=True)
        self.buckets = [first.merged(second) for first, second in pairs]
        self.width *= 2
