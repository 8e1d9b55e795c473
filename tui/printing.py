"""Plans and runs as plain lines and as JSON."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import field_paths
from ollama_tune.core.plan.values import Plan
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes, human_seconds, one_line, visible


def plan_lines(plan: Plan) -> list[str]:
    """Every setting with its reason, then memory, time and warnings."""
    lines = []
    for path in field_paths():
        choice = plan.choices.get(path)
        reason = "yours" if path in plan.changed else choice.reason if choice else ""
        lines.append(
            f"{path:<38} {one_line(str(plan.settings.get(path)), 24):<24} {visible(reason)}".rstrip()
        )
    memory, work = plan.memory, plan.work
    verdict = "fits" if memory.fits else "does NOT fit"
    parts = ", ".join(f"{part.name} {human_bytes(part.bytes)}" for part in memory.parts)
    lines += [
        "",
        f"memory on {memory.device}: {human_bytes(memory.needed)} of {human_bytes(memory.free)}: {verdict}",
        f"  {parts} ({memory.method})",
        f"time: {work.steps:,} steps, about {human_seconds(work.seconds)} ({work.ground})",
        f"disk: {human_bytes(work.checkpoint_bytes)} checkpoints, {human_bytes(work.export_bytes)} export",
    ]
    return lines + [f"! {warning}" for warning in plan.warnings]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes and seconds as numbers."""
    memory, work = plan.memory, plan.work
    return {
        "settings": plan.settings.model_dump(),
        "choices": {
            path: {"value": choice.value, "reason": choice.reason, "source": choice.source}
            for path, choice in plan.choices.items()
        },
        "memory": {
            "device": memory.device,
            "needed_bytes": memory.needed,
            "free_bytes": memory.free,
            "fits": memory.fits,
            "parts": {part.name: part.bytes for part in memory.parts},
            "method": memory.method,
        },
        "work": {"steps": work.steps, "tokens": work.tokens, "seconds": work.seconds, "ground": work.ground},
        "warnings": list(plan.warnings),
    }


def run_row(folder: RunFolder) -> dict[str, Any]:
    """One run for the list; a run whose settings cannot be read is listed too."""
    status = folder.status()
    try:
        model = folder.settings().model.source
    except TuneError:
        model = "?"
    return {
        "name": folder.name,
        "state": status.state.value,
        "stage": status.stage,
        "step": status.step,
        "total_steps": status.total_steps,
        "loss": status.loss,
        "validation_loss": status.validation_loss,
        "model": model,
        "updated": status.updated,
        "path": str(folder.path),
    }


def runs_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The list of runs as a table."""
    if not rows:
        return ["There is no run yet. Start one with `ollama-tune` or `ollama-tune demo`."]
    lines = [f"{'run':<40} {'state':<16} {'step':>13} {'loss':>8} {'when':<16} model"]
    for row in rows:
        step = f"{row['step']:,}/{row['total_steps']:,}" if row["total_steps"] else "-"
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        moment = datetime.datetime.fromtimestamp(row["updated"]) if row["updated"] else None
        when = moment.strftime("%Y-%m-%d %H:%M") if moment else "-"
        name, model = one_line(row["name"], 40), one_line(row["model"], 40)
        lines.append(f"{name:<40} {row['state']:<16} {step:>13} {loss:>8} {when:<16} {model}")
    return lines


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def finished_lines(folder: RunFolder) -> list[str]:
    """What a finished run leaves and the next commands."""
    last = folder.events()[-1]
    lines = [visible(str(command)) for command in last.get("commands", [])]
    if last["stage"] == "train":
        lines.append(f"Adapter: {folder.adapter}. Export it with `ollama-tune export {folder.name}`.")
    return [*lines, f"Everything is in {folder.path}."]
