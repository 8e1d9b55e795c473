"""A trainer on a tiny real model in this process, with rows that can be learned."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.train.checkpoint import newest
from ollama_tune.core.train.loop import Trainer
from ollama_tune.core.train.path import PathName, make_path
from ollama_tune.core.train.session import Session, StopWish


def examples(count: int, first: int = 0) -> list[Example]:
    """Rows that can be learned: the second half repeats one token."""
    rows = []
    for number in range(first, first + count):
        chance = random.Random(number)
        half = chance.randrange(3, 20)
        ids = (*(chance.randrange(3, 300) for _ in range(half)), *[305 + number % 2] * half)
        rows.append(Example("", ids, tuple([False] * half + [True] * half), ((0, 0),) * len(ids)))
    return rows


TRAIN, VALIDATION = examples(24), examples(6, first=100)


class Run:
    """A trainer with everything it needs."""

    def __init__(
        self,
        model: Path,
        folder: RunFolder | None = None,
        validation: list[Example] = VALIDATION,
        computed: PathName = "general",
        **training: Any,
    ) -> None:
        quick = {"batch_size": 2, "gradient_accumulation_steps": 2, "rank": 4, "learning_rate": 5e-3}
        made = {"model": {"source": str(model)}, "training": quick | {"dropout": 0.1} | training}
        self.folder = folder or create_run(parse(made), "loop")
        self.session = Session(self.folder, StopWish(self.folder))
        settings = self.session.settings.training
        chosen = (computed, "")
        self.path: Any = make_path(chosen, model, settings, str(model), lambda *_: None)
        self.model: Any = self.path.model
        self.trainer = Trainer(self.session, self.path, TRAIN, validation)

    def resume(self) -> list[str]:
        found, damaged = newest(self.folder)
        assert found is not None
        self.trainer.restore(found)
        return damaged

    def stop_after(self, step: int) -> None:
        """Ask for the end while the step after that one is computed."""
        loss, calls = self.path.loss, 0

        def counted(batch: Any) -> Any:
            nonlocal calls
            calls += torch.is_grad_enabled()
            if calls == 2 * step + 1:
                self.folder.stop_path.touch()
            return loss(batch)

        self.path.loss = counted


def finished_run(model: Path, home: Path, **training: Any) -> Run:
    """A run in a home of its own, trained to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(home))
        run = Run(model, **training)
        run.trainer.run()
    return run
