"""The export stage: calls the export room and tells the log what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.train.session import Session, host_memory
from ollama_tune.core.train.shortage import free_memory


def export(session: Session, stages: Sequence[str]) -> dict[str, Any]:
    """Export the run's adapter; returns the fields of the `done` event."""
    session.start("export", stages)
    from ollama_tune.core.export.pipeline import run_export

    session.gauge = host_memory
    free_memory()  # a training before in this process held some; the export and Ollama need it
    try:
        result = run_export(session.folder, session.emit, session.stopped)
    except ExportStopped:
        session.check_stop()
        raise
    return {
        "stage": "export",
        "files": result.files,
        "ollama_name": result.ollama_name,
        "commands": list(result.commands),
    }
