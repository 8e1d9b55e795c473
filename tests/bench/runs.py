"""What the list of runs costs: CPU seconds until every line and every size is there.

OLLAMA_TUNE_HOME=FOLDER python -m tests.bench.runs [--make 100 --from events.jsonl]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from pathlib import Path

from textual.widgets import OptionList

from ollama_tune.core.paths import cache_dir, runs_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import create_run
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.screens.runs import RunsScreen
from ollama_tune.tui.state import WizardState


def make_runs(count: int, log: Path) -> None:
    """That many finished runs with this log and a few files."""
    for number in range(count):
        folder = create_run(Settings(), f"model-{number}")
        shutil.copyfile(log, folder.events_path)
        for name in ("adapter/adapter_model.safetensors", "checkpoints/100/state.pt"):
            path = folder.path / name
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(100_000))


async def open_list() -> tuple[float, float, int]:
    """CPU seconds until the list is whole and until the sizes are there, and how many runs it has."""
    app = TuneApp(Start(WizardState()), warm=False)
    app.read_everything = lambda: None  # type: ignore[method-assign]
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        began = time.process_time()
        screen = app.runs_screen()
        assert isinstance(screen, RunsScreen)
        await app.push_screen(screen)
        while not screen._read:
            await asyncio.sleep(0.005)
        await pilot.pause()
        whole = time.process_time() - began
        while any(run.size is None for run in screen._runs):
            await asyncio.sleep(0.005)
        await pilot.pause()
        return whole, time.process_time() - began, screen.query_one(OptionList).option_count


def main() -> None:
    """Without a cache once, then with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", type=int, default=0)
    parser.add_argument("--from", dest="log", type=Path)
    given = parser.parse_args()
    if given.make:
        make_runs(given.make, given.log)
    (cache_dir() / "runs.json").unlink(missing_ok=True)
    print(f"runs in {runs_dir()}")
    for label in ("every log read", "from the cache", "from the cache"):
        whole, sized, count = asyncio.run(open_list())
        print(f"{label}: {count} runs, {whole:.3f} s CPU until the list, {sized:.3f} s until the sizes")


if __name__ == "__main__":
    main()
