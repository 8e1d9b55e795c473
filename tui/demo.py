"""`ollama-tune demo`: the whole job on the bundled model and data, and what it proved."""

from __future__ import annotations

import shutil
import time
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.compare import compare
from ollama_tune.core.runs.folder import RunFolder, State, create_run
from ollama_tune.core.text import human_bytes, human_seconds
from ollama_tune.tui.follow import Follower, Print, follow, sample_lines
from ollama_tune.tui.printing import NotProved
from ollama_tune.tui.shell import error_object, interruption, leave

GOAL = 0.9


def run_demo(out: Print) -> tuple[int, dict[str, Any]]:
    """Train, measure before and after, export and prove.

    Returns the exit status, 0 only if all of it holds, and the figures for programs.
    """
    from ollama_tune.core.plan.prepare import prepare
    from ollama_tune.core.runs.launch import start

    began = time.monotonic()
    out("ollama-tune demo: teach the bundled model the kitchen's tickets, on this box.")
    plan = prepare("bundled", "bundled", {})
    settings = plan.settings
    for path in ("training.device", "training.rank", "training.learning_rate", "training.epochs"):
        choice = plan.choices.get(path)
        out(f"  {path.split('.')[1]:<14} {settings.get(path)!s:<12} {choice.reason if choice else ''}")
    out(f"  memory         {human_bytes(plan.memory.needed)} needed, {human_bytes(plan.memory.free)} free")
    folder = create_run(settings, "demo")
    out(f"Run folder: {folder.path}")
    follower = Follower(out)
    try:
        start(folder, "all")
        state = follow(folder, follower)
    except KeyboardInterrupt as interrupted:
        raise interruption(interrupted, *leave(folder, True)) from None
    seconds = time.monotonic() - began
    error, values = _report(folder, follower, state, seconds, out)
    told = error_object(error) if error else {"outcome": "ok"}
    return int(error is not None), told | {"run": folder.name, "path": str(folder.path)} | values


def _report(
    folder: RunFolder, follower: Follower, state: State, seconds: float, out: Print
) -> tuple[TuneError | None, dict[str, Any]]:
    """Print what came of it; returns what did not hold, and the figures."""
    if state is not State.FINISHED or "train" not in follower.done:
        error = TuneError(f"The demo did not finish ({state.value}).", folder.status().message)
        out(f"✗ {error}")
        return error, {"seconds": seconds}
    figures = compare(folder.events())
    before, after = figures.base.exact_match or 0.0, figures.tuned.exact_match or 0.0
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    out("")
    for line in sample_lines(figures.samples[:3], width):
        out(line)
    out("")
    out(f"Held-out orders answered exactly: {before:.1%} before, {after:.1%} after.")
    proved = follower.verification is not None and follower.verification.verdict in ("pass", "warn")
    for command in follower.done["export"].get("commands", []) if "export" in follower.done else []:
        out(f"  {command}")
    out(f"Everything is in {folder.path} ({human_seconds(seconds)}).")
    values = {
        "seconds": seconds,
        "exact_match_before": before,
        "exact_match_after": after,
        "proved": proved,
    }
    if after < GOAL or not proved:
        goal = f"the goal is {GOAL:.0%} after training and an export that passes every check"
        out(f"✗ Not proved: {goal}.")
        return NotProved(f"Not proved: {goal}.", f"Look at the events in {folder.path}."), values
    out("✓ Proved: the model learned what it did not know, and the exported file is that model.")
    return None, values
