"""What settings say when a run folder is made of them: nothing that would be another thing elsewhere."""

from __future__ import annotations

from pathlib import Path

from ollama_tune.core.plan.pins import pinned
from ollama_tune.core.plan.settings import BUNDLED, Settings
from ollama_tune.core.plan.stopping import require_metric
from ollama_tune.core.runs.trackers import require


def ready(settings: Settings) -> Settings:
    """What a new run's `run.yaml` says: whole paths, and the commit of what the settings name on the hub.

    Raises `TuneError` where a tracker or a metric that they name is not installed.
    """
    require(settings.tracking.to)
    require_metric(settings.training.early_stopping_metric)
    return pinned(absolute(settings))


def absolute(settings: Settings) -> Settings:
    """The settings with whole paths, because the worker's folder is another than this process'."""
    named = {path: settings.get(path) for path in ("model.source", "data.path")}
    found = {
        path: str(Path(value).expanduser().absolute())
        for path, value in named.items()
        if value != BUNDLED and Path(value).expanduser().exists()
    }
    if settings.tracking.folder:
        found["tracking.folder"] = str(Path(settings.tracking.folder).expanduser().absolute())
    return settings.with_values(found) if found else settings
