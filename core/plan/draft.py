"""Settings under construction: the person's values stand, each other field is chosen with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.duration import steps_of, train_rows
from ollama_tune.core.plan.memory import predicted
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.plan.values import Choice, MemoryEstimate
from ollama_tune.core.text import one_line

REASON_WIDTH = 80


class Draft:
    """What a plan is made from, and the plan so far; a wrong value of the person's is a `UsageError`."""

    def __init__(
        self,
        machine: Machine,
        spec: ModelSpec,
        lengths: Lengths,
        changed: Mapping[str, Any],
        correction: float = 1.0,
    ) -> None:
        self.machine, self.spec, self.lengths, self.changed = machine, spec, lengths, changed
        self.correction = correction
        self.choices: dict[str, Choice] = {}
        self.estimates: dict[tuple[tuple[str, Any], ...], MemoryEstimate] = {}
        """What was predicted already, by the values that decide memory."""
        given = {"training.device": machine.device, "model.source": spec.source} | dict(changed)
        self.settings = Settings().with_values(given)

    def free(self, path: str) -> bool:
        """Whether the person left that field to us."""
        return path not in self.changed

    def choose(self, path: str, choice: Choice) -> None:
        """Take a value, unless the person set another."""
        if self.free(path):
            self.choices[path] = Choice(choice.value, one_line(choice.reason, REASON_WIDTH), choice.source)
            self.set(path, choice.value)

    def set(self, path: str, value: Any) -> None:
        """Take a value that is known to be allowed, its reason aside."""
        section, _, name = path.partition(".")
        before = getattr(self.settings, section)
        if getattr(before, name) == value:
            return
        changed = before.model_copy(update={name: value})
        self.settings = self.settings.model_copy(update={section: changed})

    def memory(self, settings: Settings) -> MemoryEstimate:
        """The predicted peak of the data's longest rows."""
        return predicted(settings, self.spec, self.machine, self.lengths, self.correction)

    @property
    def rows(self) -> int:
        """Rows that are learned from."""
        return train_rows(self.lengths, self.settings.data.validation_split)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run as it stands."""
        return steps_of(self.settings.training, self.rows, self.lengths)
