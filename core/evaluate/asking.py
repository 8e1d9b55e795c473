"""How questions are asked: the choice of tokens, the length of an answer and the system prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import UsageError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.runs.folder import RunFolder

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings

FILE = "try-it.json"


@dataclass(frozen=True)
class Sampling:
    """How each next token is chosen from the model's probabilities.

    At `temperature` 0 the most likely one (greedy). Else one is drawn: the logits are divided by the
    temperature, only the `top_k` most likely tokens stay (0: all), and of these the fewest whose share is at
    least `top_p`. One `seed` gives one answer on one machine.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 7

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature <= 0

    def words(self) -> str:
        """`always the likeliest token`, or `temperature 0.8, top-p 0.9, seed 7`."""
        if self.greedy:
            return "always the likeliest token"
        cuts = [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        cuts += [f"top-k {self.top_k:,}"] if self.top_k else []
        return ", ".join([f"temperature {self.temperature:g}", *cuts, f"seed {self.seed}"])


GREEDY = Sampling()


@dataclass(frozen=True)
class Limits:
    """What a figure may be: whole or not, from `low` (itself only where `closed`) to `high`."""

    kind: type[int] | type[float]
    low: float
    high: float
    example: str
    closed: bool = True

    def read(self, text: str) -> Any:
        """The figure that was typed; `UsageError` with one sentence that says what is allowed."""
        try:
            value = self.kind(text.strip().replace(",", "" if self.kind is int else "."))
        except (ValueError, OverflowError):
            value = None
        if value is None or not (self.low <= value <= self.high) or (not self.closed and value == self.low):
            raise UsageError(self.words(), "Type another value.")
        return value

    def words(self) -> str:
        """`This must be a whole number from 1 to 32,768, for example 128.`"""
        kind = "a whole number" if self.kind is int else "a number"
        low = f"{self.low:g}"
        high = f"{self.high:,}" if self.kind is int else f"{self.high:g}"
        span = f"from {low} to {high}" if self.closed else f"above {low} and up to {high}"
        return f"This must be {kind} {span}, for example {self.example}."


LIMITS: Mapping[str, Limits] = {
    "temperature": Limits(float, 0, 5, "0.8"),
    "top_p": Limits(float, 0, 1, "0.9", closed=False),
    "top_k": Limits(int, 0, 1_000_000, "40"),
    "seed": Limits(int, 0, 2_147_483_647, "7"),
    "max_new_tokens": Limits(int, 1, 32_768, "128"),
}
"""Every figure that can be set, by its name in `Sampling` and `Asking`."""


@dataclass(frozen=True)
class Asking:
    """Everything that is said with a question: sampling, the longest answer in tokens, the system prompt.

    A `system` of None is the one that the model learned with (`usual_system`), an empty one is none.
    """

    sampling: Sampling = GREEDY
    max_new_tokens: int = 128
    system: str | None = None

    def get(self, name: str) -> Any:
        """A value by its name in `LIMITS`."""
        return getattr(self if name == "max_new_tokens" else self.sampling, name)

    def with_value(self, name: str, value: Any) -> Asking:
        """The same with another value."""
        if name in ("max_new_tokens", "system"):
            return replace(self, **{name: value})
        return replace(self, sampling=replace(self.sampling, **{name: value}))

    def request(self) -> dict[str, Any]:
        """What goes to the process that answers, beside the question."""
        return {"max_new_tokens": self.max_new_tokens, "sampling": asdict(self.sampling)}


def usual_asking(settings: Settings) -> Asking:
    """Greedy answers as long as those that the run measured."""
    return Asking(max_new_tokens=settings.evaluation.max_new_tokens)


def load_asking(folder: RunFolder, asking: Asking) -> Asking:
    """What was chosen for this run before, else `asking`, also for what is not allowed in the file."""
    table = read_table(folder.path / FILE)
    for name, limits in LIMITS.items():
        try:
            asking = asking.with_value(name, limits.read(str(table[name])))
        except (KeyError, UsageError):
            continue
    system = table.get("system")
    return replace(asking, system=system if isinstance(system, str) else None)


def save_asking(folder: RunFolder, asking: Asking) -> None:
    """Keep it in the run's folder."""
    import json

    table = {name: asking.get(name) for name in LIMITS} | {"system": asking.system}
    write_atomic(folder.path / FILE, json.dumps(table, indent=2, ensure_ascii=False) + "\n")
