"""Arrow files, saved data sets, folders and their cards, and what a sample says of a large file."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from ollama_tune.core.data.files.sample import sample_items
from ollama_tune.core.data.schemas.detect import KNOWN
from ollama_tune.core.errors import TuneError
from tests.core.test_data_read import ROWS, P, Q, read, values


def test_tables_of_arrow_in_every_form(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow
    from pyarrow import feather, ipc, parquet

    table = pyarrow.table(
        {
            "messages": [[{"role": "user", "content": "q"}], [], None],
            "day": [datetime.date(2024, 1, 2), None, datetime.date(2024, 1, 3)],
            "price": [decimal.Decimal("1.50"), None, decimal.Decimal("2.00")],
            "bytes": [b"text", b"\xff\xfe", None],
            "map": pyarrow.array([[("a", 1)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "when": pyarrow.array([1, 2, 3], pyarrow.timestamp("ns")),
            "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "image": [{"bytes": b"\x89PNG", "path": "a"}] * 3,
            "nested": [{"at": datetime.time(1, 2), "n": 1.5}] * 3,
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, tmp_path / "b.feather")
    with ipc.new_stream(tmp_path / "c.arrow", table.schema) as stream:
        stream.write_table(table)
    for name, shown in (("a.parquet", "Parquet"), ("b.feather", "Arrow"), ("c.arrow", "Arrow stream")):
        found, items, _ = read(tmp_path / name)
        assert (found, len(items)) == (shown, 3)
        row = items[0].value
        assert (row["messages"], row["day"], row["price"]) == (
            [{"role": "user", "content": "q"}],
            "2024-01-02",
            "1.50",
        )
        assert (row["bytes"], items[1].value["bytes"], row["kind"]) == ("text", None, "x")
        assert "image" not in row
        assert row["nested"]["n"] == 1.5
        json.dumps([item.value for item in items])


def test_what_datasets_saves_is_read_with_its_splits(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    name, items, _ = read(tmp_path / "saved")
    assert name == "Arrow stream (2 files)"
    assert [item.value for item in items if not item.held_out] == ROWS
    assert [(item.line, item.file.split("/")[0]) for item in items if item.held_out] == [
        (1, "test"),
        (2, "test"),
    ]


def test_a_folder_is_read_in_order_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.csv").write_text("question,answer\nq2,a2\n")
    (folder / "a.jsonl").write_text(P + "\n")
    (folder / "deep" / "dev-1.jsonl").write_text(Q + "\n")
    (folder / "c.jsonl").write_bytes(b"")
    (folder / ".hidden.jsonl").write_text(P)
    (folder / "notes.md").write_text("hello")
    (folder / "README.txt").write_text("hello")
    (folder / "deep" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jsonl")
    name, items, problems = read(folder)
    assert name == "JSONL (4 files)"
    assert [(item.file, item.value["question"], item.held_out) for item in items] == [
        ("a.jsonl", "What?", False),
        ("b.csv", "q2", False),
        ("deep/dev-1.jsonl", "q2", True),
    ]
    assert {"other-files", "bad-file", "formats"} <= problems.keys()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TuneError, match="folder without a file of examples"):
        read(empty)


def test_the_card_of_a_cloned_data_set_tells_its_splits(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: x*.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "x1.jsonl").write_text(P)
    (tmp_path / "y.jsonl").write_text(Q)
    assert values(read(tmp_path)[1]) == ROWS[:1]


def spread(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"q{i}", "answer": "word " * (i * 7919 % 61 + 1) + f"\nend {i}"} for i in range(count)
    ]


@pytest.mark.parametrize(
    "form", ["a.jsonl", "a.json", "indent.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"]
)
def test_a_sample_is_uniform_and_the_estimate_within_two_percent(tmp_path: Path, form: str) -> None:
    import csv

    import pyarrow
    from pyarrow import ipc, parquet

    rows, path = spread(30_000), tmp_path / form
    if form == "a.csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *(row.values() for row in rows)])
    elif form == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1000)
    elif form == "a.arrow":
        with ipc.new_stream(path, pyarrow.Table.from_pylist(rows[:1]).schema) as stream:
            stream.write_table(pyarrow.Table.from_pylist(rows), max_chunksize=1000)
    elif form.endswith(".json"):
        path.write_text(json.dumps(rows, indent=2 if "indent" in form else None))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text, 1) if form.endswith(".gz") else text)
    sample = sample_items(path, 400, columns=KNOWN)
    assert values(sample.first) == rows[:50]
    assert abs(sample.rows_estimate / 30_000 - 1) < 0.02
    assert len(sample.some) == 400
    known = {row["question"]: row for row in rows}
    assert all(known[item.value["question"]] == item.value for item in sample.some)
    if form in ("a.jsonl", "a.json", "indent.json", "a.csv"):
        places = [int(item.value["question"][1:]) for item in sample.some]
        assert places == sorted(places)
        assert [
            0.2 < sum(place < 30_000 * part / 4 for place in places) / (100 * part) < 1.2
            for part in (1, 2, 3)
        ]


def test_a_sample_of_a_small_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spread(120)))
    sample = sample_items(tmp_path / "a.jsonl", 10)
    assert (len(sample.first), len(sample.some), sample.rows_estimate) == (50, 10, 120)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spread(60)))
    sample = sample_items(tmp_path, 30)
    assert (sample.rows_estimate, {item.file for item in sample.some}) == (180, {"a.jsonl", "b.jsonl"})
