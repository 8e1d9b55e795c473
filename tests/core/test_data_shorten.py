"""Rows that are too long: what is left of them is what a conversation of these turns gives."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ollama_tune.core.data.chat import mask
from ollama_tune.core.data.chat.answers import Answers
from ollama_tune.core.data.chat.mask import Cut, cut, make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.tokens.lengths import encode_rows
from ollama_tune.core.data.tokens.shorten import fit_rows, shorten
from ollama_tune.core.data.values import Example, Message, Row
from ollama_tune.core.errors import TuneError
from tests.tiny import build_tokenizer

SYSTEM = Message("system", "Be short.")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return ChatFormat.from_folder(folder)


def talk(turns: int, *first: Message) -> Row:
    exchanges = [
        (Message("user", f"Is number {n} old?"), Message("assistant", f"Yes {n}!")) for n in range(turns)
    ]
    return Row((*first, *(message for exchange in exchanges for message in exchange)), 7)


SHORT = Row((Message("user", "yes?"), Message("assistant", "no")), 1)


def test_as_few_of_the_oldest_turns_as_possible_are_left_out(chat: ChatFormat) -> None:
    row = talk(8, SYSTEM)
    whole = [len(make_example(chat, talk(turns, SYSTEM)).ids) for turns in range(1, 9)]
    for limit in range(whole[0], whole[-1]):
        found = shorten(chat, row, limit)
        assert found is not None
        kept = sum(size <= limit for size in whole)
        assert found.row.messages == (SYSTEM, *row.messages[1 + 2 * (8 - kept) :])
        assert (found.start, found.end) == (1, 1 + 2 * (8 - kept))
        assert found.example == make_example(chat, found.row)
        assert len(found.example.ids) <= limit


def test_the_last_question_and_its_answer_stay_together_with_what_a_tool_said(chat: ChatFormat) -> None:
    last = (
        Message("user", "And now?"),
        Message("assistant", "I look."),
        Message("tool", "blue"),
        Message("assistant", "blue"),
    )
    row = Row((*talk(3, SYSTEM).messages, *last), 7)
    least = len(make_example(chat, Row((SYSTEM, *last), 7)).ids)
    found = shorten(chat, row, least)
    assert found is not None and found.row.messages == (SYSTEM, *last)
    assert shorten(chat, row, least - 1) is None
    assert shorten(chat, SHORT, 5) is None


def test_rows_that_fit_stay_and_the_others_are_shortened_or_left_out_and_told(chat: ChatFormat) -> None:
    hopeless = Row((Message("user", "old " * 80), Message("assistant", "yes")), 9)
    rows = [SHORT, talk(8), hopeless, SHORT]
    examples, _ = encode_rows(chat, rows)
    fitted, problems = fit_rows(chat, rows, examples, 60)
    assert list(fitted.rows) == [0, 1, 3]
    assert [fitted[0], fitted[2]] == [examples[0], examples[3]]
    shortened = shorten(chat, talk(8), 60)
    assert shortened is not None and fitted[1] == shortened.example
    assert max(fitted.counts) <= 60
    assert [(p.kind, p.severity, p.count, p.lines) for p in problems] == [
        ("too-long", "error", 1, (9,)),
        ("shortened", "warning", 1, (7,)),
    ]


def test_where_all_fit_nothing_is_done(chat: ChatFormat) -> None:
    examples, _ = encode_rows(chat, [SHORT])
    assert fit_rows(chat, [SHORT], examples, 60) == (examples, [])


def test_a_text_is_learned_in_parts(chat: ChatFormat) -> None:
    rows = [Row((Message("text", "The sky is blue. " * 30),), 3), SHORT]
    examples, _ = encode_rows(chat, rows)
    fitted, problems = fit_rows(chat, rows, examples, 50)
    assert [problem.kind for problem in problems] == ["divided"]
    parts = [example for example, row in zip(fitted, fitted.rows, strict=True) if row == 0]
    assert tuple(token for part in parts for token in part.ids) == examples[0].ids
    assert tuple(mark for part in parts for mark in part.trained) == examples[0].trained
    assert max(len(part.ids) for part in parts) <= 50 and len(parts) == -(-examples.counts[0] // 50)


def test_a_row_that_fits_to_the_token_is_whole_and_a_longer_one_is_cut_before_the_next() -> None:
    example = Example("abcdef", (1, 2, 3), (False, False, True), ((0, 2), (2, 3), (3, 6)), 1)
    assert cut(example, 3) is None
    assert cut(example, 2) == Cut(3, 1, 1)
    assert cut(example, 1) == Cut(2, 2, 1)


def test_tokens_out_of_the_order_of_the_text_set_a_row_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask, "_tokens", lambda *_: ((1, 2), ((1, 2), (0, 1))))
    with pytest.raises(TuneError, match="do not stand in the order of its text"):
        mask.example_of(cast(Any, None), Row((), line=1), Answers("ab", ((0, 2),), frozenset()))
