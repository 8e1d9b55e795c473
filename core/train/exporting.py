"""The export stage: calls the export room and tells the log what came out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.runs.launch import environment
from ollama_tune.core.train.session import Session


def export(session: Session, stages: Sequence[str]) -> dict[str, Any]:
    """Export the run's adapter; returns the fields of the `done` event."""
    from ollama_tune.core.export.pipeline import run_export

    settings = session.settings
    session.emit(
        "start",
        stage="export",
        stages=list(stages),
        pid=os.getpid(),
        device=settings.training.device,
        versions=environment(),
        model=settings.model.source,
    )
    try:
        result = run_export(session.folder, session.emit, session.stopped)
    except ExportStopped:
        session.check_stop()
        raise
    return {"stage": "export"} | result.to_dict()
