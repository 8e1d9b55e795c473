from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.load import load_dataset, peek, profile_rows
from ollama_tune.core.data.rows.clean import CHECKS, findings
from ollama_tune.core.data.rows.keys import keys_of, normalised
from ollama_tune.core.data.rows.scripts import ScriptMix, script_of, spoken
from ollama_tune.core.data.values import DatasetProfile, Message, Reading, ToolCall
from ollama_tune.core.errors import TuneError


def kinds(answer: str, question: str = "What is it?", label: bool = False) -> list[str]:
    return list(findings((Message("user", question), Message("assistant", answer)), label))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("template-tokens", "Done.<|im_end|>\n<|im_start|>user"),
        ("template-tokens", "[INST] Hello [/INST]"),
        ("template-tokens", "<start_of_turn>model"),
        ("template-tokens", "<｜end▁of▁sentence｜>"),
        ("template-tokens", "It ends here.</s>"),
        ("secret", "key = AKIAIQ4XN2PZ7RTLW3BV"),
        ("secret", "use ghp_" + "a1B2c3D4e5F6g7H8i9" * 2),
        ("secret", "sk-proj-Zx81kQpL0vT4nWb7YdR2mJ"),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq9"),
        ("secret", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJxd2VyIn0.dBjftJeZ4CVPmB92K27uhb"),
        ("card-number", "Pay with 4539 5787 6362 1486 please"),
        ("card-number", "371449635398431"),
        ("contact", "write to jane.doe@mail.example.org"),
        ("contact", "call +49 30 901820 now"),
        ("contact", "call (415) 555-2671"),
        ("refusal", "I'm sorry, but I can't help with that request."),
        ("refusal", "As an AI language model, I cannot have opinions."),
        ("leftover", "The sky is blue.\nRegenerate response"),
        ("placeholder", "Dear [Your Name], thank you."),
        ("placeholder", "Hello {{ customer_name }}, welcome."),
        ("html", "<p><b>Yes</b></p><br/><i>No</i>"),
        ("html", "Fish &amp; chips"),
        ("garbled", "CafÃ© and crÃ¨me"),
        ("garbled", "Itâ€™s what he saidâ€¦"),
        ("repetition", "and so it goes on and on " * 12),
        ("echo", "what is it?"),
        ("short-answer", "."),
    ],
)
def test_every_check_finds_its_case(kind: str, answer: str) -> None:
    assert kinds(answer) == [kind]


def test_every_kind_of_check_has_a_case_above() -> None:
    marks = test_every_check_finds_its_case.pytestmark  # type: ignore[attr-defined]
    assert {check.kind for check in CHECKS} == {kind for kind, _ in marks[0].args[1]}


@pytest.mark.parametrize(
    "answer",
    [
        "The key starts with sk-xxxxxxxxxxxxxxxxxxxxxxxx and AKIAIOSFODNN7EXAMPLE is an example.",
        "Order 4539 5787 6362 1487 was shipped; 1234567890123456 is its number.",
        "On 2024-01-02 10:30 the host 192.168.100.200 sent 1,234,567.89 to 10.0.0.1.",
        "I am sorry for your loss. You cannot park here, and I can't wait to see you.",
        "Use a[i] = b[0]; if x < y and y > z: return f'{x}'",
        "```html\n<p><b>Yes</b></p><br/>\n``` shows &amp; and {{ name }}",
        "O coração não dói; São João, à noite; naïve café, Ångström.",
        "The tool is good. The tool is bad. It depends on what you want to do with it, and when, and why so.",
        "risk-averse task-oriented desk-bound people at hf_ and gh",
        "<s>",
    ],
)
def test_usual_text_is_no_finding(answer: str) -> None:
    assert [kind for kind in kinds(answer) if kind != "template-tokens" or answer != "<s>"] == []


def test_a_label_may_be_short_and_a_call_of_a_tool_may_be_empty() -> None:
    assert kinds("A", label=True) == []
    call = Message("assistant", "", tool_calls=(ToolCall("f"),))
    assert list(findings((Message("user", "go"), call))) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is it?", "what  IS it", True),
        ("Yes, of course.", "yes of course", True),
        ("2+2", "2*2", False),
        ("1.5", "15", False),
        ("x < y", "x > y", False),
        ("你好。", "你好", True),
        ("???", "??", False),
    ],
)
def test_texts_that_are_the_same_to_a_reader(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) is same


def test_calls_thoughts_and_tools_tell_conversations_apart() -> None:
    ask = Message("user", "go")
    answers = [
        Message("assistant", ""),
        Message("assistant", "", tool_calls=(ToolCall("f", '{"a": 1}'),)),
        Message("assistant", "", tool_calls=(ToolCall("f", '{"a": 2}'),)),
        Message("assistant", "", reasoning="well"),
    ]
    whole = {keys_of((ask, answer)).conversation for answer in answers}
    assert len(whole | {keys_of((ask, answers[0]), '[{"name": "f"}]').conversation}) == 5


# Findings of a whole file


def profile(folder: Path, rows: list[dict[str, Any]], reading: Reading | None = None) -> DatasetProfile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(str(path), reading)


def pairs(count: int) -> list[dict[str, Any]]:
    names = ("river", "harbour", "forest", "mountain", "village", "castle", "island", "valley")
    return [
        {
            "question": f"{names[i % 8]} {i}: where does number {i * i} stand",
            "answer": f"{i} by the {names[i % 7]}",
        }
        for i in range(count)
    ]


def found(profile: DatasetProfile, kind: str) -> tuple[int, tuple[int, ...], str, bool]:
    problem = next(problem for problem in profile.problems if problem.kind == kind)
    return problem.count, problem.lines, problem.severity, problem.switchable


def test_copies_are_dropped_and_can_be_included(tmp_path: Path) -> None:
    rows = [*pairs(12), {"question": "RIVER 0: where does number 0 stand?", "answer": "0 by the river."}]
    assert found(profile(tmp_path, rows), "duplicate") == (1, (13,), "error", True)
    assert profile(tmp_path, rows).usable == 12
    kept = profile(tmp_path, rows, Reading(include=("duplicate",)))
    assert (kept.usable, found(kept, "duplicate")[2]) == (13, "warning")
    assert [row.line for row in profile_rows(kept, "duplicate")] == [13]


def test_contradicting_answers_are_told_and_can_be_left_out(tmp_path: Path) -> None:
    rows = [*pairs(12), {"question": "river 0: where does number 0 stand", "answer": "nowhere at all"}]
    data = profile(tmp_path, rows)
    assert found(data, "contradiction") == (2, (1, 13), "warning", True)
    without = profile(tmp_path, rows, Reading(exclude=("contradiction",)))
    assert [row.line for row in without.rows] == list(range(2, 13))
    assert found(without, "contradiction")[2] == "error"
    assert [row.line for row in profile_rows(without, "contradiction")] == [1, 13]


def test_an_answer_to_another_turn_or_system_text_is_no_contradiction(tmp_path: Path) -> None:
    def chat(*texts: str) -> dict[str, Any]:
        roles = ("system", "user", "assistant", "user", "assistant")
        return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}

    rows = [
        chat("be brief", "hello", "hi", "who are you", "a tool"),
        chat("be brief", "hello", "hi", "what is up", "the sky"),
        chat("be rude", "hello", "go away"),
    ]
    assert "contradiction" not in {problem.kind for problem in profile(tmp_path, rows).problems}


def test_near_duplicates_are_told_kept_and_can_be_left_out(tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    rows = [*pairs(12), {"question": "tell", "answer": long}, {"question": "tell", "answer": long + " more"}]
    data = profile(tmp_path, rows)
    assert (data.usable, found(data, "near-duplicate")) == (14, (1, (14,), "warning", True))
    assert profile(tmp_path, rows, Reading(exclude=("near-duplicate",))).rows[-1].line == 13


def test_findings_of_rows_are_counted_with_their_lines_and_can_be_left_out(tmp_path: Path) -> None:
    rows = pairs(12)
    rows[3]["answer"] += " <|im_end|>"
    rows[5]["answer"] += " AKIAIQ4XN2PZ7RTLW3BV <|im_end|>"
    data = profile(tmp_path, rows)
    assert found(data, "template-tokens") == (2, (4, 6), "warning", True)
    assert found(data, "secret") == (1, (6,), "warning", True)
    assert [row.line for row in profile_rows(data, "template-tokens")] == [4, 6]
    without = profile(tmp_path, rows, Reading(exclude=("secret", "unheard-of")))
    assert [row.line for row in without.rows] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    with pytest.raises(TuneError, match="left out, because of template-tokens"):
        profile(tmp_path, [rows[3], rows[5]], Reading(exclude=("template-tokens",)))


def test_what_most_rows_share_is_told_once(tmp_path: Path) -> None:
    rows = pairs(20)
    same = [row | {"answer": "I do not know."} for row in rows]
    assert found(profile(tmp_path, same), "constant-answer")[0] == 20
    most = [row | ({"answer": "I do not know."} if i < 12 else {}) for i, row in enumerate(rows)]
    assert found(profile(tmp_path, most), "same-answers") == (12, (), "warning", False)
    begun = [
        row | {"answer": "Certainly! Here it is: " + row["answer"] + " Best wishes, Bot"} for row in rows
    ]
    told = {problem.kind: problem.text for problem in profile(tmp_path, begun).problems}
    assert "“Certainly! Here it is:”" in told["same-beginning"]
    assert "“Best wishes, Bot”" in told["same-end"]


def test_one_letter_answers_are_no_slip_where_most_rows_have_one(tmp_path: Path) -> None:
    rows = pairs(20)
    letters = [row | {"answer": "ABCD"[i % 4]} for i, row in enumerate(rows)]
    data = profile(tmp_path, letters, Reading(form="chat"))
    assert "short-answer" not in {problem.kind for problem in data.problems}
    assert len(profile_rows(data, "short-answer")) == 0
    rows[7]["answer"] = "-"
    assert found(profile(tmp_path, rows), "short-answer") == (1, (8,), "warning", True)


def test_records_that_cannot_be_used_are_shown_as_pieces_of_their_text(tmp_path: Path) -> None:
    rows = [*pairs(10), *({"question": f"q{i}\x1b[2J" + "x" * 999, "answer": ""} for i in range(7))]
    data = profile(tmp_path, rows)
    assert found(data, "no-answer") == (7, (11, 12, 13, 14, 15), "error", False)
    samples = profile_rows(data, "no-answer")
    assert [row.line for row in samples] == [11, 12, 13, 14, 15]
    assert all(
        len(row.messages[0].content) <= 200 and "\x1b" not in row.messages[0].content for row in samples
    )
    assert profile_rows(data, "few-rows") == ()


def test_the_first_page_has_findings_too(tmp_path: Path) -> None:
    rows = pairs(12)
    rows[2]["answer"] += " <|im_end|>"
    path = tmp_path / "page.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = peek(str(path))
    assert [row.line for row in profile_rows(page, "template-tokens")] == [3]


# Scripts


def test_the_mix_of_scripts_counts_letters_only() -> None:
    mix = ScriptMix()
    mix.add("Hello, world! 12345 …")
    mix.add("你好世界")
    mix.add("Привет")
    assert mix.shares() == (("Latin", 0.5), ("Cyrillic", 0.3), ("Han", 0.2))
    assert spoken(mix.shares()) == "Latin 50 %, Cyrillic 30 %, Han 20 %"
    assert ScriptMix().shares() == ()


@pytest.mark.parametrize(
    ("letter", "script"),
    [
        *(("a", "Latin"), ("é", "Latin"), ("ệ", "Latin"), ("ß", "Latin"), ("λ", "Greek"), ("ж", "Cyrillic")),
        *(("א", "Hebrew"), ("م", "Arabic"), ("ह", "Devanagari"), ("ก", "Thai"), ("한", "Hangul")),
        *(("あ", "Hiragana"), ("ア", "Katakana"), ("漢", "Han"), ("𠀀", "Han"), ("𝔸", "other")),
        *(("1", ""), ("!", ""), (" ", ""), ("😀", "")),
    ],
)
def test_letters_belong_to_scripts(letter: str, script: str) -> None:
    assert script_of(letter) == script


def test_of_many_rows_some_are_looked_at() -> None:
    mix = ScriptMix()
    for at in range(16_500):
        mix.add("a" if at % 2 else "ж")
    shares = dict(mix.shares())
    assert set(shares) == {"Latin", "Cyrillic"}


def test_the_mix_of_a_file_is_in_its_profile(tmp_path: Path) -> None:
    rows = [*pairs(3), {"question": "你好吗", "answer": "很好"}]
    assert [script for script, _ in profile(tmp_path, rows).scripts] == ["Latin", "Han"]
