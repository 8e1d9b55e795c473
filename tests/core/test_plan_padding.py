"""Padding foretold from the distribution of lengths against padding counted on rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.data.tokens.encoded import Held
from ollama_tune.core.data.tokens.lengths import measure
from ollama_tune.core.data.values import Example, Lengths
from ollama_tune.core.plan.duration import steps_of
from ollama_tune.core.plan.padding import grouped_padding, packed_rows, random_padding, typical_rows
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.batches import StepPlan


def sizes(count: int = 6000) -> list[int]:
    chance = random.Random(1)
    return [min(max(int(chance.lognormvariate(5.3, 1.0)), 8), 4096) for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> Lengths:
    return measure(Held([Example("", (0,) * size, (True,) * size, ()) for size in sizes()]))


def counted(**training: Any) -> float:
    """The share of padding in an epoch of the worker's batches."""
    rows = sizes()
    plan = StepPlan(rows, TrainingSettings(gradient_accumulation_steps=1, **training))
    return 1 - sum(rows) / sum(
        plan._cost(batch) for step in range(plan.steps_per_epoch) for batch in plan.window(step)
    )


def test_random_batches(data: Lengths) -> None:
    rows = sizes()
    widest = sum(8 * max(rows[start : start + 8]) for start in range(0, len(rows), 8))
    assert random_padding(data, 4096, 8) == pytest.approx(1 - sum(rows) / widest, abs=0.02)


def test_batches_of_like_length(data: Lengths) -> None:
    assert grouped_padding(data, 4096, 8) == pytest.approx(counted(batch_size=8), abs=0.03)


@pytest.mark.parametrize("capacity", [4096, 8192])
def test_packed_sequences_and_the_steps_they_make(data: Lengths, capacity: int) -> None:
    training = TrainingSettings(packing=True, sequence_length=capacity, batch_size=2)
    plan = StepPlan(sizes(), training)
    assert steps_of(training, 6000, data) == pytest.approx(plan.total_steps, rel=0.02)
    assert packed_rows(data, capacity)[1] > 0.99


def test_percentiles_do_where_there_is_no_histogram(data: Lengths) -> None:
    rough = replace(data, histogram=())
    assert random_padding(rough, 4096, 8) == pytest.approx(random_padding(data, 4096, 8), abs=0.1)
    assert typical_rows(rough, 4096)[-1] > data.percentile_99
    assert max(typical_rows(rough, 500)) == 500


def test_no_row_is_no_padding() -> None:
    empty = Lengths(0, 0, 0, 0, 0, 0, 0)
    assert (random_padding(empty, 64, 8), grouped_padding(empty, 64, 8)) == (0.0, 0.0)
    assert packed_rows(empty, 64) == (1.0, 1.0)
