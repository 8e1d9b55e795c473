from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.rows.store import StoredRows
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


def stored(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Sequence[Row]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(str(folder)).rows


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"question": f"question {i}", "answer": f"answer {i * i}"} for i in range(count)]


def test_stored_rows_are_split_as_the_same_rows_in_memory_and_stay_on_disk(tmp_path: Path) -> None:
    rows = stored(tmp_path / "set", numbered(200))
    on_disk, in_memory = split_rows(rows, 0.2, 7), split_rows(list(rows), 0.2, 7)
    assert all(isinstance(side, StoredRows) for side in on_disk)
    assert [list(side) for side in on_disk] == [list(side) for side in in_memory]


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(400)]
    rows = []
    for i in range(60):
        text = " ".join(random.Random(i).sample(words, 60))
        rows += [{"question": f"tell {i}: {text}", "answer": f"{text} {end}"} for end in ("now", "then")]
    training, validation = split_rows(stored(tmp_path / "set", rows), 0.25, 7)
    assert len(validation) == 30
    sides = [{(row.line - 1) // 2 for row in side} for side in (training, validation)]
    assert not sides[0] & sides[1]


def test_rows_of_a_validation_split_are_the_validation_whatever_the_share(tmp_path: Path) -> None:
    held = [{"question": f"held {i}", "answer": f"out {i}"} for i in range(20)]
    stored(tmp_path / "set", numbered(50), "train.jsonl")
    rows = stored(tmp_path / "set", held, "validation.jsonl")
    for share in (0.0, 0.1, 0.5):
        training, validation = split_rows(rows, share, 7)
        assert [row.prompt[0].content for row in validation] == [f"held {i}" for i in range(20)]
        assert len(training) == 50
    in_memory = [replace(row, held_out=row.line > 90) for row in ROWS]
    assert [row.line for row in split_rows(in_memory, 0.5, 7)[1]] == list(range(91, 100))


def test_a_held_out_row_that_is_nearly_a_learned_one_is_learned_too(tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(50))
    stored(tmp_path / "set", [*numbered(30), {"question": "q", "answer": long}], "train.jsonl")
    held = [{"question": f"held {i}", "answer": f"out {i}"} for i in range(5)]
    rows = stored(tmp_path / "set", [{"question": "q", "answer": long + " end"}, *held], "validation.jsonl")
    training, validation = split_rows(rows, 0.1, 7)
    assert (len(training), len(validation)) == (32, 5)
    problems = {problem.kind: problem for problem in load_dataset(str(tmp_path / "set")).problems}
    assert (problems["held-out-copy"].count, problems["held-out-copy"].switchable) == (1, True)


def test_data_of_one_mould_keeps_its_validation_split(tmp_path: Path) -> None:
    words = "the value of this thing in the long list of all things that are in the house of the king is"
    rows = [{"question": "tell", "answer": f"{i} {words}"} for i in range(30)]
    stored(tmp_path / "set", rows[:20], "train.jsonl")
    data = stored(tmp_path / "set", rows[20:], "validation.jsonl")
    assert [len(side) for side in split_rows(data, 0.1, 7)] == [20, 10]


def test_labels_keep_their_shares(tmp_path: Path) -> None:
    names = ["often"] * 150 + ["rarely"] * 40 + ["seldom"] * 10
    rows = [{"text": f"Sentence number {i} of many.", "label": name} for i, name in enumerate(names)]
    _, validation = split_rows(stored(tmp_path / "set", rows), 0.1, 7)
    assert Counter(row.answer for row in validation) == {"often": 15, "rarely": 4, "seldom": 1}
