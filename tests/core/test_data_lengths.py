"""How long rows are: estimates against exact counts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.tokens import lengths
from ollama_tune.core.data.tokens.lengths import encode_rows, measure, sample_lengths
from ollama_tune.core.data.values import Message, Row
from tests.tiny import WORDS, build_tokenizer


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return ChatFormat.from_folder(folder)


def texts(count: int) -> list[tuple[str, str]]:
    chance, words = random.Random(2), WORDS.split()

    def text(size: float) -> str:
        return " ".join(chance.choices(words, k=max(int(size), 1)))

    return [
        (f"{n} {text(chance.lognormvariate(2, 0.8))}", text(chance.lognormvariate(2.5, 1)))
        for n in range(count)
    ]


def stored(path: Path, count: int) -> list[Row]:
    lines = [{"question": question, "answer": answer} for question, answer in texts(count)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return load_dataset(str(path)).rows  # type: ignore[return-value]


def test_a_sample_of_stored_rows_tells_all_tokens(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = stored(tmp_path / "rows.jsonl", 900)
    exact = measure(encode_rows(chat, rows)[0])
    monkeypatch.setattr(lengths, "SAMPLE", 300)
    monkeypatch.setattr(lengths, "MASKED", 50)
    found = sample_lengths(chat, rows, len(rows))
    assert (found.rows, found.exact, exact.exact) == (900, False, True)
    assert found.tokens == pytest.approx(exact.tokens, rel=0.01)
    assert found.trained_tokens == pytest.approx(exact.trained_tokens, rel=0.05)
    assert found.median == pytest.approx(exact.median, rel=0.15)
    assert found.percentile_95 == pytest.approx(exact.percentile_95, rel=0.25)
    assert sum(found.histogram) == 900
    assert found == sample_lengths(chat, rows, len(rows))


def test_a_sample_of_other_rows_is_scaled_to_their_number(chat: ChatFormat) -> None:
    rows = [Row((Message("user", q), Message("assistant", a)), n) for n, (q, a) in enumerate(texts(200))]
    exact = measure(encode_rows(chat, rows)[0])
    found = sample_lengths(chat, rows, 70_001)
    assert found.tokens == pytest.approx(exact.tokens * 70_001 / 200, rel=1e-6)
    assert (found.rows, sum(found.histogram), found.longest) == (70_001, 70_001, exact.longest)


def test_rows_that_the_template_refuses_are_not_in_the_sample(chat: ChatFormat) -> None:
    good = Row((Message("user", "yes?"), Message("assistant", "no")), 1)
    asked = "{% if messages|length > 2 %}{{ raise_exception('two at most') }}{% endif %}"
    strict = ChatFormat.from_folder(chat.folder, template=asked + chat.original)
    refused = Row(good.messages * 2, 2)
    assert sample_lengths(strict, [good, refused], 2) == sample_lengths(strict, [good], 2)
    assert sample_lengths(strict, [refused], 1).rows == 0
