"""Single values that a viewer of a run holds: measurements, checkpoints, memory, lines of the log."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ValidationPoint:
    """One measurement on the validation rows; `exact_match` from 0 to 1 where answers were written."""

    step: int
    loss: float | None
    exact_match: float | None


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is, in `unit` (bytes are `B`)."""

    name: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Memory:
    """Memory of the device that trains, in bytes; `parts` of the peak as far as the worker knows them."""

    device: str
    used: int
    peak: int
    free: int
    total: int
    parts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeResult:
    """What the longest rows took when they were tried before the first step, in bytes.

    `limit` is what the run may use; 0 where it is not known.
    """

    predicted: int
    measured: int
    limit: int


@dataclass(frozen=True)
class Checkpoint:
    """A resumable state that the worker wrote at the Unix time `t`."""

    step: int
    bytes: int
    best: bool
    reason: str
    t: float


@dataclass(frozen=True)
class Patience:
    """Early stopping: evaluations without a better loss, after how many of them the run ends (0: never)."""

    waited: int
    patience: int


@dataclass(frozen=True)
class LogLine:
    """One sentence of the log: Unix time, a sign (empty, `✓`, `!` or `✗`) and the text."""

    t: float
    sign: str
    text: str
