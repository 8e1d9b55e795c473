"""How fast data is read: the first page, the estimate, the sample and the whole, beside `datasets`.

    make bench-data       or   python -m tests.bench.data --size 1000

Each figure comes from a process of its own, from its first statement on: seconds, CPU seconds, and the most
memory it held. The files are made once, under build/bench-data; each load starts with an empty cache folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bench-data"
HOME = FOLDER / "home"
DUPLICATES = 100_000
PACKED = 100_000
CAPACITY = 2048


# The files


def rows(size: int) -> Iterator[dict[str, Any]]:
    """Conversations of made-up words, in lengths as people write them, about `size` bytes of JSON."""
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(30_000)]
    text = draw.choices(words, [1 / (rank + 10) for rank in range(len(words))], k=2_000_000)

    def spoken(mean: float) -> str:
        count = min(max(int(draw.lognormvariate(mean, 0.7)), 3), 3000)
        start = draw.randrange(len(text) - count)
        return " ".join(text[start : start + count])

    written = 0
    while written < size:
        turns = ("user", f"{spoken(3.2)}?"), ("assistant", f"{spoken(4.9)}.")
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        written += sum(len(content) for _, content in turns) + 90
        yield row


def make_files(size: int) -> tuple[Path, Path, int]:
    """The JSONL file, the same rows as Parquet, and their number."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    FOLDER.mkdir(parents=True, exist_ok=True)
    lines, table, count = FOLDER / f"rows-{size}.jsonl", FOLDER / f"rows-{size}.parquet", 0
    if not table.exists():
        turn = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
        schema = arrow.schema([("messages", arrow.list_(turn))])
        part = table.with_suffix(".part")
        with lines.open("w") as file, parquet.ParquetWriter(part, schema) as writer:
            group = []
            for row in rows(size * 1_000_000):
                file.write(json.dumps(row) + "\n")
                group.append(row)
                if len(group) == 20_000:
                    writer.write_table(arrow.Table.from_pylist(group, schema))
                    group.clear()
            writer.write_table(arrow.Table.from_pylist(group, schema))
        part.rename(table)
    with lines.open("rb") as file:
        while block := file.read(1 << 24):
            count += block.count(b"\n")
    return lines, table, count


# What is measured, each in a fresh process; a number that is returned is printed beside the time


def first_page(path: str) -> float:
    """Rows estimated."""
    from ollama_tune.core.data.load import peek

    page = peek(path)
    assert page.usable == 50, page
    return page.total


def chosen(path: str) -> float:
    """The same in a program that has started already, as the wizard has when a file is chosen."""
    import ollama_tune.core.data.load as room

    if path.endswith("parquet"):
        import pyarrow.parquet  # noqa: F401
    began = time.perf_counter()
    page = room.peek(path)
    TIMED.append(time.perf_counter() - began)
    return page.total


def sampled(path: str) -> float:
    """Tokens of all rows, estimated."""
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.load import peek, sample_rows
    from ollama_tune.core.data.tokens.lengths import sample_lengths
    from ollama_tune.core.paths import asset

    chat = ChatFormat.from_folder(asset("model"))
    return sample_lengths(chat, sample_rows(path), peek(path).total).tokens


def whole(path: str) -> float:
    """Usable rows, read and checked by a child process."""
    from ollama_tune.core.data.rows.background import scan_in_child
    from ollama_tune.core.data.values import Reading

    return scan_in_child(path, Reading(), lambda done, total: None, lambda: False).usable


def again(path: str) -> float:
    """Usable rows that are in the cache."""
    from ollama_tune.core.data.load import load_dataset

    return load_dataset(path).usable


def streaming(path: str) -> float:
    """The first 50 rows from `datasets`."""
    from datasets import load_dataset

    kind = "parquet" if path.endswith("parquet") else "json"
    return len(list(load_dataset(kind, data_files=path, split="train", streaming=True).take(50)))


def copied(path: str) -> float:
    """All rows through `datasets`, which writes them to its cache."""
    from datasets import load_dataset

    kind = "parquet" if path.endswith("parquet") else "json"
    return len(load_dataset(kind, data_files=path, split="train"))


def clusters(path: str) -> float:
    """Near-duplicates among 100,000 texts; one in ten is another one with up to 10 % of its words changed."""
    from ollama_tune.core.data.rows.duplicates import Signatures

    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(30_000)]
    often = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    texts: list[str] = []
    for _ in range(DUPLICATES):
        if texts and draw.random() < 0.1:
            copy = draw.choice(texts).split()
            for _ in range(int(len(copy) * draw.random() * 0.1)):
                copy[draw.randrange(len(copy))] = "other"
        else:
            copy = draw.choices(words, cum_weights=often, k=draw.randint(20, 180))
        texts.append(" ".join(copy))
    began = time.perf_counter()
    signatures = Signatures()
    for text in texts:
        signatures.add(text)
    found = signatures.clusters(lambda places: [texts[at] for at in places])
    TIMED.append(time.perf_counter() - began)
    return sum(int(first) != at for at, first in enumerate(found))


def packed(path: str) -> float:
    """Per cent of the space that is wasted."""
    from ollama_tune.core.data.tokens.pack import filled, pack

    draw = random.Random(2)
    lengths = [min(max(int(draw.lognormvariate(5.5, 0.75)), 8), CAPACITY) for _ in range(PACKED)]
    began = time.perf_counter()
    groups = pack(lengths, CAPACITY)
    TIMED.append(time.perf_counter() - began)
    return 100 * (1 - filled(lengths, groups, CAPACITY))


TIMED: list[float] = []
"""What a measurement times itself, without its preparation."""

MEASURED: dict[str, Callable[[str], float]] = {
    work.__name__: work
    for work in (first_page, chosen, sampled, whole, again, streaming, copied, clusters, packed)
}


def most_held() -> int:
    """KiB this process held at most; `ru_maxrss` would count what its parent held before the start."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def child(name: str, path: str) -> None:
    """In the fresh process: measure one thing and print it."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = MEASURED[name](path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = max(most_held(), used.ru_maxrss) / 1024
    cpu += used.ru_utime + used.ru_stime
    print(json.dumps([TIMED[0] if TIMED else wall, cpu, peak, found]), flush=True)
    os._exit(0)  # threads that read ahead for `datasets` can keep a process from its end


def measured(name: str, path: Path, runs: int = 1) -> tuple[float, float, float, float]:
    """(seconds, CPU seconds, peak MiB, what was found), the quickest of so many runs."""
    environment = {
        **os.environ,
        "OLLAMA_TUNE_HOME": str(HOME),
        "HF_HOME": str(FOLDER / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "tests.bench.data", "--one", name, str(path)]
    found = []
    for _ in range(runs):
        if name != "again":
            shutil.rmtree(HOME, ignore_errors=True)
        shutil.rmtree(FOLDER / "hf", ignore_errors=True)
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=1800
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    best = min(found, key=lambda one: one[0])
    return best[0], best[1], best[2], best[3]


def main() -> None:
    """Make the files, measure one thing after another and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1000, help="millions of bytes of the JSONL file")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        child(*arguments.one)
        return
    lines, table, count = make_files(arguments.size)
    sizes = [file.stat().st_size / 1e6 for file in (lines, table)]
    print(f"{count:,} rows: JSONL {sizes[0]:,.0f} MB, Parquet {sizes[1]:,.0f} MB")
    print(f"{'':<44} {'seconds':>9} {'CPU':>7} {'MiB':>6}   goal")

    def tell(label: str, name: str, path: Path, goal: str = "", runs: int = 1) -> float:
        wall, cpu, peak, found = measured(name, path, runs)
        print(f"{label:<44} {wall:9.3f} {cpu:7.2f} {peak:6.0f}   {goal}", flush=True)
        return found

    estimates = [
        tell("first page, JSONL", "first_page", lines, "0.1 s, 200 MiB", 5),
        tell("first page, Parquet", "first_page", table, "0.2 s, 200 MiB", 5),
    ]
    errors = ", ".join(f"{estimate / count - 1:+.2%}" for estimate in estimates)
    print(f"  error of the estimated rows: {errors} (goal: 2 %)")
    tell("first page once started, JSONL", "chosen", lines, "0.1 s", 5)
    tell("first page once started, Parquet", "chosen", table, "0.2 s", 5)
    tell("first 50 rows, datasets streaming, JSONL", "streaming", lines, runs=3)
    tell("first 50 rows, datasets streaming, Parquet", "streaming", table, runs=3)
    tell("token lengths of a sample, JSONL", "sampled", lines, "3 s, 200 MiB", 3)
    tell("token lengths of a sample, Parquet", "sampled", table, "3 s, 200 MiB", 3)
    usable = tell("all rows, checked and kept, JSONL", "whole", lines, "200 MiB")
    print(f"  usable rows: {int(usable):,}")
    tell("the same again", "again", lines)
    tell("all rows, datasets (no check), JSONL", "copied", lines)
    tell("all rows, checked and kept, Parquet", "whole", table, "200 MiB")
    near = tell(f"near-duplicates of {DUPLICATES:,} texts", "clusters", lines, "5 s")
    print(f"  near-duplicates found: {int(near):,}")
    waste = tell(f"packing of {PACKED:,} rows", "packed", lines, "0.3 s", 3)
    print(f"  wasted space: {waste:.3f} % (goal: 0.1 %)")
    shutil.rmtree(HOME, ignore_errors=True)
    shutil.rmtree(FOLDER / "hf", ignore_errors=True)


if __name__ == "__main__":
    main()
