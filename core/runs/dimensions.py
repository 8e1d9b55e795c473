"""What varies in a search: a setting, and the numbers between two ends or the values that were named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.settings import Settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"([-+.\deE]+?)\.\.([-+.\deE]+)(?::(\w*))?")
"""Two numbers with two dots between, and a scale."""
STEADY = {"training.early_stopping": 0, "training.evaluation_interval": 0, "evaluation.rows": 0}
"""What is the same in every run of a search, whatever the file says."""
OTHER_ROWS = "the runs would be measured on other rows"
OTHER_LOSS = "it changes what the loss counts"
SAME_LOSS = "it changes nothing in the held-out loss"
INCOMPARABLE = {
    "data.seed": OTHER_ROWS,
    "data.validation": OTHER_ROWS,
    "data.validation_split": OTHER_ROWS,
    "training.objective": OTHER_LOSS,
    "training.beta": OTHER_LOSS,
    "export": SAME_LOSS,
    "evaluation": SAME_LOSS,
    "tracking": SAME_LOSS,
    **dict.fromkeys(STEADY, "it is the same in every run of a sweep"),
}
"""Settings and sections by which runs cannot be told apart by their held-out loss, and why."""

Value = float | int | str | bool


@dataclass(frozen=True)
class Range:
    """Every number between two, on a logarithmic scale where the order of magnitude is what matters."""

    path: str
    low: float
    high: float
    log: bool
    whole: bool

    def __str__(self) -> str:
        return (
            f"{self.path} from {self.low:g} to {self.high:g}{', on a logarithmic scale' if self.log else ''}"
        )

    def distribution(self) -> BaseDistribution:
        """As Optuna draws from it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Options:
    """Some values that were named."""

    path: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.path}: {', '.join(map(str, self.values))}"

    def distribution(self) -> BaseDistribution:
        """As Optuna draws from it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


Dimension = Range | Options


def read_dimension(text: str, settings: Settings) -> Dimension:
    """`FIELD=LOW..HIGH`, with `:log` or without, or `FIELD=A,B,C`; what is not allowed is a `UsageError`."""
    path, equals, said = text.partition("=")
    path = path.strip()
    _check_comparable(path)
    if not equals or not said.strip():
        raise UsageError(
            f"--over {text!r} names no values.",
            "Write it as training.learning_rate=1e-5..1e-3:log or training.rank=8,16,32.",
        )
    ends = RANGE.fullmatch(said.strip())
    if ends is None:
        values = tuple(dict.fromkeys(_value(settings, path, part.strip()) for part in said.split(",")))
        return Options(path, values)
    low, high = (_value(settings, path, end) for end in ends.group(1, 2))
    scale = ends.group(3) or ""
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low < high:
        raise UsageError(f"--over {text!r} is no range of numbers.", "Write the smaller end first.")
    if scale not in ("", "log") or (scale and low <= 0):
        raise UsageError(
            f"--over {text!r}: {scale!r} is no scale for it.", "Leave it out, or write :log above 0."
        )
    return Range(path, low, high, bool(scale), isinstance(low, int))


def _check_comparable(path: str) -> None:
    why = INCOMPARABLE.get(path) or INCOMPARABLE.get(path.partition(".")[0])
    if why:
        raise UsageError(f"{path} cannot vary in a sweep: {why}.", "Sweep over another setting.")


def _value(settings: Settings, path: str, said: str) -> Value:
    """The value in its own type."""
    found = settings.with_value(path, said).get(path)
    if not isinstance(found, (int, float, str, bool)):
        raise UsageError(f"{path} is no single number or word.", "Sweep over another setting.")
    return found
