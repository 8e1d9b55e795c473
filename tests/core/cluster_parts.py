"""What tests of jobs on clusters have in common: a run.yaml with an odd name, a job, and written events."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.jobs import Job

ODD = 'it\'s $HOME; a "test" `x`'
"""A name that a shell would take apart."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A short run.yaml in a folder with an odd name."""
    folder = tmp_path / ODD
    folder.mkdir()
    path = folder / f"{ODD}.yaml"
    path.write_text("training: {epochs: 1, device: cpu, checkpoint_minutes: 60}\nevaluation: {rows: 0}\n")
    return path


def job(file: Path, **asked: Any) -> Job:
    settings = Settings().with_values({"training.gradient_accumulation_steps": 64})
    made = Job(file, settings, file.with_name("job"), file.parent, sys.executable, stamp="20261122")
    return replace(made, **asked)


def write(folder: RunFolder, *events: tuple[str, dict[str, Any]]) -> None:
    writer = EventWriter(folder.events_path)
    for kind, data in events:
        writer.write(kind, **data)
    writer.close()
