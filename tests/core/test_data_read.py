"""Formats, encodings and shapes: the same rows come out, whatever file they were put into."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ollama_tune.core.data.files.encodings import encoding_of
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.lenient import Broken, parse
from ollama_tune.core.data.files.read import read_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.detect import KNOWN
from ollama_tune.core.errors import TuneError
from tests.core.packers import packed

ROWS = [{"question": "What?", "answer": "That."}, {"question": "q2", "answer": "a2"}]
P, Q = json.dumps(ROWS[0]), json.dumps(ROWS[1])


def read(path: Path, **choices: str) -> tuple[str, list[Item], dict[str, tuple[int, ...]]]:
    """The format, the items, and the lines of every kind of problem."""
    log = ProblemLog()
    items = read_items(path, log, KNOWN, **choices)
    found = list(items.stream)
    return items.format, found, {problem.kind: problem.lines for problem in log.problems()}


def read_text(
    folder: Path, content: str | bytes, name: str = "a.json"
) -> tuple[str, list[Item], dict[str, tuple[int, ...]]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path)


def values(items: list[Item]) -> list[Any]:
    return [item.value for item in items]


NESTED = {"meta": {"version": 1}, "result": {"items": ROWS}}
SQUAD = [{"title": "t", "paragraphs": [{"context": "c", "qas": [ROWS[0], ROWS[1]]}]}]


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        {"data": ROWS},
        {"version": 1, "anything": ROWS},
        NESTED,
        {"question": ["What?", "q2"], "answer": ["That.", "a2"]},
        {"question": {"0": "What?", "1": "q2"}, "answer": {"0": "That.", "1": "a2"}},
        {"columns": ["question", "answer"], "index": [0, 1], "data": [["What?", "That."], ["q2", "a2"]]},
        {"1": ROWS[0], "2": ROWS[1]},
        {"data": {"x": ROWS[0], "y": ROWS[1]}},
        {"rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROWS)]},
        [["question", "answer"], ["What?", "That."], ["q2", "a2"]],
    ],
    ids=lambda value: json.dumps(value)[:30],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_every_wrapping(tmp_path: Path, value: Any, indent: int | None) -> None:
    name, items, problems = read_text(tmp_path, json.dumps(value, indent=indent))
    assert (name, values(items), problems) == ("JSON", ROWS, {})


def test_rows_of_squad_keep_their_context(tmp_path: Path) -> None:
    _, items, _ = read_text(tmp_path, json.dumps({"version": "2", "data": SQUAD}))
    assert values(items) == [{"context": "c", **row} for row in ROWS]


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": "q"}]}, {"x": "y", "list": [1, 2]}]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_that_wraps_nothing_is_a_row(tmp_path: Path, row: Any, indent: int | None) -> None:
    assert values(read_text(tmp_path, json.dumps(row, indent=indent))[1]) == [row]


def test_splits_in_one_document_are_told_apart(tmp_path: Path) -> None:
    text = json.dumps({"train": ROWS, "test": [{"question": "t", "answer": "x"}], "extra": ROWS}, indent=1)
    _, items, problems = read_text(tmp_path, text)
    assert [(item.line, item.held_out) for item in items] == [(3, False), (7, False), (13, True)]
    path = tmp_path / "a.json"
    assert [item.held_out for item in read(path, split="test", validation="train")[1]] == [True, True, False]
    with pytest.raises(TuneError, match="no split or file none; it has train, test"):
        read(path, split="none")
    assert problems == {}


@pytest.mark.parametrize(
    "text",
    [
        f"{P}\n{Q}\n",
        f"{P}\r\n{Q}",
        f"{P}\r{Q}\r",
        f"\ufeff{P}\n\n# a remark\n{Q}\n",
        f"{P}\n{Q}".replace('", "', '",\t"'),
    ],
)
def test_json_lines_with_any_line_end(tmp_path: Path, text: str) -> None:
    name, items, problems = read_text(tmp_path, text, "a.jsonl")
    assert (name, values(items), problems) == ("JSONL", ROWS, {})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"{P},\n{Q},\n", "json-repaired"),
        (f"{P}{Q}\n", "several-on-a-line"),
        ("{'question': 'What?', 'answer': 'That.'}\n" + Q, "json-repaired"),
        (P[:-1] + ",}\n" + Q, "json-repaired"),
        (P[:-1] + " /* so */ }\n" + Q, "json-repaired"),
        (f"[{P}\n{Q}]", "json-repaired"),
        (f"[{P}, // first\n {Q},\n]", "json-repaired"),
        (f"[\n{P},\n{Q},\n", "cut-off"),
        (P[:-1] + ', "answer": "That."}\n' + Q, "duplicate-key"),
    ],
)
def test_what_was_meant_is_read_with_a_note(tmp_path: Path, text: str, kind: str) -> None:
    _, items, problems = read_text(tmp_path, text)
    assert values(items) == ROWS
    assert problems.keys() <= {kind}
    assert kind in problems or "// first" in text


@pytest.mark.parametrize("comment", ["# made on Monday\n", "// rows\n\n", "/* two\nlines */ "])
def test_a_list_may_begin_with_a_comment(tmp_path: Path, comment: str) -> None:
    name, items, problems = read_text(tmp_path, f"{comment}[\n{P},\n{Q}\n]", "a.json")
    assert (name, values(items), problems) == ("JSON", ROWS, {})


def test_raw_control_characters_and_no_numbers_are_noted(tmp_path: Path) -> None:
    _, items, problems = read_text(tmp_path, '{"question": "a\tb", "answer": NaN, "n": 1}\n' + P)
    assert values(items) == [{"question": "a\tb", "answer": None, "n": 1}, ROWS[0]]
    assert problems == {"json-repaired": (1,)}


def test_digits_are_never_lost(tmp_path: Path) -> None:
    row = '{"question": 123456789012345678901234567890, "answer": "x"}'
    for text in (f"{row}\n{P}", f"[{row}]"):
        assert read_text(tmp_path, text)[1][0].value["question"] == 123456789012345678901234567890


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"question": "q" "answer": 1}', "a comma is missing"),
        ('{"question": "he said "hi" now", "answer": 1}', "quote inside a text is not escaped"),
        ('{"question": nonsense here}', "without quotes"),
        ('{"question": "q", "answer": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"question": ' + "[" * 20_000 + "]" * 20_000 + "}", "nested"),
    ],
)
def test_a_broken_entry_costs_only_itself(tmp_path: Path, bad: str, why: str) -> None:
    forms = [
        ("\n".join((P, bad, Q)), 2),
        (f"[\n  {P},\n  {bad},\n  {Q}\n]", 3),
        (f"[{P},{bad},{Q}]", 1),
        (f'{{"data": [\n{P},\n{bad},\n{Q}\n]}}', 3),
    ]
    for text, line in forms:
        log = ProblemLog()
        path = tmp_path / "a.json"
        path.write_text(text)
        assert values(list(read_items(path, log, KNOWN).stream)) == ROWS
        (problem,) = log.problems()
        assert (problem.kind, problem.severity, problem.lines) == ("bad-line", "error", (line,))
        assert why in problem.text


def test_a_cut_off_list_keeps_what_came_before(tmp_path: Path) -> None:
    for text in (f"[{P},\n{Q},\n" + P[:30], f"[{P},\n{Q}\n", f'{{"data": [{P}, {Q}, {P[:12]}'):
        _, items, problems = read_text(tmp_path, text)
        assert values(items) == ROWS
        assert "cut-off" in problems


def test_values_larger_than_the_window_are_read_whole(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "é" * 400_000 + str(i)} for i in range(4)]
    for text in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=1), json.dumps({"x": rows})):
        assert values(read_text(tmp_path, text)[1]) == rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^"])
def test_tables_with_any_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = 'question,answer\r\n"a\r\nb ""c""","x,;y"\r\n\r\nNA,null\r\n'.replace(",", delimiter)
    _, items, problems = read_text(tmp_path, text, "a.csv")
    assert [(item.line, item.value) for item in items] == [
        (2, {"question": 'a\r\nb "c"', "answer": f"x{delimiter};y"}),
        (5, {"question": "NA", "answer": "null"}),
    ]
    assert problems == {}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sep=;\nquestion;answer\nq;a\n", [{"question": "q", "answer": "a"}]),
        ("# made on Monday\nquestion,answer\nq,a\n", [{"question": "q", "answer": "a"}]),
        ("#question\tanswer\nq\ta\n", [{"#question": "q", "answer": "a"}]),
        ('question, answer\n"q, r", "a"\n', [{"question": "q, r", "answer": "a"}]),
        ('question,answer\n"say \\"hi\\", you","a"\n', [{"question": 'say "hi", you', "answer": "a"}]),
        (
            "问题\t答案\n你好\t您好\n再见\t再见\n",
            [{"问题": "你好", "答案": "您好"}, {"问题": "再见", "答案": "再见"}],
        ),
        ("question,answer,\nq,a,\n", [{"question": "q", "answer": "a", "column 3": ""}]),
        ("text\nonly one\ncolumn\n", [{"text": "only one"}, {"text": "column"}]),
        ("question,answer\nq\n", [{"question": "q", "answer": ""}]),
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, text: str, rows: list[dict[str, str]]) -> None:
    _, items, problems = read_text(tmp_path, text, "a.csv")
    assert (values(items), problems) == (rows, {})


@pytest.mark.parametrize("name", ["lfd. Nr.", "Order No."])
def test_a_word_above_figures_is_a_name_though_it_ends_like_a_sentence(tmp_path: Path, name: str) -> None:
    text = f"{name};Day;Customer;\n1;01.02.2025;Two teas, please.;\n2;02.02.2025;A cake.;\n"
    _, items, problems = read_text(tmp_path, text, "a.csv")
    assert list(items[0].value)[:3] == [name, "Day", "Customer"]
    assert (len(items), "no-header" in problems) == (2, False)


def test_a_table_without_names_says_so_and_loses_no_row(tmp_path: Path) -> None:
    text = "How do I reset my password?,Use the link.\nWhere is it?,In the menu.\n"
    _, items, problems = read_text(tmp_path, text, "a.csv")
    assert items[0].value == {"column 1": "How do I reset my password?", "column 2": "Use the link."}
    assert (len(items), problems) == (2, {"no-header": (1,)})
    _, items, problems = read_text(tmp_path, "good\tpositive\nbad\tnegative\nfine\tpositive\n", "a.txt")
    assert (len(items), problems) == (3, {"no-header": (1,)})


def test_a_lost_quote_costs_the_line_that_opened_it(tmp_path: Path) -> None:
    for lost in ('q2,"a2', '"q2,a2', 'q2,"a"2'):
        text = f"question,answer\nq1,a1\n{lost}\nq3,a3\n" + 'q4,"a4"\n' + "q5,a5\n" * 3
        _, items, problems = read_text(tmp_path, text, "a.csv")
        assert [item.value["question"] for item in items] == ["q1", "q3", "q4", *["q5"] * 3]
        assert [item.line for item in items] == [2, 4, 5, 6, 7, 8]
        assert list(problems.values()) == [(3,)]


def test_a_column_named_twice_gets_a_number(tmp_path: Path) -> None:
    _, items, problems = read_text(tmp_path, "question,answer,answer\nq,a,b\n", "a.csv")
    assert values(items) == [{"question": "q", "answer": "a", "answer (3)": "b"}]
    assert "double-column" in problems


def test_plain_text_gives_a_row_for_every_paragraph(tmp_path: Path) -> None:
    text = "Once upon a time, there was,\na king, and he\n\n\nlived. Long.\n\n" + "Word after word. " * 500
    name, items, _ = read_text(tmp_path, text, "a.txt")
    assert name == "plain text"
    assert [(item.line, len(item.value["text"])) for item in items[:2]] == [(1, 43), (5, 12)]
    assert " ".join(item.value["text"] for item in items[2:]).strip() == ("Word after word. " * 500).strip()
    lines, _ = read_text(tmp_path, "".join(f"Sentence number {i}.\n" for i in range(500)), "a.txt")[1:]
    assert 4 < len(lines) < 10


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Human: hi\n\nAssistant: hello\n\nthere\n\nHuman: bye\n\nAssistant: ok\n", 2),
        ("### Instruction:\nDo\n\n### Response:\nDone\n\n### Instruction:\nGo\n\n### Response:\nGone\n", 2),
        ("<|im_start|>system\na\n\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n", 1),
        ("User: a\n\nBot: b\n\nUser: c\n\nBot: d\n---\nUser: e\n\nBot: f\n", 2),
    ],
)
def test_text_with_marks_of_speakers_is_cut_between_conversations(
    tmp_path: Path, text: str, count: int
) -> None:
    _, items, _ = read_text(tmp_path, text, "a.txt")
    assert len(items) == count


@pytest.mark.parametrize("packing", ["gzip", "bz2", "xz", "zstd", "lz4"])
def test_packed_files_are_read_as_if_they_were_not(tmp_path: Path, packing: str) -> None:
    draw = Random(7)  # LZ4 has no sum to check: whether damage shows depends on where it falls
    rows = [{"question": f"q{i}", "answer": draw.randbytes(40).hex()} for i in range(3000)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    content = packed(text, packing)
    name, items, problems = read_text(tmp_path, content, "a.bin")
    assert (name, values(items), problems) == (f"JSONL, {packing}", rows, {})
    damaged = content[:40_000] + bytes(100) + content[40_100:]
    for broken in (content[: len(content) // 2], damaged):
        with pytest.raises(TuneError, match="damaged or cut off"):
            read_text(tmp_path, broken, "a.bin")


SENTENCES = {
    "gb18030": ["机器学习是什么？", "它使计算机能够从数据中学习。"],
    "cp950": ["請問退款需要多久？", "一般需要三到五個工作天，謝謝。"],
    "cp932": ["返金はできますか？", "三十日以内でしたら可能です。"],
    "euc_jp": ["注文はいつ発送されますか", "通常は二営業日以内です。"],
    "iso2022_jp": ["東京の人口は？", "約千四百万人です。"],
    "cp949": ["환불 받을 수 있나요?", "네, 삼십 일 이내에 가능합니다."],
    "cp1251": ["Можно ли вернуть деньги?", "Да, в течение тридцати дней."],
    "koi8_r": ["Можно ли вернуть деньги?", "Да, в течение тридцати дней."],
    "cp1252": ["Où est le café ?", "À côté de la gare, même l'été."],
    "cp1250": ["Gdzie leży Łódź?", "W środkowej części Polski, proszę."],
    "cp1253": ["Πώς αλλάζω τον κωδικό;", "Πατήστε στο κουμπί."],
    "cp1254": ["Şifremi nasıl sıfırlarım?", "Giriş sayfasında bağlantıya tıklayın."],
    "utf-8": ["Où est 东京?", "Здесь 한국어."],
    "utf-16": ["Où est 东京?", "Здесь 한국어."],
    "utf-16-le": ["你好吗", "我很好"],
    "utf-16-be": ["Où est le café", "ici"],
    "utf-32": ["Où est 东京?", "x"],
    "utf-32-be": ["Où est le café", "ici"],
}


@pytest.mark.parametrize("codec", SENTENCES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_encodings_are_told_from_one_short_row(tmp_path: Path, codec: str, name: str) -> None:
    question, answer = SENTENCES[codec]
    row = {"question": question, "answer": answer}
    text = {
        "a.jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "a.json": json.dumps([row], ensure_ascii=False, indent=2),
        "a.csv": f'question,answer\n"{question}","{answer}"\n',
    }[name]
    _, items, problems = read_text(tmp_path, text.encode(codec), name)
    assert values(items) == [row]
    assert problems.keys() == (set() if codec.startswith("utf") else {"encoding"})


def test_a_head_that_ends_within_a_character_is_still_utf8() -> None:
    assert encoding_of("号".encode() * 100 + b"\xe5", whole=False) == "utf-8"


def test_bad_bytes_cost_a_warning_and_never_the_line(tmp_path: Path) -> None:
    good = json.dumps({"question": "Où " * 3, "answer": "été 东京"}, ensure_ascii=False).encode()
    one_bad = good.replace("京".encode(), b"\xe4\xba")
    foreign = '{"question": "Où", "answer": "ça"}'.encode("cp1252")
    path, log = tmp_path / "a.jsonl", ProblemLog()
    path.write_bytes(b"\n".join([good] * 3 + [one_bad, foreign]))
    items = list(read_items(path, log, KNOWN).stream)
    assert items[3].value["answer"] == "été 东\ufffd"
    assert items[4].value == {"question": "Où", "answer": "ça"}
    assert sorted((problem.kind, problem.lines) for problem in log.problems()) == [
        ("encoding-line", (4,)),
        ("encoding-line", (5,)),
    ]


def test_an_extension_that_lies_is_only_noted(tmp_path: Path) -> None:
    for name, text in (("a.csv", f"{P}\n{Q}\n"), ("a.jsonl", f"[{P},\n{Q}]"), ("a.parquet", f"{P}\n{Q}\n")):
        _, items, problems = read_text(tmp_path, text, name)
        assert (values(items), problems.keys()) == (ROWS, {"extension"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': \"it's\", u'b': (1, None), }", {"a": "it's", "b": [1, None]}),
        ("{a: 1, $b: undefined}", {"a": 1, "$b": None}),
        (r"'\x41\u00e9\U0001F600\ud83d\ude00'", "Aé😀😀"),
        ("[array(['x', 'y'], dtype=object), {'r': 1}\n {'r': 2}]", [["x", "y"], {"r": 1}, {"r": 2}]),
        ("[1, // one\n 2, /* two */ .5, +1e3,]", [1, 2, 0.5, 1000.0]),
    ],
)
def test_what_was_meant_to_be_json(text: str, value: Any) -> None:
    assert parse(text)[:2] == (value, len(text))


@pytest.mark.parametrize(
    "text", ["{'a': __import__('os')}", "{'a': 1 + 1}", "[" * 500, "{'a' 1}", "'a", "{1: 2", ""]
)
def test_what_is_no_value_is_refused_and_nothing_evaluated(text: str) -> None:
    with pytest.raises(Broken):
        parse(text)
