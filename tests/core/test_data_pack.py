from __future__ import annotations

import random

import pytest

from ollama_tune.core.data.tokens.pack import filled, pack


def lengths(rows: int, longest: int = 2048) -> list[int]:
    chance = random.Random(4)
    return [min(max(int(chance.lognormvariate(5.3, 1.0)), 8), longest) for _ in range(rows)]


def test_every_row_stands_in_one_sequence_that_holds_it() -> None:
    rows = lengths(3000)
    groups = pack(rows, 2048)
    assert sorted(row for group in groups for row in group) == list(range(3000))
    assert max(sum(rows[row] for row in group) for group in groups) <= 2048
    assert groups == pack(rows, 2048)


@pytest.mark.parametrize("capacity", [2048, 8192])
def test_hardly_any_space_is_left(capacity: int) -> None:
    rows = lengths(20_000, capacity)
    groups = pack(rows, capacity)
    assert 1 - filled(rows, groups, capacity) <= 0.001
    assert len(groups) <= -(-sum(rows) // capacity) + 1


def test_how_many_sequences_there_are_depends_on_the_lengths_alone() -> None:
    rows, other = lengths(500, 300), lengths(500, 300)
    random.Random(1).shuffle(other)
    sizes = [
        sorted(tuple(sorted(part[i] for i in group)) for group in pack(part, 300)) for part in (rows, other)
    ]
    assert sizes[0] == sizes[1]


def test_rows_that_leave_no_space_for_others_stand_alone() -> None:
    assert pack([60, 60, 60], 100) == [[0], [1], [2]]
    assert pack([40, 60, 100], 100) == [[2], [1, 0]]
    assert pack([], 100) == []


def test_a_row_that_no_sequence_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit in 100"):
        pack([50, 101], 100)


def test_a_row_goes_where_it_leaves_the_least_space() -> None:
    assert len(pack([7, 6, 3, 2, 2], 10)) == 2
