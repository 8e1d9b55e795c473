"""The model in this process' memory, and what is told of that memory from then on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ollama_tune.core.machine.host import read_host
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.paths import PathName
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.judge import in_parts
from ollama_tune.core.train.path import TrainPath, make_path
from ollama_tune.core.train.prepared import base_name
from ollama_tune.core.train.session import Session, host_memory

SMALL_PRODUCT = 0.2e9
"""Arithmetic operations of a matrix product that one core does in about two milliseconds."""


def useful_threads(spec: ModelSpec, training: TrainingSettings, longest: int) -> int:
    """All cores, or one where even the largest product of a micro-batch is over before a second helps.

    A function of the run alone, never of how busy the box is: a resumed run must add in the same order.
    """
    width = training.sequence_length if training.packing else longest
    product = 2 * training.batch_size * width * spec.hidden_size * spec.intermediate_size
    return 1 if product < SMALL_PRODUCT else read_host().cores


def load_model(session: Session, spec: ModelSpec, chosen: tuple[PathName, str], longest: int) -> TrainPath:
    """The model with a fresh adapter; from here on the signs of life tell its parts in memory."""
    import torch

    from ollama_tune.core.train.optimizer import state_sizes

    settings = session.settings
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(useful_threads(spec, settings.training, longest))
    where = spec.folder, settings.training, base_name(settings.model, spec)
    path = session.prepared.take(*where)
    if path is None:
        path = _made(session, chosen, where)
    parts = path.parts()
    held = 0 if settings.training.device == "cuda" else host_memory()["used"] - sum(parts.values())
    states = sum(sum(state_sizes(weight, settings.training.optimizer)) for weight in path.weights.values())
    trained = sum(weight.nbytes for weight in path.weights.values())
    parts |= {"gradients": trained, "optimizer": states, "libraries": max(held, 0)}

    def gauge() -> dict[str, Any]:
        figures = _cuda_memory(torch) if settings.training.device == "cuda" else host_memory()
        return in_parts(figures, parts)

    session.gauge = gauge
    return path


def _made(
    session: Session, chosen: tuple[PathName, str], where: tuple[Path, TrainingSettings, str]
) -> TrainPath:
    if not session.group.lockstep:
        return make_path(chosen, *where, session.progress("loading_model", "B"))
    from ollama_tune.core.train.sharded import make_sharded

    return make_sharded(*where, chosen[1], session.group)


def _cuda_memory(torch: Any) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info()
    return {
        "device": "cuda",
        "used": torch.cuda.memory_reserved(),
        "peak": torch.cuda.max_memory_reserved(),
        "allocated": torch.cuda.max_memory_allocated(),
        "free": free,
        "total": total,
    }
