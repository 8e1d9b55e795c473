from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.files import folder
from ollama_tune.core.data.load import load_dataset, peek
from ollama_tune.core.data.rows import scan
from ollama_tune.core.data.values import DatasetProfile, Message, Reading
from ollama_tune.core.errors import TuneError

PAIR = {"question": "What?", "answer": "That."}


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def texts(profile: DatasetProfile) -> list[list[str]]:
    return [[message.content for message in row.messages] for row in profile.rows]


def problem_counts(profile: DatasetProfile) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for problem in profile.problems:
        counts[problem.kind] += problem.count
    del counts["few-rows"]
    return dict(counts)


def test_the_bundled_data_set_loads_without_any_problem() -> None:
    profile = load_dataset("bundled")
    assert profile.usable == profile.total >= 200
    assert profile.problems == ()
    assert all(row.messages[-1].role == "assistant" for row in profile.rows)


def test_jsonl_keeps_line_numbers_and_a_bad_line_costs_only_itself(tmp_path: Path) -> None:
    content = lines(PAIR, {"question": "q2", "answer": "a2"}).replace("\n", "\n\n{bad\n", 1) + '"text"\n12\n'
    profile = load_dataset(write(tmp_path, "a.jsonl", content))
    assert [(row.line, row.answer) for row in profile.rows] == [(1, "That."), (4, "a2")]
    assert (profile.format, profile.encoding, profile.total) == ("JSONL", "UTF-8", 5)
    bad, other = (p for p in profile.problems if p.severity == "error")
    assert (other.kind, other.lines) == ("bad-line", (3,))
    assert (bad.kind, bad.count, bad.lines) == ("not-a-record", 2, (5, 6))


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_lines_end_as_old_and_new_programs_write_them(tmp_path: Path, ending: str) -> None:
    rows = [{"question": f"q{i}\u2028\x85", "answer": "a\r\n\tb"} for i in range(3)]
    text = ending.join(json.dumps(row, ensure_ascii=False) for row in rows)
    profile = load_dataset(write(tmp_path, "a.jsonl", text))
    assert [(row.line, row.messages[0].content) for row in profile.rows] == [
        (i + 1, f"q{i}\u2028\x85") for i in range(3)
    ]


@pytest.mark.parametrize(
    ("codec", "shown"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8 with BOM"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32", "UTF-32"),
        ("cp1252", "Windows-1252"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_encodings(tmp_path: Path, codec: str, shown: str, name: str) -> None:
    row = {"question": "Où est le café ?", "answer": "À côté."}
    text = {
        "a.jsonl": lines(row, PAIR),
        "a.json": json.dumps([row, PAIR], ensure_ascii=False, indent=1),
        "a.csv": "question;answer\nOù est le café ?;À côté.\nWhat?;That.\n",
    }[name]
    profile = load_dataset(write(tmp_path, name, text.encode(codec)))
    assert texts(profile) == [["Où est le café ?", "À côté."], ["What?", "That."]]
    assert profile.encoding == shown
    assert problem_counts(profile) == ({"encoding": 1} if codec == "cp1252" else {})


def test_one_line_in_another_encoding_is_read_and_named(tmp_path: Path) -> None:
    good = lines(*({"question": f"Où {i}", "answer": "é"} for i in range(5))).encode()
    bad = '{"question": "Où", "answer": "ça"}\n'.encode("cp1252")
    profile = load_dataset(write(tmp_path, "a.jsonl", good + bad))
    assert texts(profile)[-1] == ["Où", "ça"]
    assert [(p.kind, p.lines) for p in profile.problems if p.kind != "few-rows"] == [("encoding-line", (6,))]


@pytest.mark.parametrize(
    "value",
    [
        [PAIR, {"question": "q2", "answer": "a2"}],
        {"version": 1, "data": [PAIR, {"question": "q2", "answer": "a2"}]},
        {"train": [PAIR, {"question": "q2", "answer": "a2"}]},
        {"question": ["What?", "q2"], "answer": ["That.", "a2"]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_every_wrapping(tmp_path: Path, value: Any, indent: int | None) -> None:
    profile = load_dataset(write(tmp_path, "a.json", json.dumps(value, indent=indent)))
    assert texts(profile) == [["What?", "That."], ["q2", "a2"]]
    assert profile.format == "JSON"


def test_json_objects_one_after_another_and_a_single_one(tmp_path: Path) -> None:
    several = json.dumps(PAIR, indent=1) + "\n" + json.dumps({"question": "q", "answer": "a"}, indent=1)
    profile = load_dataset(write(tmp_path, "a.json", several))
    assert [row.line for row in profile.rows] == [1, 5]
    single = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert texts(load_dataset(write(tmp_path, "b.json", json.dumps(single)))) == [["q", "a"]]


def test_json_array_rows_know_their_line(tmp_path: Path) -> None:
    text = '[\n{"question": "q1",\n "answer": "a1"},\n\n{"question": "q2", "answer": "a2"}]'
    assert [row.line for row in load_dataset(write(tmp_path, "a.json", text)).rows] == [2, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"question": "q" "answer": 1}]', r"a comma is missing.* .first in line 1"),
        ('{\n"question": nonsense}', r"a text without quotes .first in line 2"),
        ("[" * 100_000, r"nested too deep .first in line 1"),
        ('[{"question": "q", "answer": ' + "9" * 5000 + "}]", r"thousands of digits .first in line 1"),
    ],
    ids=["comma", "quotes", "deep", "digits"],
)
def test_broken_json_says_why_and_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TuneError, match=f"None of the 1 rows .* not valid JSON: .*{said}"):
        load_dataset(write(tmp_path, "a.json", text))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_with_any_delimiter_quotes_and_line_breaks(tmp_path: Path, delimiter: str) -> None:
    rows = ["question,answer", '"a, b; c|d\te","two\nlines ""quoted"""', "", "NA,null", "q,a"]
    text = "\r\n".join(row if row.startswith('"') else row.replace(",", delimiter) for row in rows)
    text = text.replace('e","two', f'e"{delimiter}"two')
    profile = load_dataset(write(tmp_path, "a.csv", text))
    assert texts(profile) == [["a, b; c|d\te", 'two\nlines "quoted"'], ["NA", "null"], ["q", "a"]]
    assert [row.line for row in profile.rows] == [2, 5, 6]


def test_csv_lines_that_do_not_fit_cost_only_themselves(tmp_path: Path) -> None:
    text = 'question,answer\nq1,a1\nq2,a2,too,many\nq3,a"3\nq4,"a"4\nq5\nq6,a6\n'
    profile = load_dataset(write(tmp_path, "a.csv", text))
    assert texts(profile) == [["q1", "a1"], ["q3", 'a"3'], ["q6", "a6"]]
    assert problem_counts(profile) == {"bad-line": 2, "no-answer": 1}
    assert profile.total == 6


def test_a_quote_that_never_closes_names_the_line_that_opened_it(tmp_path: Path) -> None:
    profile = load_dataset(write(tmp_path, "a.csv", 'question,answer\nq1,a1\nq2,"a2\nq3,a3\nq4,a4\n'))
    problem = profile.problems[0]
    assert (problem.kind, problem.severity, problem.lines) == ("open-quote", "error", (3,))
    assert texts(profile) == [["q1", "a1"], ["q3", "a3"], ["q4", "a4"]]


def test_a_long_csv_cell_is_read_whole(tmp_path: Path) -> None:
    profile = load_dataset(write(tmp_path, "a.csv", "question,answer\nq," + "x" * 400_000 + "\n"))
    assert len(profile.rows[0].answer) == 400_000


def test_messages_in_a_csv_cell_are_decoded(tmp_path: Path) -> None:
    cell = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    quoted = cell.replace('"', '""')
    profile = load_dataset(write(tmp_path, "a.csv", f'id,messages\n1,"{quoted}"\n'))
    assert texts(profile) == [["q", "a"]]


def test_parquet_with_nested_messages(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(600)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"messages": turns}), path)
    profile = load_dataset(str(path))
    assert (profile.format, profile.usable, profile.rows[-1].line) == ("Parquet", 600, 600)
    assert profile.rows[599].messages == (Message("user", "q599"), Message("assistant", "a"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TuneError, match="damaged or cut off"):
        load_dataset(str(path))


def test_gzip_is_unpacked_and_a_damaged_one_refused(tmp_path: Path) -> None:
    packed = gzip.compress(
        lines(*({"question": f"q{i}", "answer": os.urandom(40).hex()} for i in range(5000))).encode()
    )
    profile = load_dataset(write(tmp_path, "a.jsonl.gz", packed))
    assert (profile.format, profile.usable) == ("JSONL, gzip", 5000)
    for broken in (packed[:-2000], packed[:200_000] + bytes(50) + packed[200_050:], b"\x1f\x8b\x08nonsense"):
        with pytest.raises(TuneError, match=r"damaged or cut off|cannot be read"):
            load_dataset(write(tmp_path, "b.jsonl.gz", broken))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \r\n\t", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf\n", "is empty"),
        ("a.csv", b"question,answer\n", "holds no row"),
        ("a.json", b"[]", "holds no row"),
        ("a.jsonl", b"\x7fELF\x02\x01", "is a program"),
        ("a.json", b"%PDF-1.7 ...", "is a PDF document"),
        ("a.xlsx", b"PK\x03\x04....", "ZIP archive or office document"),
        ("a.json", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.bin", bytes(range(256)) * 8, "is a binary file"),
        ("a.parquet", b"PAR1 nonsense", "damaged or cut off"),
        ("a.csv", b"only one column\nx\n", "columns of a.csv are not known: only one column"),
        ("a.jsonl", b"{bad\n{worse\n", "None of the 2 rows .* ends in the middle .first in line 1"),
        ("a.jsonl", b'{"question": "q", "answer": ""}\n', "None of the 1 rows .* no answer .first in line 1"),
    ],
)
def test_a_file_that_is_no_data_is_refused_in_words(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(TuneError, match=said) as caught:
        load_dataset(write(tmp_path, name, content))
    assert caught.value.fix.endswith(".")


def test_unknown_columns_name_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(TuneError) as caught:
        load_dataset(write(tmp_path, "a.jsonl", lines({"Text\x1b[2J": "x", "Label": 1})))
    assert "Text␛[2J, Label" in caught.value.what
    assert "question + answer" in caught.value.fix


def test_a_missing_file_a_folder_a_pipe_and_a_locked_file(tmp_path: Path) -> None:
    write(tmp_path, "rows.csv", "question,answer\nq,a\n")
    with pytest.raises(TuneError, match="There is no file"):
        load_dataset(str(tmp_path / "none.jsonl"))
    assert load_dataset(str(tmp_path)).usable == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(TuneError, match="is a folder without a file of examples"):
        load_dataset(str(tmp_path / "empty"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TuneError, match="device or pipe"):
        load_dataset(str(tmp_path / "pipe"))
    with pytest.raises(TuneError, match="No data file"):
        load_dataset(" ")
    with pytest.raises(TuneError, match="cannot be read"):
        load_dataset("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", lines(PAIR))
    Path(path).chmod(0)
    with pytest.raises(TuneError, match="Permission denied"):
        load_dataset(path)


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "a.jsonl", lines(PAIR))
    assert load_dataset("~/a.jsonl").usable == 1


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    other = {"question": "And now?", "answer": "Else."}
    profile = load_dataset(write(tmp_path, "a.jsonl", lines(PAIR, other, PAIR, PAIR)))
    assert [row.line for row in profile.rows] == [1, 2]
    assert problem_counts(profile) == {"duplicate": 2}
    assert (profile.total, profile.usable) == (4, 2)


@pytest.mark.parametrize(("count", "said"), [(9, "hardly learn"), (10, "style"), (99, "style"), (100, None)])
def test_few_rows_are_warned_about(tmp_path: Path, count: int, said: str | None) -> None:
    rows = [{"question": f"Number {i}?", "answer": f"It is {i * i}."} for i in range(count)]
    problems = load_dataset(write(tmp_path, "a.jsonl", lines(*rows))).problems
    assert [said in problem.text for problem in problems] == [True] if said else problems == ()


def test_rows_left_out_by_choice_count_as_gone(tmp_path: Path) -> None:
    rows = [{"question": f"Number {i}?", "answer": f"It is {i * i}."} for i in range(10)]
    rows[3]["answer"] = "Call +49 30 901820."
    path = write(tmp_path, "a.jsonl", lines(*rows))
    assert "style" in load_dataset(path).problems[-1].text + load_dataset(path).problems[0].text
    fewer = load_dataset(path, Reading(exclude=("contact",)))
    assert (fewer.total, fewer.usable) == (10, 9)
    assert any("hardly learn" in problem.text for problem in fewer.problems)


def test_progress_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "NEWS_EVERY", 0.0)
    rows = [{"question": f"Number {i}?", "answer": f"It is {i * i}."} for i in range(300)]
    path = write(tmp_path, "a.jsonl", lines(*rows))
    told: list[tuple[int, int]] = []
    load_dataset(path, progress=lambda done, total: told.append((done, total)))
    size = Path(path).stat().st_size
    assert [done for done, _ in told] == [size * 64 * n // 300 for n in range(1, 5)]
    assert {total for _, total in told} == {size}


def test_a_class_set_that_only_all_rows_disprove_costs_a_second_reading(tmp_path: Path) -> None:
    """Some 500 rows show a dozen names; in all there are more than a class set may have."""
    texts = [{"text": f"Sentence number {i} about things.", "label": f"name {i % 4}"} for i in range(3000)]
    path = write(tmp_path, "a.jsonl", lines(*texts))
    assert load_dataset(path).labels == ("name 0", "name 1", "name 2", "name 3")
    for i in range(0, 3000, 50):
        texts[i]["label"] = f"rare {i}"
    profile = load_dataset(write(tmp_path, "b.jsonl", lines(*texts)))
    assert (profile.labels, profile.usable, profile.total) == ((), 3000, 3000)
    assert {message.role for row in profile.rows for message in row.messages} == {"user", "assistant"}


def test_which_of_several_parts_is_learned_is_asked(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write(tmp_path, f"{name}.jsonl", lines(PAIR, {"question": name, "answer": "It is."}))
    assert load_dataset(str(tmp_path)).questions == ()
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    write(fetched, "easy.jsonl", lines(PAIR))
    write(fetched, "hard.jsonl", lines({"question": "Why?", "answer": "So."}))
    splits = {"easy": ["easy.jsonl"], "hard": ["hard.jsonl"]}
    path = str(fetched)
    write(fetched, folder.MAP, json.dumps({"splits": splits, "notes": [], "subsets": []}))
    for profile in (peek(path), load_dataset(path)):
        (question,) = profile.questions
        assert (question.kind, [option.label for option in question.options]) == ("split", ["easy", "hard"])
        assert texts(profile) == [["What?", "That."]]
    hard = load_dataset(path, question.options[1].reading)
    assert texts(hard) == [["Why?", "So."]]
    assert [option.label for option in hard.questions[0].options] == ["hard", "easy"]
