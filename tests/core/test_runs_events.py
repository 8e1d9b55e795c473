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

from ollama_tune.core.runs.events import (
    MAX_LINE,
    Event,
    EventReader,
    EventWriter,
    back_to,
    effective,
    parse_line,
    read_events,
)
from tests.small_disk import small_disk


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


def test_events_wait_for_room_on_a_full_disk_and_none_is_lost_torn_or_out_of_order(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        log = disk.path / "events.jsonl"
        writer = EventWriter(log)
        writer.write("step", step=0)
        disk.fill()
        told = 0
        while writer.flush():
            told += writer.write("step", text="x" * 900).n > 0
        assert told > 10, "the room kept for the log is there although the disk is full"
        last = writer.write("stopped", step=told).n
        assert numbers(log)[-1] == last, "last words have room when the disk is full"
        while writer.write("step", text="x" * 900).n in numbers(log):
            pass
        waiting = writer.write("step", text="waits").n
        assert log.read_bytes().endswith(b"\n") and numbers(log) == list(range(len(numbers(log))))
        assert not writer.flush() and len(numbers(log)) < waiting
        reader, seen = EventReader(log), []
        seen += reader.poll()
        disk.free()
        assert writer.flush() and writer.write("step", text="after").n == waiting + 1
        seen += reader.poll()
        writer.close()
        assert [event.n for event in seen] == numbers(log) == list(range(waiting + 2))
        assert log.stat().st_blocks * 512 < log.stat().st_size + 8192, "no room is kept for an ended run"


def history(*told: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(number, float(number), kind, data) for number, (kind, data) in enumerate(told)]


def start(resumed_from: int | None, stage: str = "train") -> tuple[str, dict[str, Any]]:
    return "start", {"stage": stage, "resumed_from": resumed_from}


def step(number: int, loss: float = 1.0) -> tuple[str, dict[str, Any]]:
    return "step", {"step": number, "loss": loss}


def evaluation(number: int, exact: float | None = None, model: str = "tuned") -> tuple[str, dict[str, Any]]:
    return "evaluation", {"step": number, "exact_match": exact, "model": model}


def test_the_effective_history_has_every_step_once_as_it_was_done_last() -> None:
    warning = "warning", {"what": "Infinite.", "fix": "Back.", "back_to": 1}
    told = history(
        start(None),
        ("phase", {"text": "Training."}),
        evaluation(0, 0.1, "base"),
        *(step(number, 9.0) for number in (1, 2)),
        evaluation(2),
        ("checkpoint", {"step": 2}),
        step(3, 9.0),
        start(2),  # killed after step 3
        *(step(number) for number in (3, 4)),
        warning,  # back to the checkpoint of step 1
        *(step(number) for number in (2, 3, 4)),
        start(4),  # killed after the last step
        evaluation(2, 0.5),
        start(4),  # killed before `done`
        evaluation(2, 0.5),
        start(None, "export"),
        ("done", {"stage": "export"}),
    )
    kept = effective(told)
    assert [(event["step"], event["loss"]) for event in kept if event.kind == "step"] == [
        (1, 9.0),
        *((number, 1.0) for number in (2, 3, 4)),
    ]
    assert [event["exact_match"] for event in kept if event.kind == "evaluation"] == [0.1, 0.5]
    assert not [event for event in kept if event.kind == "checkpoint"]
    assert [event.n for event in kept] == sorted(event.n for event in kept)
    others = {"start", "phase", "warning", "done"}
    assert [e for e in kept if e.kind in others] == [e for e in told if e.kind in others]
    assert [back_to(event) for event in told if back_to(event) is not None] == [0, 2, 1, 4, 4]
    assert effective(kept) == kept


def test_what_was_measured_in_between_and_at_the_end_are_two_things() -> None:
    told = history(start(None), step(2), evaluation(2), evaluation(2, 0.5))
    assert effective(told) == told
