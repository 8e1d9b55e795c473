"""An export as the worker runs it: what is asked for, what it tells, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.runs.folder import RunFolder

Events = list[tuple[str, dict[str, Any]]]


def export(folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> tuple[Verification, Events]:
    """Run it to its end: the report, and the events in order."""
    events: Events = []
    return run_export(folder, lambda kind, **data: events.append((kind, data)), stopped), events


def ask(folder: RunFolder, **wanted: Any) -> None:
    """Ask for another export than that of `run.yaml`."""
    request = {"name": "birds:v1", "type": "f16"} | wanted
    folder.export_request_path.write_text(json.dumps(request))


def files(folder: RunFolder) -> list[str]:
    """The names in the export's folder."""
    return sorted(path.name for path in folder.export.iterdir())


def check(verification: Verification, name: str) -> Check:
    """The one check of that name."""
    (found,) = [check for check in verification.checks if check.name == name]
    return found


def names(events: Events, kind: str) -> list[str]:
    """The names that events of a kind have, each once, in order."""
    return list(dict.fromkeys(data["name"] for found, data in events if found == kind))
