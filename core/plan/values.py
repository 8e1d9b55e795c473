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
    """The predicted peak by part against what is free on the device that trains, all in bytes.

    `method` says in words which layer of the prediction the figure comes from, `remark` how it compares
    with another layer's or why there is none; empty where that does not matter. Of several `processes` on
    GPUs the figures are those of one GPU, the one with the least free memory; `sharded` says that the model
    is shared out among them.
    """

    device: str
    parts: tuple[MemoryPart, ...]
    free: int
    total: int
    method: str
    remark: str = ""
    processes: int = 1
    sharded: bool = False

    @property
    def needed(self) -> int:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """True when the sum is not above what is free."""
        return self.needed <= self.free

    @property
    def together(self) -> str:
        """How the run is spread, in words: `on 4 GPUs, the rows of a step split between them`; else empty."""
        if self.processes == 1:
            return ""
        where = "GPUs" if self.device == "cuda" else "processes"
        model = ", and the model too" if self.sharded else ""
        return f"on {self.processes} {where}, the rows of a step split between them{model}"


@dataclass(frozen=True)
class WorkEstimate:
    """How long the run takes and what it writes: steps, seconds, bytes on disk, each with its ground.

    `ollama_bytes` is what a local Ollama writes when it takes the exported file, `download_bytes` what is
    still to be fetched of the base model. The time lies between seconds / `spread` and seconds x `spread`.
    `energy_kwh` is the most that the GPU draws by its power limit; None where that is not known.
    """

    steps: int
    tokens: int
    seconds: float
    checkpoint_bytes: int
    export_bytes: int
    ground: str
    ollama_bytes: int = 0
    download_bytes: int = 0
    spread: float = 2.0
    energy_kwh: float | None = None


@dataclass(frozen=True)
class Offer:
    """A way out of a plan that does not fit: values to set, what they cost in words, the memory then.

    `changes` maps dotted paths to values; with them set the plan fits.
    """

    changes: Mapping[str, Any]
    text: str
    memory: MemoryEstimate

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))


@dataclass(frozen=True)
class Plan:
    """Settings, the reason of each recommended one, and what they cost.

    `changed` holds the dotted paths the person set; they are never touched by the recommendation.
    `offers` are the nearest plans that fit, where this one does not; the cheapest way out first.
    """

    settings: Settings
    choices: Mapping[str, Choice]
    memory: MemoryEstimate
    work: WorkEstimate
    changed: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = field(default=())
    offers: tuple[Offer, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def given(self) -> Settings:
        """The person's values and the device alone, the rest as by default: what another value of theirs must
        go with, since everything recommended follows it."""
        paths = {"training.device", *self.changed}
        return Settings().with_values({path: self.settings.get(path) for path in sorted(paths)})
