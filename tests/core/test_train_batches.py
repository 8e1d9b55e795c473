from __future__ import annotations

import random
from typing import Any

import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.batches import StepPlan, collate, fingerprint, supervised


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
