"""Stored tokens: the same as made one by one, found again, and never half there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.child import Cancelled
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.tokens import batched, encoded, lengths
from ollama_tune.core.data.tokens.encoded import Examples, Held, Picked, Stored
from ollama_tune.core.data.tokens.encoding import encode_in_child
from ollama_tune.core.data.tokens.lengths import encode_rows, measure
from ollama_tune.core.data.values import Message, Problem, Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.train.batches import fingerprint
from tests.tiny import build_tokenizer

QUESTIONS = (
    "Is it blue?",
    "  yes\n",
    "héllo 日本語 🙂",
    "a <|im_end|> b",
    "<think>hm</think> no",
    "1234 5",
    "​",
)
ANSWERS = (
    "It is blue.",
    "\n\n no",
    "日本 e\u0301 🙂🙂",
    "  12 ",
    "<b>x</b>\n\n\n",
    "a\tb",
    "<|im_start|>user",
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return ChatFormat.from_folder(folder)


def exchange(question: str, answer: str, line: int) -> Row:
    return Row((Message("user", question), Message("assistant", answer)), line)


def odd_rows() -> list[Row]:
    rows = [exchange(q, a, n) for n, (q, a) in enumerate((q, a) for q in QUESTIONS for a in ANSWERS)]
    rows.append(Row((*rows[0].messages, *rows[8].messages), 90))
    rows.append(Row((Message("text", "The sky — blue. 日本"),), 91))
    return [*rows, exchange("q", " ", 92)]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a few rows go to a file."""
    monkeypatch.setattr(lengths, "STORE_FROM", 1)


def tokens(examples: Sequence[object]) -> list[tuple[object, ...]]:
    return [(e.ids, e.trained, e.line) for e in examples]  # type: ignore[attr-defined]


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache" / "tokens").iterdir())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_is_stored_is_what_is_made_row_by_row(chat: ChatFormat, home: Path, stored: None) -> None:
    rows = odd_rows()
    found, problems = encode_rows(chat, rows)
    assert isinstance(found, Stored)
    assert tokens(found) == tokens([make_example(chat, row) for row in rows[:-1]])
    assert list(found.rows) == list(range(len(rows) - 1))
    assert [(p.kind, p.count) for p in problems if p.severity == "error"] == [("refused", 1)]
    assert ("text-only", 1) in [(p.kind, p.count) for p in problems]


def test_odd_texts_are_counted_in_bytes_and_only_few_need_their_places(
    chat: ChatFormat, home: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[int] = []
    one = batched._tried
    monkeypatch.setattr(batched, "_tried", lambda *part: [slow.append(1), one(*part)][1])
    encode_rows(chat, odd_rows())
    assert len(slow) < len(odd_rows()) // 3


def test_lengths_and_fingerprint_are_the_same_in_memory_and_in_a_file(
    chat: ChatFormat, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = odd_rows()
    held, told = encode_rows(chat, rows)
    monkeypatch.setattr(lengths, "STORE_FROM", 1)
    kept, again = encode_rows(chat, rows)
    assert isinstance(held, Held) and held[0].text and not kept[0].text
    assert measure(held) == measure(kept)
    assert fingerprint(held) == fingerprint(kept) == fingerprint(list(held))
    assert list(held.supervised) == list(kept.supervised)
    assert told == again


def test_a_second_call_encodes_nothing_and_tells_the_same(chat: ChatFormat, home: Path, stored: None) -> None:
    calls: list[tuple[int, int]] = []
    rows = odd_rows()
    first, problems = encode_rows(chat, rows, lambda *counts: calls.append(counts))
    assert calls[-1] == (len(rows), len(rows))
    second, again = encode_rows(chat, rows, lambda *_: pytest.fail("nothing is left to do"))
    assert tokens(first) == tokens(second)
    assert problems == again
    assert len(files(home)) == 1


def test_other_rows_or_another_template_are_encoded_anew(chat: ChatFormat, home: Path, stored: None) -> None:
    rows = odd_rows()[:5]
    other = ChatFormat.from_folder(chat.folder, template=chat.original.replace("<|im_end|>\n", "<|im_end|>"))
    for form, part in ((chat, rows), (chat, rows[1:]), (chat, rows[::-1]), (other, rows)):
        encode_rows(form, part)
    assert len(files(home)) == 4


def test_rows_of_a_file_are_named_by_the_file(
    chat: ChatFormat, home: Path, tmp_path: Path, stored: None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q {n}", "answer": f"a {n}"}) for n in range(30)))
    rows = load_dataset(str(path)).rows
    found, _ = encode_rows(chat, rows)
    assert tokens(found) == tokens([make_example(chat, row) for row in rows])
    encode_rows(chat, rows[:29])
    assert len(files(home)) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"x"]
)
def test_a_damaged_file_is_made_anew(chat: ChatFormat, home: Path, stored: None, damage: object) -> None:
    rows = odd_rows()
    first, _ = encode_rows(chat, rows)
    kept = tokens(first)
    (path,) = (home / "cache" / "tokens").iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert tokens(encode_rows(chat, rows)[0]) == kept


def test_without_a_cache_everything_stays_in_memory(
    chat: ChatFormat, tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "file" / "home"))
    found, problems = encode_rows(chat, odd_rows())
    assert isinstance(found, Held)
    assert len(found) == len(odd_rows()) - 1 and problems


def test_an_interrupted_call_leaves_nothing(chat: ChatFormat, home: Path, stored: None) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_rows(chat, odd_rows(), stop)
    assert files(home) == []


def test_the_files_unused_for_longest_go_first(
    chat: ChatFormat, home: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = odd_rows()
    monkeypatch.setattr(encoded, "KEPT_FILES", 2)
    for start in range(3):
        found, _ = encode_rows(chat, rows[start:])
        os.utime(home / "cache" / "tokens" / f"{found.key}.tokens", (start, start))
        if start == 1:
            encode_rows(chat, rows)  # used again
    names = files(home)
    assert len(names) == 2
    assert f"{encode_rows(chat, rows)[0].key}.tokens" in names


def test_a_choice_of_examples_keeps_their_order_and_lengths(chat: ChatFormat) -> None:
    held, _ = encode_rows(chat, odd_rows())
    other, _ = encode_rows(chat, odd_rows()[3:6])
    chosen = Picked([held, other], [(0, 4), (1, 0), (0, 1)])
    wanted = [held[4], other[0], held[1]]
    assert list(chosen) == wanted
    assert (len(chosen), chosen[-1], chosen[1:]) == (3, wanted[2], wanted[1:])
    assert list(chosen.counts) == [len(example.ids) for example in wanted]
    assert list(chosen.supervised) == [sum(example.trained[1:]) for example in wanted]
    assert list(chosen.rows) == [4, 0, 1]
    with pytest.raises(IndexError):
        chosen[3]


def test_a_child_process_encodes_many_rows_and_can_be_stopped(
    chat: ChatFormat, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"Is it {n}?", "answer": f"Yes, {n}."}) for n in range(1200)]
    path.write_text("\n".join(lines))
    rows = load_dataset(str(path)).rows
    with pytest.raises(Cancelled):
        encode_in_child(chat, rows, lambda *_: None, lambda: True)
    assert not (home / "cache" / "tokens").exists() or files(home) == []
    news: list[tuple[int, int]] = []
    found, problems = encode_in_child(chat, rows, lambda *counts: news.append(counts))
    assert isinstance(found, Stored) and problems == []
    assert tokens(found[:3]) == tokens([make_example(chat, row) for row in rows[:3]])
    assert news[-1] == (1200, 1200)
    assert measure(found).rows == 1200


def test_what_is_wrong_in_a_child_is_told_here(chat: ChatFormat, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q{n}", "answer": "a"}) for n in range(1000)))
    rows = load_dataset(str(path)).rows
    rows.store.path.unlink()  # type: ignore[attr-defined]
    with pytest.raises(TuneError, match="gone from the cache"):
        encode_in_child(chat, rows, lambda *_: None)


def test_problems_come_back_as_they_were(chat: ChatFormat, home: Path, stored: None) -> None:
    _, first = encode_rows(chat, odd_rows())
    _, again = encode_rows(chat, odd_rows())
    assert all(isinstance(problem, Problem) and isinstance(problem.lines, tuple) for problem in again)
    assert first == again


def test_every_kind_of_examples_counts_alike(chat: ChatFormat) -> None:
    held, _ = encode_rows(chat, odd_rows()[:4])
    plain: Examples = encoded.counted(list(held))
    assert plain is not held and encoded.counted(held) is held
    assert list(plain.counts) == list(held.counts)
    assert [plain.raw(i) for i in range(4)] == [held.raw(i) for i in range(4)]
