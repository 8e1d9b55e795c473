"""How long a plan and an edit of it take: `python -m tests.bench.plan`.

Every box, model and data set of the tests, planned as at first and after one changed field; the goals are 3 s
for a plan and 0.2 s for an edit. Seconds are of this process alone; the slowest cases are named.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from ollama_tune.core.plan.recommend import make_plan
from tests.cases import CHAT, LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, TINY, machine

BOXES = {"CPU": machine(), "8 GiB": machine(gpu=8), "24 GiB": machine(gpu=24), "80 GiB": machine(gpu=80)}
MODELS = {"tiny": TINY, "1B": LLAMA_1B, "4B": QWEN3_4B, "8B": LLAMA_8B, "70B": LLAMA_70B}
DATA = {"short": SHORT, "chat": CHAT}
EDITS: dict[str, Any] = {
    "nothing": {},
    "rank": {"training.rank": 512},
    "batch": {"training.batch_size": 64},
    "length": {"training.sequence_length": 8192},
    "much": {"training.batch_size": 64, "training.rank": 512, "training.gradient_checkpointing": "none"},
}


def main() -> None:
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in EDITS}
    for (box, model, data), (edit, changes) in itertools.product(
        itertools.product(BOXES, MODELS, DATA), EDITS.items()
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        make_plan(BOXES[box], MODELS[model], DATA[data], changes)
        took = (time.process_time() - cpu, time.perf_counter() - wall)
        found[edit].append((*took, f"{model}, {data} rows, {box}"))
    print(f"{'changed':<10}{'median CPU s':>14}{'slowest CPU s':>15}{'wall s':>9}  slowest")
    for edit, cases in found.items():
        middle, slowest = sorted(cases)[len(cases) // 2], max(cases)
        print(f"{edit:<10}{middle[0]:>14.3f}{slowest[0]:>15.3f}{slowest[1]:>9.3f}  {slowest[2]}")


if __name__ == "__main__":
    main()
