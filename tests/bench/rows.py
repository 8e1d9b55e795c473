"""How long the preview of a million rows takes a key: `python -m tests.bench.rows [--rows N]`.

A JSON Lines file of chats is written and read once; then keys are pressed in the wizard's own screen, without
a terminal. CPU milliseconds a key are of this process: moving, drawing, and rendering the row as the model
sees it. F12 does nothing: its line is what the harness itself takes. The goal is 10 ms a key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

KEYS = ("f12", "down", "up", "pagedown", "pageup", "end", "home")


def write(path: Path, count: int) -> None:
    """Chats of different lengths."""
    with path.open("w") as file:
        for n in range(count):
            question = f"What is known of the jay number {n:,}? " + "Tell more. " * (n % 7)
            answer = f"The jay number {n:,} is blue, " + "and it sings at dawn, " * (n % 11)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


async def press(rows: int, size: tuple[int, int], presses: int) -> dict[str, tuple[float, float]]:
    """CPU and wall milliseconds of each kind of key, the median."""
    from ollama_tune.tui.app import Start, TuneApp
    from ollama_tune.tui.state import WizardState
    from ollama_tune.tui.widgets.rows import RowList

    path = Path(os.environ["OLLAMA_TUNE_HOME"]) / "rows.jsonl"
    write(path, rows)
    app = TuneApp(Start(WizardState(step=3, data=str(path))), warm=False, simulate=False)
    found: dict[str, tuple[float, float]] = {}
    async with app.run_test(size=size) as pilot:
        while app.facts.profile is None or not app.facts.profile.exact or app.facts.busy:
            await pilot.pause(0.1)
        table = app.screen.query_one(RowList)
        table.focus()
        await pilot.pause(0.2)
        for key in KEYS:
            samples = []
            for _ in range(presses):
                if key in ("end", "home"):
                    table.cursor = len(table.rows) // 2
                    await pilot.pause(0.05)
                wall, cpu = time.perf_counter(), time.process_time()
                await pilot.press(key)
                samples.append((time.process_time() - cpu, time.perf_counter() - wall))
            found[key] = tuple(statistics.median(column) * 1000 for column in zip(*samples, strict=True))  # type: ignore[assignment]
            print(f"{key:<10}{found[key][0]:>8.1f} ms CPU{found[key][1]:>8.1f} ms wall", flush=True)
        began = time.process_time()
        for _ in range(10 * presses):
            table.action_move(1)
            await pilot.pause(1 / 30)
        held = (time.process_time() - began) * 1000 / (10 * presses)
        print(f"{'held':<10}{held:>8.1f} ms CPU a repeat, 30 a second", flush=True)
    return found


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", default="120x40")
    parser.add_argument("--presses", type=int, default=30)
    given = parser.parse_args()
    columns, lines = (int(part) for part in given.size.split("x"))
    with tempfile.TemporaryDirectory() as home:
        os.environ["OLLAMA_TUNE_HOME"] = home
        asyncio.run(press(given.rows, (columns, lines), given.presses))


if __name__ == "__main__":
    main()
