"""Packing and tokens of made rows: `python -m tests.bench.packing [--model FOLDER] [--rows N]`.

Prints the time and waste of packing 100,000 rows, how fast rows become tokens, how long a second call takes,
and how far the estimate from a sample is from the exact count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.tokens.lengths import encode_rows, measure, sample_lengths
from ollama_tune.core.data.tokens.pack import filled, pack
from ollama_tune.core.paths import asset
from ollama_tune.core.plan.padding import grouped_padding, packed_rows, random_padding
from ollama_tune.core.train.session import peak_memory


def bench_packing(count: int = 100_000) -> None:
    """The best of three, and the space left over."""
    chance = random.Random(1)
    for capacity in (2048, 8192):
        rows = [min(max(int(chance.lognormvariate(5.3, 1.0)), 8), capacity) for _ in range(count)]
        seconds = []
        for _ in range(3):
            start = time.process_time()
            groups = pack(rows, capacity)
            seconds.append(time.process_time() - start)
        waste = 1 - filled(rows, groups, capacity)
        print(f"pack {count:,} rows in {capacity:,}: {min(seconds):.2f} s, {100 * waste:.3f} % left over")


def write_rows(path: Path, count: int) -> None:
    """Questions and answers of many lengths in made words."""
    chance = random.Random(5)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(chance.choices(letters, k=chance.randrange(2, 10))) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            size = int(min(max(chance.lognormvariate(4.6, 0.9), 6), 3000))
            texts = (" ".join(chance.choices(words, k=part)) for part in (size // 3, 2 * size // 3))
            file.write(json.dumps(dict(zip(("question", "answer"), texts, strict=True))) + "\n")


def bench_tokens(model: Path, count: int, folder: Path) -> None:
    """Exact and estimated lengths of the same rows."""
    path = folder / "rows.jsonl"
    write_rows(path, count)
    rows = load_dataset(str(path)).rows
    start = time.process_time()
    chat = ChatFormat.from_folder(model)
    guess = sample_lengths(chat, rows, len(rows))
    print(f"sample with loading the tokenizer: {time.process_time() - start:.2f} CPU s")
    start, clock = time.process_time(), time.perf_counter()
    exact = measure(encode_rows(chat, rows)[0])
    seconds, clock = time.process_time() - start, time.perf_counter() - clock
    size = path.stat().st_size / 1e6
    rate = f"{size / seconds:.2f} MB a CPU s, {clock:.0f} s"
    print(f"{count:,} rows, {size:.0f} MB, {exact.tokens:,} tokens: {rate}")
    start = time.process_time()
    measure(encode_rows(chat, rows)[0])
    print(f"second call: {1000 * (time.process_time() - start):.0f} ms; peak {peak_memory() / 1e6:.0f} MB")
    for name in ("tokens", "trained_tokens", "median", "percentile_95"):
        print(f"  {name}: {100 * (getattr(guess, name) / getattr(exact, name) - 1):+.2f} %")
    longest = exact.longest
    shares = random_padding(exact, longest, 8), grouped_padding(exact, longest, 8)
    waste = 1 - packed_rows(exact, longest)[1]
    print("padding: random {:.1%}, like lengths {:.1%}, packed {:.2%}".format(*shares, waste))


def main() -> None:
    """Measure in a home of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=asset("model"))
    parser.add_argument("--rows", type=int, default=5000)
    given = parser.parse_args()
    bench_packing()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OLLAMA_TUNE_HOME"] = folder
        bench_tokens(given.model, given.rows, Path(folder))


if __name__ == "__main__":
    main()
