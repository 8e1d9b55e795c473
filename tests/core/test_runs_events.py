from __future__ import annotations

import json
import math
import multiprocessing
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.runs.events import MAX_LINE, EventReader, EventWriter, parse_line, read_events


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def written(log: Path, count: int) -> None:
    writer = EventWriter(log)
    for step in range(count):
        writer.write("step", step=step)
    writer.close()


def numbers(log: Path) -> list[int]:
    return [event.n for event in read_events(log)]


def test_numbers_go_on_after_reopening(log: Path) -> None:
    written(log, 3)
    written(log, 2)
    assert numbers(log) == [0, 1, 2, 3, 4]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "torn", [b'{"n": 3, "t": 1.0, "ki', b'{"n": 3, "t": 1.0, "kind": "step"}', b"\x00" * 500, b"\n", b"x\n"]
)
def test_a_torn_or_foreign_end_is_cut_and_numbers_stay_contiguous(log: Path, torn: bytes) -> None:
    written(log, 3)
    with log.open("ab") as file:
        file.write(torn)
    written(log, 2)
    assert numbers(log) == [0, 1, 2, 3, 4]
    assert all(parse_line(line) for line in log.read_bytes().splitlines())


def test_a_log_without_one_whole_event_starts_again_at_zero(log: Path) -> None:
    log.write_bytes(b'{"n": 0, "t"' + b"x" * 200_000)
    written(log, 1)
    assert numbers(log) == [0]


def test_threads_never_mix_lines_or_numbers(log: Path) -> None:
    writer = EventWriter(log)

    def write() -> None:
        for step in range(300):
            writer.write("step", step=step, text="x" * 300)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert numbers(log) == list(range(1200))


def _write_forever(log: str) -> None:
    writer = EventWriter(Path(log))
    step = 0
    while True:
        writer.write("step", step=step, text="ö" * 200)
        step += 1


def test_readers_and_killed_writers_lose_and_double_nothing(log: Path) -> None:
    reader, seen = EventReader(log), []
    spawn = multiprocessing.get_context("spawn")
    for _ in range(3):
        process = spawn.Process(target=_write_forever, args=(str(log),))
        process.start()
        before = len(seen)
        while len(seen) < before + 200:
            seen += reader.poll()
        process.kill()
        process.join()
    written(log, 1)
    seen += reader.poll()
    assert [event.n for event in seen] == list(range(len(seen)))
    assert [event.n for event in seen] == numbers(log)


def test_a_reader_waits_for_the_end_of_a_line(log: Path) -> None:
    written(log, 2)
    reader = EventReader(log)
    assert len(reader.poll()) == 2
    with log.open("ab") as file:
        file.write(b'{"n": 2, "t": 1.0, ')
        file.flush()
        assert reader.poll() == []
        file.write(b'"kind": "step"}\n')
    assert [event.n for event in reader.poll()] == [2]
    assert EventReader(log.with_name("absent")).poll() == []


def test_a_long_event_stays_below_the_size_that_repair_looks_back(log: Path) -> None:
    writer = EventWriter(log)
    rows: Any = [{"text": "y" * 5000}] * 10
    writer.write("sample", prompt="x" * 200_000, step=1)
    writer.write("done", commands=rows, deep={"a": {"b": "z" * 100_000}})
    writer.write("done", **{f"field{i}": "w" * 1900 for i in range(60)})
    writer.close()
    lines = log.read_bytes().splitlines()
    assert [len(line) <= MAX_LINE for line in lines] == [True] * 3
    first, second, third = read_events(log)
    assert first["step"] == 1 and first["prompt"].endswith("…")
    assert second["deep"]["a"]["b"].startswith("zzz")
    assert third["cut"] > MAX_LINE
    written(log, 1)
    assert numbers(log) == [0, 1, 2, 3]


def test_not_a_number_becomes_null_and_lines_stay_json(log: Path) -> None:
    writer = EventWriter(log)
    writer.write("step", loss=math.nan, values=[math.inf, {"x": -math.inf}], text="\ud800 \n")
    writer.close()
    assert len(log.read_bytes().splitlines()) == 1
    (event,) = read_events(log)
    assert event["loss"] is None and event["values"] == [None, {"x": None}]


def _fill(log: str, result: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = EventWriter(Path(log))
    writer.write("step", text="x" * 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    try:
        for _ in range(5):
            writer.write("step", text="x" * 100)
    except OSError as error:
        Path(result).write_text(json.dumps(error.errno))


def test_a_full_disk_leaves_whole_lines(log: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_fill, args=(str(log), str(tmp_path / "result"))
    )
    process.start()
    process.join()
    assert (tmp_path / "result").exists()
    assert log.read_bytes().endswith(b"\n")
    written(log, 1)
    found = numbers(log)
    assert found == list(range(len(found))) and len(found) >= 2
