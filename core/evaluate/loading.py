"""Loads the model of a finished run to answer with: its base and its adapter, or both of two whole models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import TrainingSettings

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Example
    from ollama_tune.core.train.path import Engine


def load_engine(base: Path, tuned: Path, training: TrainingSettings) -> Engine:
    """What answers with a base model's folder and the folder that a run made of it."""
    if training.method == "full":
        return TwoModels(lambda: _one_model(base, training, None), lambda: _one_model(tuned, training, None))
    return _one_model(base, training, tuned)


def _one_model(base: Path, training: TrainingSettings, adapter: Path | None) -> Engine:
    """By the fast path where it can compute the model and its adapter, for that starts in a moment."""
    if training.path != "general":
        from ollama_tune.core.train.fast import path

        with contextlib.suppress(TuneError):
            return path.load_engine(base, training, adapter)

    from ollama_tune.core.evaluate.general_engine import GeneralEngine
    from ollama_tune.core.train.model import autocast, load_adapter, load_base

    model = load_base(base, training)
    return GeneralEngine(load_adapter(model, adapter) if adapter else model, lambda: autocast(training))


class TwoModels:
    """A base model and what became of it when all its weights were trained; each is loaded at its turn."""

    def __init__(self, base: Callable[[], Engine], tuned: Callable[[], Engine]) -> None:
        self._models = {False: cache(base), True: cache(tuned)}

    @property
    def rows(self) -> int:
        """Prompts that are well answered at once."""
        return self._models[True]().rows

    def decode(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, tuned: bool, **how: Any
    ) -> list[list[int]]:
        """The tokens after each prompt."""
        return self._models[tuned]().decode(prompts, max_new_tokens, tuned=tuned, **how)

    def logits(self, ids: Sequence[int], positions: Sequence[int], *, tuned: bool) -> Any:
        """float32 logits (positions x vocabulary) of the token after each position."""
        return self._models[tuned]().logits(ids, positions, tuned=tuned)

    def likelihoods(self, examples: Sequence[Example], *, tuned: bool) -> list[float]:
        """Of each row the natural log of the probability of its supervised tokens, summed."""
        return self._models[tuned]().likelihoods(examples, tuned=tuned)
