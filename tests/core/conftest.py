"""What several test files of the core share because it takes seconds to make."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.tiny import build_model

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder
    from tests.core.export_trained import Trained
    from tests.core.handover_parts import Made, Serve, Shared


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model; tests read it and leave it as it is."""
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny Llama with an adapter that was really trained; tests leave it as it is."""
    from tests.core.export_trained import build_trained

    return build_trained(tmp_path_factory.mktemp("trained"), "Llama", intermediate_size=128)


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


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate in this process, which has its libraries loaded already."""
    from ollama_tune.core.evaluate import sides
    from ollama_tune.core.evaluate.measuring import Measuring

    def measured(folder: RunFolder, asked: dict[str, Any], _log: Path) -> Iterator[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        measuring = Measuring.of(folder)
        for number, group in enumerate(json.loads(json.dumps(asked))["groups"]):
            measuring.group(group, lambda message, number=number: told.append({"group": number} | message))
        yield from told

    monkeypatch.setattr(sides, "_child", measured)
