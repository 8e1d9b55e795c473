from __future__ import annotations

import random

import pytest

from ollama_tune.core.data.split import question_key, split_rows
from ollama_tune.core.data.values import Message, Row


def pair(question: str, answer: str, line: int = 1) -> Row:
    return Row((Message("user", question), Message("assistant", answer)), line)


ROWS = [pair(f"question {i}", f"answer {i}", i) for i in range(100)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5])
def test_the_share_is_met_and_every_row_is_on_one_side(share: float) -> None:
    training, validation = split_rows(ROWS, share, 7)
    assert len(validation) == round(100 * share)
    assert sorted([*training, *validation], key=lambda row: row.line) == ROWS
    assert training == sorted(training, key=lambda row: row.line)
    assert validation == sorted(validation, key=lambda row: row.line)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    assert split_rows(ROWS, 0.2, 7) == split_rows(list(ROWS), 0.2, 7)
    assert split_rows(ROWS, 0.2, 7) != split_rows(ROWS, 0.2, 8)
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert set(split_rows(shuffled, 0.2, 7)[1]) == set(split_rows(ROWS, 0.2, 7)[1])


def test_rows_added_later_move_few_others() -> None:
    before = set(split_rows(ROWS, 0.2, 7)[1])
    after = set(split_rows([*ROWS, *(pair(f"new {i}", "a") for i in range(10))], 0.2, 7)[1])
    assert len(before - after) <= 4


def test_equal_questions_stay_together_whatever_their_case_and_marks() -> None:
    rows = [
        pair(text.format(i), f"answer {n}")
        for i in range(40)
        for n, text in enumerate(["What is {}?", "what is {}", "What  IS {} !"])
    ]
    training, validation = split_rows(rows, 0.3, 3)
    assert len(validation) == 36
    assert not {question_key(row) for row in training} & {question_key(row) for row in validation}


def test_questions_of_marks_alone_are_not_all_the_same() -> None:
    rows = [pair("?" * i, "a") for i in range(1, 21)]
    assert len(split_rows(rows, 0.5, 1)[1]) == 10


def test_chats_that_begin_with_one_greeting_are_still_split() -> None:
    rows = [
        Row(
            (
                Message("user", "Hi"),
                Message("assistant", "Hello"),
                Message("user", f"q{i}"),
                Message("assistant", f"a{i}"),
            ),
            i,
        )
        for i in range(20)
    ]
    twice = [*rows, *(Row(row.messages, row.line + 20) for row in rows)]
    training, validation = split_rows(twice, 0.25, 5)
    assert len(validation) == 10
    assert not {row.messages for row in training} & {row.messages for row in validation}


def test_a_share_of_nothing_and_single_rows() -> None:
    assert split_rows(ROWS, 0.0, 7) == (ROWS, [])
    assert split_rows([], 0.5, 7) == ([], [])
    assert split_rows(ROWS[:1], 0.5, 7) == (ROWS[:1], [])
    assert [len(side) for side in split_rows(ROWS[:2], 0.01, 7)] == [1, 1]
    assert split_rows([ROWS[0], ROWS[0]], 0.5, 7) == ([ROWS[0], ROWS[0]], [])


def test_a_group_larger_than_the_share_goes_to_training_unless_nothing_else_is_left() -> None:
    rows = [*(pair("same", str(i)) for i in range(9)), *(pair(f"q{i}", "a") for i in range(11))]
    training, validation = split_rows(rows, 0.2, 7)
    assert len(validation) == 4
    assert sum(row.messages[0].content == "same" for row in training) == 9
    halves = [*(pair("one", str(i)) for i in range(6)), *(pair("two", str(i)) for i in range(6))]
    assert [len(side) for side in split_rows(halves, 0.1, 7)] == [6, 6]
