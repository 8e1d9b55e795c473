"""A chosen plan is confirmed by the simulation of the installed libraries, and the result is remembered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.confirm import can_confirm, config_of, confirm
from ollama_tune.core.plan.offers import MEMORY_FIELDS
from ollama_tune.core.plan.predict import Prediction, Simulator
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.sources import count_sources
from ollama_tune.core.plan.values import Plan
from tests.cases import LLAMA_8B, QWEN3_4B, lengths, machine

LONG = lengths(rows=1000, mean=600, trained=200, longest=4000)
BOX = machine(gpu=24)


class Counting(Simulator):
    """The real simulator, which counts the requests; `factor` makes its figures larger, as a model would
    whose layers hold more than the formula knows. All tests are about one model, so each request is
    simulated once."""

    known: ClassVar[dict[str, Prediction]] = {}

    def __init__(self, child: Simulator, factor: float = 1.0, error: TuneError | None = None) -> None:
        super().__init__()
        self.child, self.factor, self.error = child, factor, error
        self.asked: list[MemoryRequest] = []

    def predict(self, config: Mapping[str, Any], request: MemoryRequest) -> Prediction:
        """As the child."""
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        key = request.model_dump_json()
        if key not in self.known:
            self.known[key] = self.child.predict(config, request)
        found = self.known[key]
        return replace(found, parts={name: int(size * self.factor) for name, size in found.parts.items()})


@pytest.fixture(scope="module")
def child() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    return tmp_path


def plan(model: ModelSpec = QWEN3_4B, box: Machine = BOX, **training: Any) -> Plan:
    return make_plan(box, model, LONG, {f"training.{name}": value for name, value in training.items()})


def test_the_simulation_confirms_the_formula_and_is_remembered(child: Simulator, home: Path) -> None:
    made, simulator = plan(), Counting(child)
    assert made.memory.method == "formula"
    assert can_confirm(made, BOX)
    found = confirm(made, BOX, QWEN3_4B, LONG, simulator)
    assert found.memory.method == "simulated"
    assert not found.memory.remark
    assert 0.98 < found.memory.needed / made.memory.needed < 1.02
    assert [part.name for part in found.memory.parts] == [part.name for part in made.memory.parts]
    assert found.settings == made.settings and found.warnings == made.warnings
    assert not can_confirm(found, BOX)
    again = confirm(made, BOX, QWEN3_4B, LONG, simulator)
    assert again == found and len(simulator.asked) == 1
    (home / "cache/simulations.json").write_text("[damaged")
    assert confirm(made, BOX, QWEN3_4B, LONG, simulator) == found
    assert len(simulator.asked) == 2


def test_what_cannot_be_simulated_keeps_the_formula_and_says_why() -> None:
    simulator = Counting(Simulator(), error=TuneError("The model cannot be simulated: it is new.", "Wait."))
    made = plan()
    found = confirm(made, BOX, QWEN3_4B, LONG, simulator)
    assert (found.memory.parts, found.memory.method) == (made.memory.parts, "formula")
    assert "it is new" in found.memory.remark
    assert not can_confirm(found, BOX)


def test_a_plan_that_does_not_fit_by_simulation_is_told_with_the_nearest_that_does(child: Simulator) -> None:
    """A simulation that finds half as much again as the formula."""
    box = machine(gpu=12)
    made = plan(box=box)
    assert made.memory.fits and made.memory.needed > 0.85 * made.memory.free / 1.5
    found = confirm(made, box, QWEN3_4B, LONG, Counting(child, 1.9))
    assert not found.memory.fits
    assert "formula" in found.memory.remark
    assert any("only" in warning and "free" in warning for warning in found.warnings)
    (offer,) = found.offers
    assert offer.memory.fits and offer.memory.method == "simulated"
    assert offer.changes
    taken = make_plan(box, QWEN3_4B, LONG, dict(offer.changes))
    assert confirm(taken, box, QWEN3_4B, LONG, Counting(child, 1.9)).memory.fits


def test_a_plan_that_fits_by_simulation_alone_loses_its_warning(child: Simulator) -> None:
    box, whole = machine(gpu=8), plan().settings
    values = {path.partition(".")[2]: whole.get(path) for path in MEMORY_FIELDS}
    made = plan(box=box, **values)
    assert not made.memory.fits and made.offers
    found = confirm(made, box, QWEN3_4B, LONG, Counting(child, 0.3))
    assert found.memory.fits and not found.offers
    assert not any("does not fit" in warning or "This needs" in warning for warning in found.warnings)


def test_the_cpu_has_nothing_to_simulate() -> None:
    box = machine()
    assert not can_confirm(make_plan(box, QWEN3_4B, LONG, {}), box)


def test_a_model_that_is_not_here_is_simulated_by_its_public_sizes(tmp_path: Path) -> None:
    config = config_of(LLAMA_8B)
    assert (config["hidden_size"], config["num_hidden_layers"]) == (4096, 32)
    own = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 640}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    assert config_of(replace(LLAMA_8B, folder=tmp_path)) == own["text_config"]


def test_what_the_values_rest_on_is_counted() -> None:
    made = plan(rank=32)
    words = count_sources(made)
    numbers = [int(part.split()[0]) for part in words.split(", ") if part[0].isdigit()]
    assert sum(numbers) == len(made.choices)
    assert "1 yours" in words and "by convention" in words and "memory formula" in words
