"""What several test files of the core share because it takes seconds to make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny import build_model

if TYPE_CHECKING:
    from tests.core.handover_parts import Made, Serve, Shared


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model; tests read it and leave it as it is."""
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small tuned model, exported and verified."""
    from tests.core.handover_parts import Made

    return Made(tmp_path_factory.mktemp("handover"))


@pytest.fixture(scope="module")
def shared(made: Made) -> Iterator[Shared]:
    """One llama.cpp that answers for the doubles of Ollama."""
    from tests.core.handover_parts import Shared

    with contextlib.closing(Shared(made.folder.export / made.verification.file)) as engine:
        yield engine


@pytest.fixture
def serve(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts doubles of Ollama that answer with the tuned model."""
    from tests.core.handover_parts import starting

    with starting(shared, monkeypatch) as start:
        yield start
