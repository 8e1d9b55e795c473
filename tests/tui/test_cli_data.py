"""`ollama-tune data`: the same for people and for programs, for any input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ollama_tune.core.errors import UsageError
from ollama_tune.tui.cli import cli
from tests.tiny import build_tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(folder)
    return str(folder)


def write(name: str, *lines: object) -> str:
    Path(name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return name


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, ["data", *arguments], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def as_json(*arguments: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", status=status))
    return found


ROWS = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}."} for n in range(12)]


def test_json_says_what_was_read_and_what_was_left_out_with_lines() -> None:
    found = as_json(write("rows.jsonl", *ROWS, "{broken", ROWS[0], {"question": "Why?", "answer": ""}))
    assert (found["outcome"], found["rows"], found["usable"]) == ("ok", 15, 12)
    assert (found["format"], found["encoding"]) == ("JSONL", "UTF-8")
    assert found["first"] == [
        {"role": "user", "content": "What is 0 + 1?"},
        {"role": "assistant", "content": "It is 1."},
    ]
    for line in ("13", "14", "15"):
        assert any("1 row left out" in text and f"(line {line})" in text for text in found["warnings"])
    assert {column["name"]: column["part"] for column in found["columns"]} == {
        "question": "question",
        "answer": "answer",
    }
    assert {"kind", "text", "count", "lines", "severity", "switchable"} == set(found["problems"][0])


def test_a_person_reads_the_same() -> None:
    text = run(write("rows.jsonl", *ROWS, "{broken"))
    for part in ("rows      12 usable of 13", "1 row left out (line 13)", "user       What is 0 + 1?"):
        assert part in text


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\x00\x01\x02", b"[[[[", b'{"a": 1}\n', b"\xff\xfe", b'{"question": "q"}\n' * 3],
    ids=["empty", "blank", "binary", "brackets", "unknown", "mark", "no answers"],
)
def test_what_cannot_be_trained_on_is_one_object_and_status_1(content: bytes) -> None:
    Path("bad").write_bytes(content)
    found = as_json("bad", status=1)
    assert set(found) == {"outcome", "code", "what", "fix"}
    assert found["outcome"] == "error"
    assert found["what"].endswith(".")


def test_a_missing_file_is_told() -> None:
    assert "nothing.jsonl" in as_json("nothing.jsonl", status=1)["what"]


def test_lone_surrogates_controls_and_markup_come_out_as_valid_text() -> None:
    line = '{"question": "\\ud83d\\ude00 \\ud83d", "answer": "a\\u001b[2J\\u202e[/foo]"}'
    name = write("rows.jsonl", line, *ROWS)
    first = as_json(name)["first"]
    assert first[0]["content"] == "😀 \ufffd"
    assert first[1]["content"] == "a\x1b[2J\u202e[/foo]"
    text = run(name)
    assert "a␛[2J<U+202E>[/foo]" in text
    assert not set(text) & set("\x1b\u202e")


def test_columns_can_be_named_with_commas_in_their_names() -> None:
    name = write("rows.jsonl", *({"a, b": f"frage {n}?", "c": f"wort {n}", "d": "x"} for n in range(12)))
    found = as_json(name, "--columns", "question=a, b,answer=c")
    assert found["first"][0]["content"] == "frage 0?"
    assert any("'d'" in text for text in found["warnings"])


def test_labels_that_are_numbers_can_be_named() -> None:
    name = write("rows.jsonl", *({"text": f"text {n}", "label": n % 2} for n in range(60)))
    (warning,) = [text for text in as_json(name)["warnings"] if "are numbers" in text]
    assert "--labels 0=…" in warning
    found = as_json(name, "--labels", "0=negative, really,1=positive")
    assert found["labels"] == {"negative, really": 30, "positive": 30}
    assert found["first"][2] == {"role": "assistant", "content": "negative, really"}
    assert not [text for text in found["warnings"] if "are numbers" in text]
    text = run(name, "--labels", "0 = negative", "--labels", "1=positive")
    assert "labels    negative (30), positive (30)" in text
    for wrong in ("0", "0=", "=a"):
        assert "--labels" in as_json(name, "--labels", wrong, status=2)["what"]


def test_wrong_usage_is_status_2() -> None:
    name = write("rows.jsonl", *ROWS)
    assert "--columns" in as_json(name, "--columns", "frage=a", status=2)["what"]
    assert "1 to 12" in as_json(name, "--row", "13", status=2)["fix"]
    with pytest.raises(UsageError):
        run(name, "--columns", "question")


def test_kinds_of_problems_can_be_included_and_excluded() -> None:
    name = write("rows.jsonl", *ROWS, ROWS[0])
    assert as_json(name, "--include", "duplicate")["usable"] == 13
    assert as_json(name)["usable"] == 12


def test_a_model_counts_tokens_and_a_row_is_shown_as_it_is_trained(tokenizer: str) -> None:
    name = write("rows.jsonl", *ROWS)
    found = as_json(name, "--model", tokenizer, "--row", "2")
    (row,), lengths = found["row"]["examples"], found["lengths"]
    assert row["text"] == (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
    )
    assert len(row["ids"]) == len(row["trained"])
    assert (lengths["rows"], lengths["exact"]) == (12, True)
    text = run(name, "--model", tokenizer, "--row", "2")
    assert "<|im_start|>assistant\n⟦It is 2.<|im_end|>⟧\n" in text
    assert f"{len(row['ids'])} tokens, {sum(row['trained'])} of them trained" in text
