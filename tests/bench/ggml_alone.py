"""What ggml's quantizer costs by itself: the same rows as an export, already in memory, written nowhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.ggml import Floats, quantizer
from ollama_tune.core.export.gguf import Source, open_source
from ollama_tune.core.export.mix import choose_types
from ollama_tune.core.export.quantize import TensorType, one_thread_each

PIECE = 1 << 24


def pieces(source: Source, file_type: str) -> Iterator[tuple[TensorType, Floats]]:
    """Rows of every tensor that ggml quantizes, in pieces of some 16 million numbers."""
    types = choose_types(source.plans, source.config, file_type)
    for plan in source.plans:
        kind = types[plan.name]
        if kind.encode is not None:
            continue
        step = max(PIECE // plan.columns, 1)
        for start in range(0, plan.rows, step):
            yield kind, source.rows.rows(plan, start, min(start + step, plan.rows)).numpy()


def main() -> None:
    """Wall and CPU seconds inside the quantizer, with a thread a core."""
    base, adapter, file_type = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    quantize, threads = quantizer(), os.cpu_count() or 1
    wall = cpu = 0.0
    chat = ChatFormat.from_folder(base)
    with open_source(base, adapter, chat) as source, one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for kind, rows in pieces(source, file_type):
            parts = np.array_split(rows, 4 * threads)
            outs = [np.empty(kind.size(*part.shape), dtype=np.uint8) for part in parts]
            began, used = time.monotonic(), time.process_time()
            jobs = [
                pool.submit(quantize, int(kind.ggml), part, out, None)
                for part, out in zip(parts, outs, strict=True)
            ]
            for job in jobs:
                job.result()
            wall, cpu = wall + time.monotonic() - began, cpu + time.process_time() - used
    print(f"{cpu:.2f} {wall:.2f}")


if __name__ == "__main__":
    main()
