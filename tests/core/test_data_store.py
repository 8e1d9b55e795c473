from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.child import NICE, Cancelled
from ollama_tune.core.data.load import load_dataset, peek, sample_rows
from ollama_tune.core.data.rows import background, cache, scan
from ollama_tune.core.data.rows.background import scan_in_child
from ollama_tune.core.data.rows.store import Damaged, Store, StoredRows
from ollama_tune.core.data.values import DatasetProfile, Message, Reading, Row, ToolCall
from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import cache_dir


def write_rows(path: Path, count: int, note: str = "") -> str:
    """Rows that nothing is found in; old enough that a change would show in the file's times."""
    lines = [{"question": f"what is {i} {note}", "answer": f"it is {i * 7}"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    time.sleep(cache.RACE_SECONDS + 0.02)
    return str(path)


def stores() -> list[Path]:
    return sorted((cache_dir() / "rows").iterdir())


def stored(profile: DatasetProfile) -> StoredRows:
    assert isinstance(profile.rows, StoredRows)
    return profile.rows


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", 700)


def test_rows_are_a_lazy_sequence(path: str) -> None:
    rows = load_dataset(path).rows
    assert (len(rows), rows[0].line, rows[-1].line, rows[699].answer) == (700, 1, 700, "it is 4893")
    assert [row.line for row in rows[10:20:3]] == [11, 14, 17, 20]
    assert [row.line for row in rows[690:][5:]] == [696, 697, 698, 699, 700]
    assert list(rows) == [rows[at] for at in range(700)]
    assert [row.line for row in reversed(rows[:3])] == [3, 2, 1]
    with pytest.raises(IndexError):
        rows[700]


def test_a_row_comes_back_as_it_went_in(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind. \u2028 \U0001f600"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I must look \ud83d.",
            "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"at": "sky"}}}],
        },
        {"role": "tool", "name": "look", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "weight": 0},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "It still rains."},
    ]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns, "tools": tools}) + "\n")
    (row,) = load_dataset(str(file)).rows
    assert json.loads(row.tools) == tools
    assert row.messages[2] == Message(
        "assistant", "", "I must look \ufffd.", (ToolCall("look", '{"at": "sky"}', "c1"),)
    )
    assert row.messages[3] == Message("tool", "rain", name="look", tool_call_id="c1")
    assert (row.messages[0].content, row.messages[4].train) == ("Be kind. \u2028 \U0001f600", False)


def test_a_second_load_reads_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(path)
    monkeypatch.setattr(scan, "read_items", None)
    again = load_dataset(path, Reading(exclude=("secret",)))
    assert stored(again).store.path == stored(first).store.path
    assert (list(again.rows), again.problems) == (list(first.rows), first.problems)
    assert peek(path).exact


@pytest.mark.parametrize("change", ["content", "time", "inode", "reading"])
def test_whatever_changes_is_read_again(path: str, tmp_path: Path, change: str) -> None:
    load_dataset(path)
    reading, file = Reading(), Path(path)
    if change == "content":
        write_rows(file, 701)
    elif change == "time":
        os.utime(file)
    elif change == "inode":
        status = file.stat()
        shutil.copy2(file, tmp_path / "other")
        os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "other").replace(file)
    else:
        reading = Reading(form="chat")
    load_dataset(path, reading)
    assert len(stores()) == 2


def test_a_file_written_a_moment_ago_is_not_trusted_to_be_unchanged(tmp_path: Path) -> None:
    """Two writes within a tick of the file system's clock leave the same time and, here, the same size."""
    file = tmp_path / "rows.jsonl"
    for answer in ("aa", "bb"):
        file.write_text(json.dumps({"question": "q", "answer": answer}) + "\n")
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
        assert load_dataset(str(file)).rows[0].answer == answer


def test_a_folder_is_read_again_when_a_file_in_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", 20)
    write_rows(folder / "validation.jsonl", 5, "else")
    first = load_dataset(str(folder))
    assert [(row.file, row.held_out) for row in (first.rows[0], first.rows[-1])] == [
        ("train.jsonl", False),
        ("validation.jsonl", True),
    ]
    assert stored(load_dataset(str(folder))).store.path == stored(first).store.path
    write_rows(folder / "validation.jsonl", 6, "else")
    assert load_dataset(str(folder)).usable == 26


def test_a_file_that_changes_while_it_is_read_is_told(path: str) -> None:
    with_open = Path(path)

    def grow(done: int, total: int) -> None:
        with with_open.open("a") as file:
            file.write("\n")

    assert scan.NEWS_EVERY > 0
    old, scan.NEWS_EVERY = scan.NEWS_EVERY, 0.0
    try:
        problems = {problem.kind for problem in load_dataset(path, progress=grow).problems}
    finally:
        scan.NEWS_EVERY = old
    assert "changed" in problems


def test_no_store_is_left_by_a_scan_that_ends_early(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scan, "NEWS_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(path, progress=stop)
    assert stores() == []


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
def test_a_damaged_store_is_made_again(path: str, damage: str) -> None:
    file = stored(load_dataset(path)).store.path
    content = file.read_bytes()
    {
        "cut": lambda: file.write_bytes(content[:-40]),
        "empty": lambda: file.write_bytes(b""),
        "noise": lambda: file.write_bytes(content[:-24] + os.urandom(24)),
        "gone": file.unlink,
    }[damage]()
    assert load_dataset(path).usable == 700
    assert Store(file).header["rows"] == 700


def test_rows_outlive_their_file_but_not_in_another_process(path: str) -> None:
    rows = load_dataset(path).rows[:5]
    sent = pickle.dumps(rows)
    assert list(pickle.loads(sent)) == list(rows)
    stored_file = stores()[0]
    stored_file.unlink()
    assert rows[4].line == 5
    with pytest.raises(TuneError, match="gone from the cache"):
        pickle.loads(sent)
    stored_file.write_bytes(b"x" * 100)
    with pytest.raises(Damaged):
        Store(stored_file)


def _lines(rows: StoredRows) -> list[int]:
    return [row.line for row in rows]


def test_rows_can_be_sent_to_another_process(path: str) -> None:
    rows = stored(load_dataset(path))[3:6]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_lines, (rows,)) == [4, 5, 6]


def test_two_processes_may_read_one_file_at_once(path: str) -> None:
    code = f"from ollama_tune.core.data.load import load_dataset; print(load_dataset({path!r}).usable)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [b"700\n", b"700\n"]
    assert [file.suffix for file in stores()] == [".rows"]


def test_without_a_cache_folder_rows_go_to_a_temporary_one(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "no-folder"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache._own_folder.cache_clear()
    try:
        first = stored(load_dataset(path)).store.path
        assert first.parent.parent == tmp_path
        assert stored(load_dataset(path)).store.path == first
    finally:
        cache._own_folder.cache_clear()


def test_a_full_disk_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ollama_tune.core.data.rows.store.Writer.finish", full)
    with pytest.raises(TuneError, match=r"cannot be kept in .*: No space left on device"):
        load_dataset(path)
    assert stores() == []


def test_old_stores_too_many_bytes_and_leftovers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    ages = {
        "new.rows": 1,
        "used.rows": 2,
        "third.rows": 3,
        "old.rows": 31 * 86400,
        ".dead.rows.x.part": 4000,
        ".live.rows.y.part": 10,
        "other.txt": 99 * 86400,
    }
    for name, age in ages.items():
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (now - age, now - age))
    monkeypatch.setattr(cache, "KEPT_BYTES", 3500)
    cache.prune(tmp_path, tmp_path / "new.rows")
    assert {file.name for file in tmp_path.iterdir()} >= {"new.rows", "used.rows", "third.rows", "other.txt"}
    assert not {"old.rows", ".dead.rows.x.part"} & {file.name for file in tmp_path.iterdir()}
    monkeypatch.setattr(cache, "KEPT_BYTES", 500)
    cache.prune(tmp_path, tmp_path / "new.rows")
    assert {file.name for file in tmp_path.glob("*.rows")} == {"new.rows"}


def test_the_cached_load_needs_no_numpy(path: str) -> None:
    load_dataset(path)
    code = f"from ollama_tune.core.data.load import load_dataset; load_dataset({path!r}).rows[5]"
    code += "; import sys; print('numpy' in sys.modules, 'pyarrow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False False\n"


def test_a_first_page_needs_no_numpy_and_estimates_the_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "many.jsonl", 40_000)
    page = peek(path)
    assert (page.exact, page.usable, page.format) == (False, 50, "JSONL")
    assert abs(page.total - 40_000) < 800
    code = f"from ollama_tune.core.data.load import peek; peek({path!r})"
    code += "; import sys; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"
    some = sample_rows(path, count=300)
    assert len(some) == 300
    assert len({row.answer for row in some}) > 280


def test_a_first_page_names_unknown_columns_where_a_load_refuses(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    rows = [{"zeta": f"one {i} of some text", "eta": f"two {i} of other text"} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = peek(str(file))
    assert [column.name for column in page.columns] == ["zeta", "eta"]


# The child


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A file that takes a child more than a moment."""
    return write_rows(tmp_path / "large.jsonl", 8_000)


def test_a_child_reads_what_the_one_who_waits_needs_no_libraries_for(path: str) -> None:
    code = f"""
from ollama_tune.core.data.rows.background import scan_in_child
from ollama_tune.core.data.values import Reading
import sys
rows = scan_in_child({path!r}, Reading(), print, lambda: False).rows
print(len(rows), "numpy" in sys.modules)
"""
    told = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert told[-1] == f"{load_dataset(path).usable} False"


@pytest.mark.parametrize(("most", "nice"), [(0, NICE), (1 << 30, 0)])
def test_a_child_gives_way_to_others_where_the_file_is_large(
    large: str, monkeypatch: pytest.MonkeyPatch, most: int, nice: int
) -> None:
    monkeypatch.setattr(background, "SMALL", most)
    seen: set[int] = set()

    def look(done: int, total: int) -> None:
        seen.update(os.getpriority(os.PRIO_PROCESS, child) for child in children(os.getpid()))

    scan_in_child(large, Reading(), look, lambda: False)
    assert seen == {min(os.getpriority(os.PRIO_PROCESS, 0) + nice, 19)}


def test_a_child_tells_how_far_it_is(large: str) -> None:
    news: list[tuple[int, int]] = []
    profile = scan_in_child(large, Reading(), lambda *now: news.append(now), lambda: False)
    size = Path(large).stat().st_size
    assert (profile.usable, profile.exact) == (8_000, True)
    assert news == sorted(news)
    assert all(total == size and done <= total for done, total in news)
    assert len(news) > 1
    assert list(profile.rows[:3]) == list(load_dataset(large).rows[:3])


def test_a_cancelled_child_is_gone_and_leaves_nothing(large: str) -> None:
    news: list[int] = []
    with pytest.raises(Cancelled):
        scan_in_child(large, Reading(), lambda done, total: news.append(done), lambda: bool(news))
    assert stores() == []


def test_an_error_in_the_progress_ends_the_child(large: str) -> None:
    def refuse(done: int, total: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        scan_in_child(large, Reading(), refuse, lambda: False)
    assert stores() == []


def test_an_error_of_the_child_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"There is no .*none\.jsonl") as there:
        load_dataset(str(tmp_path / "none.jsonl"))
    (tmp_path / "one.jsonl").write_text('{"question": "q", "answer": ""}\n')
    with pytest.raises(TuneError, match="no answer") as caught:
        scan_in_child(str(tmp_path / "one.jsonl"), Reading(), lambda *now: None, lambda: False)
    assert there.value.fix.endswith(".")
    assert caught.value.fix.endswith(".")


def test_a_killed_child_is_told_and_its_leftover_is_not_a_store(large: str) -> None:
    def kill(done: int, total: int) -> None:
        for child in children(os.getpid()):
            os.kill(child, signal.SIGKILL)

    with pytest.raises(TuneError, match="stopped before its end") as caught:
        scan_in_child(large, Reading(), kill, lambda: False)
    assert "exit status -9" in caught.value.details
    assert [file.suffix for file in stores()] == [".part"]
    assert load_dataset(large).usable == 8_000


def children(parent: int) -> list[int]:
    """The processes that read for this one; multiprocessing has one of its own."""
    all_of_them = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(pid) for pid in all_of_them if b"rows.background" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_choice_of_rows_is_switched_in_no_time(path: str) -> None:
    begun = load_dataset(path).rows
    assert isinstance(begun, StoredRows)
    assert isinstance(begun.places, range)
    assert begun.chosen([0, 2])[1] == begun[2]
    assert isinstance(begun[0], Row)


def test_the_same_rows_have_one_name_and_known_sizes(path: str, tmp_path: Path) -> None:
    rows = stored(load_dataset(path))
    some = rows.chosen([0, 2, 5])
    names = {rows.key, rows[:5].key, rows[1:6].key, some.key, rows.chosen([0, 2, 6]).key}
    assert len(names) == 5
    assert (stored(load_dataset(path)).key, rows.chosen([0, 2, 5]).key) == (rows.key, some.key)
    assert some.characters == sum(len(message.content) for row in some for message in row.messages)
    assert rows.characters == sum(len(message.content) for row in rows for message in row.messages)
