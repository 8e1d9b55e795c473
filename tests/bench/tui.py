"""The interface beside others: first frame, processor time, memory, keys, bytes.

    python -m tests.bench.tui --peers /path/to/venv/bin --rounds 5 [--burn 2] [--output FILE]

Every contender runs on a pty of 120x40 (truecolor, which answers what a modern terminal answers), in
alternation. `--peers` names folders with `posting` and `harlequin`; what none of them has is said and left
out. CPU seconds are of the whole process tree and hardly depend on what else the machine does; milliseconds
do, so compare lines of one run, and look at the least.

Then scenes of our own: going back to a run of 20,000 events, watching one at four steps a second, scrolling
the preview of a million rows, typing beside an answer, and keys in many places (`--scene` takes one of them).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ollama_tune.tui.state import WizardState
from tests.bench.pty_probe import Figures, measure
from tests.bench.start import BARE, TUNE
from tests.bench.tui_scenes import SCENES, home

COLUMNS = (
    ("frame ms", "text_ms", 0),
    ("settled ms", "settled_ms", 0),
    ("CPU s", "cpu", 2),
    ("to rest, CPU s", "rest_cpu", 2),
    ("bytes", "bytes", 0),
    ("idle CPU %", "idle_cpu", 2),
    ("idle B/s", "idle_bytes", 0),
    ("USS MiB", "uss", 1),
    ("key ms p50", "key_p50", 1),
    ("key ms p95", "key_p95", 1),
    ("CPU ms a key", "cpu_per_key", 1),
)


@dataclass
class Contender:
    """A program with the text of its first useful frame, and the keys that are pressed in it."""

    name: str
    command: Sequence[str]
    text: str
    keys: Sequence[str] = ("down", "up")
    step: int = 1
    found: list[Figures] = field(default_factory=list)


def contenders(folders: Sequence[Path]) -> list[Contender]:
    """Ours, a bare Textual app, and the peers that are there."""
    code = str(Path(tempfile.mkdtemp()) / "bare.py")
    Path(code).write_text(BARE)
    found = [
        Contender("ollama-tune, first step, keys: help and back", TUNE, "This machine", ("?", "q")),
        Contender("ollama-tune, on the Model step", TUNE, "Step 2 of", step=2),
        Contender("bare Textual app", (sys.executable, code), "first frame"),
    ]
    for name, text in (("posting", "Collection"), ("harlequin", "Query Editor")):
        place = next((str(path) for folder in folders if (path := folder / name).exists()), None)
        if place is None:
            print(f"{name}: not there, left out.", file=sys.stderr)
        else:
            found.append(Contender(name, (place,), text))
    return found


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """Busy loops beside what is measured."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def table(measured: Sequence[Contender]) -> list[str]:
    """Median and, in brackets, the least of each figure."""
    lines = ["| | " + " | ".join(name for name, _, _ in COLUMNS) + " |", "|-" * (len(COLUMNS) + 1) + "|"]
    for contender in measured:
        cells = []
        for _, name, digits in COLUMNS:
            values = [getattr(figures, name) for figures in contender.found]
            cells.append(f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f})")
        lines.append(f"| {contender.name} | " + " | ".join(cells) + " |")
    return lines


def compare(measured: list[Contender], rounds: int) -> list[str]:
    """Everybody in turns; the round before the first is not counted."""
    for number in range(rounds + 1):
        for contender in measured:
            with home() as place:
                WizardState(step=contender.step).save()
                figures = measure(contender.command, contender.text, contender.keys, place)
            if number:
                contender.found.append(figures)
    return table(measured)


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, nargs="+", default=[], help="folders with the peers' commands")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burn", type=int, default=0, help="busy loops beside")
    parser.add_argument("--only", choices=("peers", "scenes"))
    parser.add_argument("--scene", choices=[scene.__name__ for scene in SCENES], help="this one alone")
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OLLAMA_HOST": "127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    lines: list[str] = []
    with burning(given.burn):
        if given.only != "scenes" and given.scene is None:
            lines += compare(contenders(given.peers), given.rounds)
        if given.only != "peers":
            wanted = [scene for scene in SCENES if given.scene in (None, scene.__name__)]
            lines += [""] + [f"- {told}" for scene in wanted for told in scene(TUNE)]
    print("\n".join(lines))
    if given.output is not None:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
