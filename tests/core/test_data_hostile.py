"""Files made to break a reader: each is survived, with its rows or with a sentence."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.files import compression, csv_items, json_window, source
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.read import read_items
from ollama_tune.core.data.files.sample import sample_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.detect import KNOWN
from ollama_tune.core.errors import TuneError
from tests.core.packers import packed

PAIR = {"question": "q", "answer": "a"}
P = json.dumps(PAIR)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def read(path: Path) -> tuple[list[Item], set[str]]:
    log = ProblemLog()
    items = list(read_items(path, log, KNOWN).stream)
    return items, {problem.kind for problem in log.problems()}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_single_line_of_twenty_megabytes(tmp_path: Path, name: str) -> None:
    long = "word " * 4_000_000
    text = {
        "a.jsonl": f'{P}\n{{"question": "q", "answer": "{long}"}}\n{P}\n',
        "a.json": f'[{P},{{"question": "q", "answer": "{long}"}},{P}]',
        "a.csv": f"question,answer\nq,a\nq,{long}\nq,a\n",
        "a.txt": long,
    }[name]
    items, problems = read(write(tmp_path, name, text))
    if name == "a.csv":
        assert (len(items), problems) == (2, {"bad-line"})
    elif name == "a.txt":
        assert sum(len(item.value["text"]) for item in items) > 19_000_000
    else:
        assert [len(item.value["answer"]) for item in items] == [1, len(long), 1]
    assert len(sample_items(tmp_path / name, 5).first) >= 2


def test_a_line_longer_than_the_memory_allows_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LONGEST_LINE", 300_000)
    monkeypatch.setattr(json_window, "LONGEST", 300_000)
    monkeypatch.setattr(csv_items, "LONGEST_CELL", 300_000)
    long = "x" * 3_000_000
    for name, text in (
        ("a.jsonl", f'{P}\n{{"question": "{long}"}}\n{P}\n'),
        ("b.csv", f'question,answer\nq,a\nq,"{long}"\nq,a\n'),
        ("c.json", f'[\n{P},\n{{"question": "{long}"}},\n{P}\n]'),
    ):
        items, problems = read(write(tmp_path, name, text))
        assert [item.value for item in items] == [PAIR, PAIR]
        assert problems == {"bad-line"}
    assert [item.line for item in read(tmp_path / "a.jsonl")[0]] == [1, 3]


@pytest.mark.parametrize("opening", ["[", '{"a":', "[{'a':(", '{"question": {"a":[', "-", "[[[[\n"])
def test_ten_thousand_brackets_deep(tmp_path: Path, opening: str) -> None:
    deep = opening * 10_000
    for text in (deep, f"{P}\n{deep}\n{P}\n", f"[{P},\n{deep},\n{P}\n]", f'{{"question": {deep}'):
        path = write(tmp_path, "a.json", text)
        items, problems = read(path)
        assert all(
            item.value == PAIR for item in items if isinstance(item.value, dict) and "answer" in item.value
        )
        assert problems & {"bad-line", "cut-off", "gave-up"} or text == deep
        sample_items(path, 5)


@pytest.mark.parametrize("packing", ["gzip", "bz2", "xz", "zstd"])
def test_a_bomb_is_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    monkeypatch.setattr(compression, "FREE", 2**20)
    inside = P.encode() + b"\n" + b" " * 2**23
    content = packed(inside, packing)
    assert len(content) * compression.DENSEST < len(inside)
    with pytest.raises(TuneError, match=r"unpacks to more than .* as no data set does"):
        read(write(tmp_path, "a.jsonl.gz", content))
    monkeypatch.setattr(compression, "DENSEST", 10**9)
    monkeypatch.setattr(compression, "MOST", 2**22)
    with pytest.raises(TuneError, match="unpacks to more than"):
        read(tmp_path / "a.jsonl.gz")


def test_devices_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    import socket

    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(TuneError, match="is a device or pipe"):
                read(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TuneError, match="cannot be read: Too many levels of symbolic links"):
        read(tmp_path / "loop")


def test_a_file_that_grows_while_it_is_read_ends_where_it_ended(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", (P + "\n") * 30_000)
    log = ProblemLog()
    count = 0
    with path.open("a") as more:
        for item in read_items(path, log, KNOWN).stream:
            count += 1
            assert item.value == PAIR
            more.write(P + "\n")
            more.flush()
    assert count == 30_000
    assert [problem.kind for problem in log.problems()] == ["file-grew"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_a_file_that_is_cut_while_it_is_read_ends_in_a_sentence(tmp_path: Path, name: str) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    rows = [{"question": f"q{i}", "answer": os.urandom(100).hex()} for i in range(10_000)]
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
    elif name == "a.arrow":
        with ipc.new_file(path, pyarrow.Table.from_pylist(rows[:1]).schema) as stream:
            stream.write_table(pyarrow.Table.from_pylist(rows), max_chunksize=500)
    else:
        csv = "question,answer\n" + "".join(",".join(row.values()) + "\n" for row in rows)
        texts = {"a.jsonl": lines, "a.json": json.dumps(rows), "a.csv": csv}
        write(tmp_path, name, texts.get(name) or gzip.compress(lines.encode()))
    log, seen = ProblemLog(), []
    try:
        for item in read_items(path, log, KNOWN).stream:
            seen.append(item.value)
            if len(seen) == 100:
                os.truncate(path, path.stat().st_size // 2)
    except TuneError as error:
        assert "damaged or cut off" in error.what
    else:
        assert {problem.kind for problem in log.problems()} & {"file-shrank", "cut-off"}
    assert 100 <= len(seen) < 10_000
    assert seen[:-1] == rows[: len(seen) - 1]


def test_signs_that_play_with_the_terminal_stay_data_and_leave_no_mark_in_messages(tmp_path: Path) -> None:
    nasty = "\x1b[2J\u202e[/red]\x00\u200f" + chr(0xD800)
    row = {"question\x1b[31m": nasty, "answer": nasty}
    items, _ = read(write(tmp_path, "a.jsonl", json.dumps(row) + "\n" + P))
    assert items[0].value == row
    named = tmp_path / "bad\x1b[2J\u202ename.jsonl"
    write(tmp_path, named.name, "")
    with pytest.raises(TuneError) as caught:
        read(named)
    assert "bad␛[2J<U+202E>name.jsonl" in caught.value.what
    broken = os.fsdecode(b"half\xff.bin")
    write(tmp_path, broken, b"\x00\x01\x02" * 50)
    with pytest.raises(TuneError) as caught:
        read(tmp_path / broken)
    caught.value.what.encode()


def test_nul_characters_in_a_text_are_data(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", "question,answer\nq\0q,a\n" + "q,a\n" * 20))[0][1].value == PAIR
    items, problems = read(write(tmp_path, "a.jsonl", '{"question": "q\0", "answer": "a"}\n' + P + "\n" + P))
    assert ([item.value["question"] for item in items], problems) == (["q\0", "q", "q"], {"json-repaired"})


def test_a_number_of_a_million_digits_costs_its_row(tmp_path: Path) -> None:
    bad = '{"question": ' + "9" * 1_000_000 + "}"
    for text in (f"{P}\n{bad}\n{P}\n", f"[\n{P},\n{bad},\n{P}\n]"):
        items, problems = read(write(tmp_path, "a.json", text))
        assert ([item.value for item in items], problems) == ([PAIR, PAIR], {"bad-line"})


def test_a_table_with_a_hundred_thousand_columns(tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(100_000))
    row = ",".join(str(i) for i in range(100_000))
    items, _ = read(write(tmp_path, "a.csv", f"{header}\n{row}\n{row}\n{row},1\n"))
    assert [len(item.value) for item in items] == [100_000, 100_000]


def test_quotes_that_never_close_cost_linear_time(tmp_path: Path) -> None:
    text = "question,answer\n" + 'q,"a\n' * 20_000
    items, problems = read(write(tmp_path, "a.csv", text))
    assert problems == {"open-quote"}
    assert len(items) < 20_000


def test_thousands_of_broken_entries_are_given_up(tmp_path: Path) -> None:
    text = "[\n" + '{"a" 1},\n' * 5000 + P + "]"
    items, problems = read(write(tmp_path, "a.json", text))
    assert (items, problems) == ([], {"bad-line", "gave-up", "cut-off"})


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_damaged_tables_end_in_a_sentence(tmp_path: Path, form: str) -> None:
    import random

    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"question": ["q"] * 500, "answer": [[{"a": str(i)}] for i in range(500)]})
    path = tmp_path / "good"
    if form == "parquet":
        parquet.write_table(table, path)
    else:
        with (ipc.new_file if form == "file" else ipc.new_stream)(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        start = rng.randrange(8, len(good))
        bad = good[:start] + rng.randbytes(rng.randrange(1, 64)) + good[start + rng.randrange(64) :]
        try:
            items, _ = read(write(tmp_path, "bad", bad))
        except TuneError as error:
            assert error.fix.endswith(".")
        else:
            assert len(items) <= 500


def test_keys_that_are_no_text_and_names_of_columns_that_come_twice(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    items, _ = read(write(tmp_path, "a.jsonl", "{1: 'q', None: 'a', (2): 3}\n{1: 'q', null: 'a'}\n"))
    assert [set(item.value) for item in items] == [{"1", "null"}]
    columns = [pyarrow.array(["q"]), pyarrow.array(["a"])]
    parquet.write_table(pyarrow.table(columns, names=["answer", "answer"]), tmp_path / "a.parquet")
    try:
        assert read(tmp_path / "a.parquet")[0][0].value == {"answer": "a"}
    except TuneError as error:
        assert "damaged" in error.what


def test_a_card_of_references_to_references_costs_nothing(tmp_path: Path) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    card = f"---\na0: &a0 [x]\n{levels}\nconfigs: *a8\n---\n"
    (tmp_path / "README.md").write_text(card)
    write(tmp_path, "a.jsonl", P)
    assert [item.value for item in read(tmp_path)[0]] == [PAIR]


def test_a_map_of_splits_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(tmp_path, "secret.jsonl", json.dumps({"question": "secret", "answer": "x"}))
    write(folder, "a.jsonl", P)
    splits: dict[str, Any] = {"splits": {"train": ["../secret.jsonl", "/etc/passwd", "a.jsonl"]}}
    write(folder, "ollama-tune-splits.json", json.dumps(splits))
    assert [item.value for item in read(folder)[0]] == [PAIR]
