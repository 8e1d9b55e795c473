"""What the last page before a run needs of files: the run that was started already, a place for a copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import runs_dir

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.runs.folder import RunFolder


def started_with(name: str | None, settings: Settings) -> RunFolder | None:
    """The run of that name, if it was started with these very settings; its run.yaml says so."""
    from ollama_tune.core.runs.folder import RunFolder

    folder = RunFolder(runs_dir() / name) if name else None
    try:
        same = folder is not None and folder.events_path.exists() and folder.settings() == settings
    except TuneError:
        return None
    return folder if same else None


def free_place() -> Path:
    """A run.yaml of the current folder, beside those that are there already."""
    names = ["run.yaml", *(f"run-{number}.yaml" for number in range(2, 1000))]
    return next(path for name in names if not (path := Path.cwd() / name).exists())
