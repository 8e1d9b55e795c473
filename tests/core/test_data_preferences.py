"""Pairs of answers: the forms that files have, what is no pair, and how they are kept and counted."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset, peek
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.rated import BadAnswer, Rated
from ollama_tune.core.data.rows.store import RejectedRows, StoredRows
from ollama_tune.core.data.tokens.encoding import encode_in_child
from ollama_tune.core.data.tokens.lengths import encode_rows, estimate_lengths, sample_lengths
from ollama_tune.core.data.tokens.sides import (
    Pair,
    encode_pairs,
    measure_rows,
    pair_numbers,
    rejected_rows,
    split_pairs,
)
from ollama_tune.core.data.values import DatasetProfile, Message, Reading, Row
from ollama_tune.core.errors import TuneError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


HUMAN = "\n\nHuman: Why?\n\nAssistant:"
FORMS: dict[str, dict[str, Any]] = {
    "trl strings": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "trl messages": {
        "prompt": [user("Why?")],
        "chosen": [assistant("Because.")],
        "rejected": [assistant("No.")],
    },
    "trl implicit prompt": {
        "chosen": [user("Why?"), assistant("Because.")],
        "rejected": [user("Why?"), assistant("No.")],
    },
    "llamafactory sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": gpt("Because."),
        "rejected": gpt("No."),
    },
    "llamafactory alpaca": {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."},
    "hh-rlhf": {"chosen": f"{HUMAN} Because.", "rejected": f"{HUMAN} No."},
    "open prompt": {"prompt": HUMAN, "chosen": " Because.", "rejected": " No."},
    "ultrafeedback binarized": {
        "prompt": "Why?",
        "prompt_id": "4f1",
        "chosen": [user("Why?"), assistant("Because.")],
        "rejected": [user("Why?"), assistant("No.")],
        "messages": [user("Why?"), assistant("Because.")],
        "score_chosen": 8.0,
        "score_rejected": 6.5,
    },
    "stack exchange": {"question": "Why?", "response_j": "Because.", "response_k": "No."},
    "openai": {
        "input": {"messages": [user("Why?")], "tools": []},
        "preferred_output": [assistant("Because.")],
        "non_preferred_output": [assistant("No.")],
    },
}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(folder: Path, *records: Any, reading: Reading | None = None) -> DatasetProfile:
    return load_dataset(write(folder / "rows.jsonl", *records), reading)


def texts(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_recognised_in_every_form(form: str, tmp_path: Path) -> None:
    found = read(tmp_path, FORMS[form])
    assert found.schema.startswith("preference pairs: ")
    (row,) = found.rows
    assert texts(row.messages) == [("user", "Why?"), ("assistant", "Because.")]
    assert texts(row.rejected) == [("user", "Why?"), ("assistant", "No.")]
    assert row.shared == 1
    assert [problem.kind for problem in found.problems if problem.kind == "preference-pairs"]


def test_what_stands_before_both_answers_is_told_once(tmp_path: Path) -> None:
    before = {
        "system": "Be brief.",
        "instruction": "Sum up.",
        "input": "A text.",
        "history": [["Hi", "Hello"]],
    }
    (row,) = read(tmp_path, before | {"chosen": "Short.", "rejected": "Long."}).rows
    asked = [("user", "Hi"), ("assistant", "Hello"), ("user", "Sum up.\n\nA text.")]
    assert texts(row.messages) == [("system", "Be brief."), *asked, ("assistant", "Short.")]
    assert texts(row.rejected) == [("system", "Be brief."), *asked, ("assistant", "Long.")]
    assert row.shared == 4


def test_several_turns_may_differ_behind_the_question(tmp_path: Path) -> None:
    start = [user("Buy it."), assistant("Which?")]
    better, worse = (
        [*start, user("The red one."), assistant("Done.")],
        [*start, user("The red one."), assistant("?")],
    )
    (row,) = read(tmp_path, {"chosen": better, "rejected": worse}).rows
    assert row.shared == 3 and row.answer == "Done." and row.rejected[-1].content == "?"


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("equal-answers", {"prompt": "Why?", "chosen": "So.", "rejected": " So.\n"}),
        ("no-rejected", {"prompt": "Why?", "chosen": "So.", "rejected": ""}),
        ("no-rejected", {"prompt": "Why?", "chosen": "So.", "rejected": None}),
        (
            "other-question",
            {
                "chosen": [user("Why?"), assistant("So.")],
                "rejected": [user("When?"), assistant("Now.")],
            },
        ),
    ],
)
def test_a_row_that_is_no_pair_keeps_its_better_answer_and_says_why(
    kind: str, record: dict[str, Any], tmp_path: Path
) -> None:
    found = read(tmp_path, FORMS["trl strings"] | {"chosen": "Good."}, record)
    rows = list(found.rows)
    assert [bool(row.rejected) for row in rows] == [True, False] and rows[1].answer == "So."
    (problem,) = (problem for problem in found.problems if problem.kind == kind)
    assert problem.lines == (2,) and problem.switchable and "training.objective dpo" in problem.text
    assert len(read(tmp_path, *[FORMS["trl strings"], record], reading=Reading(exclude=(kind,))).rows) == 1


def test_a_missing_better_answer_sets_the_row_aside(tmp_path: Path) -> None:
    found = read(tmp_path, FORMS["trl strings"], {"prompt": "Why?", "chosen": "", "rejected": "No."})
    assert found.usable == 1
    assert [problem.kind for problem in found.problems if problem.severity == "error"] == ["no-answer"]


def test_columns_with_names_that_say_nothing_can_be_given(tmp_path: Path) -> None:
    reading = Reading(columns=(("chosen", "A1"), ("question", "Q1"), ("rejected", "A2")))
    (row,) = read(tmp_path, {"Q1": "Why?", "A1": "Because.", "A2": "No."}, reading=reading).rows
    assert row.answer == "Because." and row.rejected[-1].content == "No."


def test_single_answers_marked_good_or_bad_of_other_questions_are_no_pairs(
    tmp_path: Path, model_folder: Path
) -> None:
    marked = [{"prompt": f"Why {n}?", "completion": "So.", "label": n % 2 == 0} for n in range(6)]
    found = read(tmp_path, *marked)
    assert len(found.rows) == 3 and not pair_numbers(found.rows)
    kinds = {problem.kind: (problem.count, problem.lines) for problem in found.problems}
    assert kinds["lone-good"] == (3, (1, 3, 5)) and kinds["rejected-answer"] == (3, (2, 4, 6))
    with pytest.raises(TuneError, match="better and a worse answer") as refused:
        encode_pairs(ChatFormat.from_folder(model_folder), found.rows, 64)
    assert "KTO" in refused.value.fix


def test_a_good_and_a_bad_answer_to_one_question_become_a_pair(tmp_path: Path) -> None:
    def marked(question: str, answer: str, good: bool) -> dict[str, Any]:
        return {
            "messages": [user("Be brief."), assistant("Yes."), user(question), assistant(answer)],
            "kto_tag": good,
        }

    found = read(
        tmp_path,
        marked("One?", "Bad 1.", False),
        marked("One?", "Good 1.", True),
        marked("Two?", "Good 2.", True),
        marked("One?", "Good 1 again.", True),
        marked("One?", "Bad 1 again.", False),
        marked("One?", "Bad 1 once more.", False),
        marked("Three?", "Bad 3.", False),
    )
    assert found.schema.startswith("rated answers, ") and found.total == 7
    assert [(row.line, row.answer, row.rejected and row.rejected[-1].content) for row in found.rows] == [
        (2, "Good 1.", "Bad 1."),
        (3, "Good 2.", ()),
        (4, "Good 1 again.", "Bad 1 again."),
    ]
    assert all(row.shared == 3 for row in found.rows if row.rejected)
    kinds = {problem.kind: problem.lines for problem in found.problems}
    assert kinds["rejected-answer"] == (6, 7) and kinds["lone-good"] == (3,)
    assert len(peek(str(tmp_path / "rows.jsonl")).rows) == 3


def test_answers_of_two_splits_are_no_pair() -> None:
    def row(answer: str, held_out: bool) -> Row:
        return Row((Message("user", "Why?"), Message("assistant", answer)), 1, held_out=held_out)

    for held_out, paired in ((False, True), (True, False)):
        rated = Rated(io.BytesIO())
        rated.good(row("Yes.", False), ProblemLog())
        with pytest.raises(BadAnswer):
            rated.bad(BadAnswer(row("No.", held_out)))
        assert rated.match() == paired


def test_thousands_of_rated_answers_far_apart_find_each_other(tmp_path: Path) -> None:
    sides = [
        [{"prompt": f"Why {n}?", "completion": f"{word} {n}", "label": word == "Yes"} for n in range(1500)]
        for word in ("Yes", "No")
    ]
    rows = read(tmp_path, *sides[0], *sides[1][::-1]).rows
    assert len(rows) == len(pair_numbers(rows)) == 1500
    assert all(row.answer.split()[1] == row.rejected[-1].content.split()[1] for row in rows)


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Say {n}.", "chosen": f"Yes {n}.", "rejected": f"Not at all {n}."} for n in range(count)
    ]


def test_pairs_with_another_worse_answer_are_no_copies(tmp_path: Path) -> None:
    one = FORMS["trl strings"]
    found = read(tmp_path, one, one | {"rejected": "Never."}, one)
    assert [row.rejected[-1].content for row in found.rows] == ["No.", "Never."]
    assert next(problem for problem in found.problems if problem.kind == "duplicate").count == 1


def test_stored_pairs_come_back_whole_and_go_to_other_processes(tmp_path: Path) -> None:
    lone = {"prompt": "Why?", "chosen": "So.", "rejected": ""}
    rows = read(tmp_path, *pairs(5), lone, *pairs(7)[5:]).rows
    assert isinstance(rows, StoredRows) and rows.pairs() == [0, 1, 2, 3, 4, 6, 7]
    worse = rejected_rows(rows, rows.pairs())
    assert isinstance(worse, RejectedRows) and worse.key != StoredRows(worse.store, worse.places).key
    again = pickle.loads(pickle.dumps(worse))
    assert isinstance(again, RejectedRows) and list(again) == list(worse) == list(worse[:])
    assert [row.answer for row in worse] == [worse[at].answer for at in range(7)]
    assert worse[5].answer == "Not at all 5." and not worse[5].rejected and worse[5].line == 7


@pytest.fixture(scope="module")
def chat(model_folder: Path) -> ChatFormat:
    return ChatFormat.from_folder(model_folder)


def row_of(question: str, better: str, worse: str = "") -> Row:
    asked, other = (Message("user", question),), (Message("assistant", worse),)
    return Row((*asked, Message("assistant", better)), 1, rejected=(*asked, *other) if worse else ())


def test_only_what_differs_is_learned_of_both_rows(chat: ChatFormat) -> None:
    row = row_of("Is it?", "It is blue today.", "It is old.")
    found, problems = encode_pairs(chat, [row], 64)
    (pair,) = found[:]
    assert isinstance(pair, Pair) and not problems
    prompt, told = chat.prompt_ids(row.prompt), []
    for side, answer in ((pair.chosen, "blue today."), (pair.rejected, "old.")):
        assert side.ids[: len(prompt)] == prompt
        told.append([token for token, on in zip(side.ids, side.trained, strict=True) if on])
        assert answer in chat.decode(told[-1]) and "It is" not in chat.decode(told[-1])
    assert found.supervised[0] == found.trained[0] == sum(map(len, told)) == sum(pair.trained)
    assert found.counts[0] == len(pair.ids) == len(pair.chosen.ids) + len(pair.rejected.ids)
    assert found.raw(0)[0] == b"".join(number.to_bytes(4, "little") for number in pair.ids)


def test_pairs_that_do_not_fit_are_left_out_and_counted(chat: ChatFormat) -> None:
    long = "old sky " * 40
    rows = [
        row_of("One?", "Yes.", "No."),
        row_of("Two?", "Yes.", long),
        row_of("Three?", long, "No."),
        row_of("Four?", "Alone."),
        row_of("Five?", "No.", "Yes."),
    ]
    found, problems = encode_pairs(chat, rows, 40)
    assert list(found.rows) == [0, 4]
    assert {problem.kind: problem.count for problem in problems} == {"no-pair": 1, "too-long": 2}
    training, validation = split_pairs(found, {4})
    assert [pair.place for pair in (*training[:], *validation[:])] == [0, 1]  # type: ignore[attr-defined]
    assert max((training.sides or training).counts) == max(
        map(len, (training[0].chosen.ids, training[0].rejected.ids))
    )  # type: ignore[attr-defined]


def test_a_long_pair_loses_the_oldest_turns_that_both_rows_share(chat: ChatFormat) -> None:
    old = [Message("user", "old sky " * 8), Message("assistant", "Yes.")]
    asked = [Message("system", "Be kind."), *old, *old, Message("user", "Is it blue?")]
    rows = [
        Row((*asked, Message("assistant", better)), line, rejected=(*asked, Message("assistant", worse)))
        for line, (better, worse) in enumerate(
            [("It is.", "No."), ("It is.", "No " * 4), ("So " * 99, "No.")], 1
        )
    ]
    found, problems = encode_pairs(chat, [row_of("One?", "Yes.", "No."), *rows], 64)
    assert list(found.rows) == [0, 1, 2]
    whole, _ = encode_pairs(chat, rows, 4096)
    for pair, full in zip(found[1:], whole[:2], strict=True):
        sides, uncut = (pair.chosen, pair.rejected), (full.chosen, full.rejected)  # type: ignore[attr-defined]
        prompts = []
        for side, before in zip(sides, uncut, strict=True):
            assert len(side.ids) <= 64 < max(len(one.ids) for one in uncut)
            learned, all_learned = (
                [token for token, on in zip(one.ids, one.trained, strict=True) if on]
                for one in (side, before)
            )
            assert learned == all_learned
            prompts.append(chat.decode(side.ids[: side.trained.index(True)]))
        assert prompts[0] == prompts[1] and "Be kind." in prompts[0] and "Is it blue?" in prompts[0]
    told = {problem.kind: (problem.count, problem.lines) for problem in problems}
    assert told == {"shortened": (2, (1, 2)), "too-long": (1, (3,))}
    assert [pair.place for pair in found[:]] == [0, 1, 2]  # type: ignore[attr-defined]


def test_lengths_of_pairs_are_counted_estimated_and_sampled_alike(chat: ChatFormat, tmp_path: Path) -> None:
    rows = read(tmp_path, *pairs(60)).rows
    better, _ = encode_rows(chat, rows)
    whole = measure_rows(chat, rows, better)
    assert whole.pairs is not None and whole.pairs.sides is not None
    assert (whole.rows, whole.pairs.rows, whole.pairs.sides.rows) == (60, 60, 120)
    assert whole.pairs.tokens == whole.pairs.sides.tokens > 2 * whole.tokens
    assert whole.pairs.longest == whole.longest + whole.pairs.sides.longest
    assert whole.learned("dpo") is whole.pairs and whole.learned("sft") is whole
    assert whole.pairs.most(64) == 128 and whole.pairs.of_rows is whole.pairs.sides
    for guessed in (sample_lengths(chat, rows, 60), estimate_lengths(rows)):
        assert guessed.pairs is not None and not guessed.pairs.exact
        assert (
            guessed.pairs.rows == 60 and guessed.pairs.sides is not None and guessed.pairs.sides.rows == 120
        )
        assert guessed.pairs.tokens == pytest.approx(whole.pairs.tokens, rel=0.5)
    sampled = sample_lengths(chat, rows, 600).pairs
    assert sampled is not None and sampled.rows == 600 and sum(sampled.histogram) == 600
    assert (
        measure_rows(chat, [row_of("One?", "Yes.")], encode_rows(chat, [row_of("One?", "Yes.")])[0]).pairs
        is None
    )


def test_many_worse_answers_are_encoded_in_a_child_and_found_again(chat: ChatFormat, tmp_path: Path) -> None:
    rows = read(tmp_path, *pairs(1100)).rows
    worse = rejected_rows(rows, pair_numbers(rows))
    made, _ = encode_in_child(chat, worse, lambda *_: None)
    assert len(made) == 1100 and "Not at all 1099" in chat.decode(made[1099].ids)
    assert encode_rows(chat, worse)[0].key == made.key != encode_rows(chat, rows)[0].key
