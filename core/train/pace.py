"""Keeps how fast a run was, so that the next plan on this device need not guess."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from ollama_tune.core.data.tokens.lengths import measure
from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.host import read_host
from ollama_tune.core.machine.values import Disk, GpuReport, Machine, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.duration import learn_speed
from ollama_tune.core.train.session import Session

WARM_UP = 3
LEAST = 10
"""Steps that are slower than the rest, and steps that make a measurement."""


def learn_pace(session: Session, spec: ModelSpec, examples: Sequence[Example]) -> None:
    """Tell later plans the tokens a second of this run; too few steps tell nothing. Never fails a run."""
    reached = tokens_per_second(event.data for event in session.folder.events() if event.kind == "step")
    if reached is None:
        return
    with contextlib.suppress(OSError, TuneError):
        learn_speed(session.settings, spec, measure(examples), _box(session), reached / session.group.size)


def tokens_per_second(steps: Iterable[Any]) -> float | None:
    """Useful tokens a second by the `step` events of a run, without those in which it warmed up."""
    counted = list(steps)[WARM_UP:]
    seconds = sum(step["seconds"] for step in counted)
    if len(counted) < LEAST or seconds <= 0:
        return None
    return float(sum(step["useful_tokens"] for step in counted) / seconds)


def _box(session: Session) -> Machine:
    """The device that trained; disk and Ollama do not matter here."""
    on_gpu = session.settings.training.device == "cuda"
    gpu = read_gpus() if on_gpu else GpuReport((), None, "")
    return Machine(gpu, read_host(), Disk("", 0, 0), OllamaStatus("", None, "", local=True))
