from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.batches import StepPlan, collate, fingerprint, lay, supervised
from ollama_tune.core.train.recovery import split


def lengths(rows: int) -> list[int]:
    chance = random.Random(3)
    return [int(chance.lognormvariate(4, 0.8)) + 4 for _ in range(rows)]


def plan(rows: int, **changes: Any) -> StepPlan:
    return StepPlan(lengths(rows), TrainingSettings(**changes))


def rows_of(plan: StepPlan, steps: range) -> list[int]:
    return [row for step in steps for batch in plan.window(step) for row in batch]


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    made = plan(101, batch_size=4, gradient_accumulation_steps=3, epochs=2.0)
    size = made.steps_per_epoch
    first, second = rows_of(made, range(size)), rows_of(made, range(size, 2 * size))
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    assert made.total_steps == 2 * size == 18


def test_any_step_can_be_asked_for_alone() -> None:
    settings: dict[str, Any] = {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 3.0}
    straight = plan(50, **settings)
    windows = [straight.window(step) for step in range(straight.total_steps)]
    backwards = plan(50, **settings)
    assert [backwards.window(step) for step in reversed(range(len(windows)))] == windows[::-1]
    other = plan(50, seed=8, **settings)
    assert [other.window(step) for step in range(len(windows))] != windows


def test_a_fraction_of_an_epoch_ends_early_and_one_step_is_the_least() -> None:
    settings: dict[str, Any] = {"batch_size": 2, "gradient_accumulation_steps": 5}
    assert plan(100, epochs=1.5, **settings).total_steps == 15
    assert plan(100, epochs=0.25, **settings).total_steps == 3
    assert plan(3, epochs=0.01, **settings).total_steps == 1


def test_the_most_expensive_batch_comes_first() -> None:
    made = plan(300, batch_size=4, gradient_accumulation_steps=2)
    sizes = lengths(300)

    def cost(batch: list[int]) -> int:
        return len(batch) * max(sizes[row] for row in batch)

    every = [cost(batch) for step in range(made.steps_per_epoch) for batch in made.window(step)]
    assert every[0] == max(every)


def test_no_batch_of_any_epoch_costs_more_than_the_longest_rows() -> None:
    made, sizes = plan(300, batch_size=4, gradient_accumulation_steps=2, epochs=3.0), lengths(300)
    longest = made.longest(4)
    assert [sizes[row] for row in longest] == sorted(sizes, reverse=True)[:4]
    widths = [
        max(sizes[row] for row in batch) for step in range(made.total_steps) for batch in made.window(step)
    ]
    assert max(widths) == sizes[longest[0]]
    assert [sizes[row] for row in made.shortest()] == [min(sizes)]


def test_rows_of_like_length_share_a_batch() -> None:
    made, sizes = plan(1000, batch_size=8, gradient_accumulation_steps=1), lengths(1000)
    padded = sum(
        len(batch) * max(sizes[row] for row in batch)
        for step in range(made.steps_per_epoch)
        for batch in made.window(step)
    )
    assert 1 - sum(sizes) / padded < 0.1


def test_padding_is_on_the_right_and_never_learned() -> None:
    short = Example("", (5, 6), (True, True), ((0, 0),) * 2)
    long = Example("", (7, 8, 9), (False, False, True), ((0, 0),) * 3)
    batch = collate([short, long], 99, "cpu")
    assert batch.ids.tolist() == [[5, 6, 99], [7, 8, 9]]
    assert batch.attention.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.trained.tolist() == [[True, True, False], [False, False, True]]
    assert (batch.useful_tokens, batch.supervised_tokens) == (5, 2)
    assert batch.trained.dtype is torch.bool
    assert supervised(short) == 1


def test_the_fingerprint_tells_other_rows_and_another_order() -> None:
    one = Example("a", (5, 6), (False, True), ((0, 0),) * 2)
    two = Example("b", (5, 7), (False, True), ((0, 0),) * 2)
    marks = {fingerprint(rows) for rows in ([one, two], [two, one], [one], [two], [])}
    assert len(marks) == 5
    assert fingerprint([one, two]) == fingerprint([one, two])


PACKED: dict[str, Any] = {"packing": True, "sequence_length": 640, "batch_size": 2}


def tokens_of(rows: list[int], sizes: list[int]) -> int:
    return sum(sizes[row] for row in rows)


def test_packed_each_epoch_sees_every_row_once_in_full_sequences() -> None:
    made, sizes = plan(600, **PACKED, gradient_accumulation_steps=3, epochs=2.0), lengths(600)
    size = made.steps_per_epoch
    first, second = rows_of(made, range(size)), rows_of(made, range(size, 2 * size))
    assert sorted(first) == sorted(second) == list(range(600))
    assert first != second
    sequences = -(-sum(sizes) // 640)
    assert made.total_steps == 2 * size
    assert -(-sequences // 6) <= size <= -(-(sequences + 1) // 6)
    for step in range(made.total_steps):
        for batch in made.window(step):
            assert len(lay([sizes[row] for row in batch], 640)) <= 2
            assert len(batch) <= made.most_rows


def test_packed_any_step_can_be_asked_for_alone() -> None:
    straight, backwards = (plan(300, **PACKED, gradient_accumulation_steps=2) for _ in range(2))
    windows = [straight.window(step) for step in range(straight.total_steps)]
    assert [backwards.window(step) for step in reversed(range(len(windows)))] == windows[::-1]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 17, 100])
def test_no_part_of_a_packed_batch_costs_more_than_the_longest_rows(count: int) -> None:
    made, sizes = plan(400, **PACKED, gradient_accumulation_steps=1, epochs=3.0), lengths(400)

    def cost(rows: Sequence[int]) -> int:
        laid = [sum(group) for group in lay([sizes[row] for row in rows], 640)]
        return len(laid) * max(laid)

    parts = [split([batch], count) for step in range(made.total_steps) for batch in made.window(step)]
    worst = max(cost(part) for window in parts for part in window)
    longest = made.longest(count)
    assert len(longest) <= count and len(set(longest)) == len(longest)
    assert worst <= cost(longest) <= 2 * 640


def test_rows_are_laid_in_order_into_as_few_sequences_as_possible() -> None:
    assert lay([3, 4, 5, 5, 1, 4], 9) == [[3, 4], [5], [5, 1], [4]]
    assert lay([], 9) == []


def test_packed_rows_start_anew_and_learn_nothing_of_each_other() -> None:
    one = Example("", (5, 6), (True, True), ())
    two = Example("", (7, 8, 9), (True, False, True), ())
    batch = collate([one, two, one], 99, "cpu", 6)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 99, 99, 99]]
    assert batch.positions is not None and batch.attention is None
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch.trained.tolist() == [[True, True, False, False, True], [True, True, False, False, False]]
    assert batch.rows == ((2, 3), (2,))
    assert batch.supervised_tokens == int(batch.trained[:, 1:].sum()) == 3
    assert batch.useful_tokens == 7
