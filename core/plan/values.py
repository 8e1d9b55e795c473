"""What the plan room hands on: settings with their reasons, and estimates of memory, time and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ollama_tune.core.plan.settings import Settings


@dataclass(frozen=True)
class Choice:
    """A recommended value and, in at most 80 characters, why; `source` names the evidence."""

    value: Any
    reason: str
    source: str


@dataclass(frozen=True)
class MemoryPart:
    """One part of the predicted peak, in bytes; `name` is a word for the bar's legend."""

    name: str
    bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """The predicted peak by part against what is free on the device that trains, all in bytes."""

    device: str
    parts: tuple[MemoryPart, ...]
    free: int
    total: int
    method: str

    @property
    def needed(self) -> int:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """True when the sum is not above what is free."""
        return self.needed <= self.free


@dataclass(frozen=True)
class WorkEstimate:
    """How long the run takes and what it writes: steps, seconds, bytes on disk, each with its ground."""

    steps: int
    tokens: int
    seconds: float
    checkpoint_bytes: int
    export_bytes: int
    ground: str


@dataclass(frozen=True)
class Plan:
    """Settings, the reason of each recommended one, and what they cost.

    `changed` holds the dotted paths the person set; they are never touched by the recommendation.
    """

    settings: Settings
    choices: Mapping[str, Choice]
    memory: MemoryEstimate
    work: WorkEstimate
    changed: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))
