"""Plans and runs as plain lines and as JSON."""

from __future__ import annotations

import datetime
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.values import Verification
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.settings import field_paths
from ollama_tune.core.plan.values import MemoryEstimate, Offer, Plan, WorkEstimate
from ollama_tune.core.runs.folder import ALIVE, RunFolder, State
from ollama_tune.core.runs.trials import words
from ollama_tune.core.text import human_bytes, human_estimate, one_line, visible
from ollama_tune.tui.exporting import fails_in_ollama_only, use_and_share
from ollama_tune.tui.run_summary import ListedRun, folder_size, read_runs
from ollama_tune.tui.shell import error_object

EXPORT_AGAIN = "Do not use the file: export again with another type."


def plan_lines(plan: Plan) -> list[str]:
    """Every setting with its reason and the reason's source, then memory, time, disk, offers and warnings."""
    lines = []
    for path in field_paths():
        choice = plan.choices.get(path)
        why = f"{choice.reason} [{choice.source}]" if choice else ""
        reason = "yours" if path in plan.changed else why
        lines.append(
            f"{path:<38} {one_line(_words(plan.settings.get(path)), 24):<24} {visible(reason)}".rstrip()
        )
    lines += ["", *_memory_lines(plan.memory), *_work_lines(plan.work)]
    return [*lines, *_offer_lines(plan.offers), *(f"! {visible(warning)}" for warning in plan.warnings)]


def _memory_lines(memory: MemoryEstimate) -> list[str]:
    verdict = "fits" if memory.fits else "does NOT fit"
    parts = ", ".join(f"{part.name} {human_bytes(part.bytes)}" for part in memory.parts if part.bytes)
    figures = f"{human_bytes(memory.needed)} of {human_bytes(memory.free)}"
    each = f", each of {memory.processes}" * (memory.processes > 1 and memory.device == "cuda")
    return [
        *([f"trained {memory.together}"] if memory.together else []),
        f"memory on {memory.device}{each}: {figures}: {verdict}",
        f"  {parts} ({_layer(memory)})",
    ]


def _layer(memory: MemoryEstimate) -> str:
    return visible(f"{memory.method}; {memory.remark}" if memory.remark else memory.method)


def confirmed_lines(asked: Plan, made: Plan) -> list[str]:
    """What the simulation says of a plan that was printed already: its memory, and what is new in it."""
    memory = made.memory
    if memory.parts == asked.memory.parts:
        return [f"not simulated: {visible(memory.remark)}"]
    warnings = [f"! {visible(warning)}" for warning in made.warnings if warning not in asked.warnings]
    offers = _offer_lines(made.offers) if made.offers != asked.offers else []
    return ["", *_memory_lines(memory), *offers, *warnings]


def _work_lines(work: WorkEstimate) -> list[str]:
    low, high = human_estimate(work.seconds / work.spread), human_estimate(work.seconds * work.spread)
    energy = "" if work.energy_kwh is None else f", at most {work.energy_kwh:.2g} kWh on the GPU"
    download = f", {human_bytes(work.download_bytes)} to download" if work.download_bytes else ""
    ollama = f", {human_bytes(work.ollama_bytes)} in Ollama" if work.ollama_bytes else ""
    return [
        f"time: {work.steps:,} steps, about {human_estimate(work.seconds)}, between {low} and {high}{energy}",
        f"  {work.ground}",
        f"disk: {human_bytes(work.checkpoint_bytes)} checkpoints, "
        f"{human_bytes(work.export_bytes)} export{download}{ollama}",
    ]


def _offer_lines(offers: Sequence[Offer]) -> list[str]:
    """Each way out with the options that take it."""
    lines = ["what would fit:"] if offers else []
    for offer in offers:
        lines.append(f"  {visible(offer.text)} ({human_bytes(offer.memory.needed)})")
        lines.append(f"    {' '.join(_option(path, value) for path, value in offer.changes.items())}")
    return lines


def _words(value: Any) -> str:
    """A value for a person; a dash where nothing is set."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def _option(path: str, value: Any) -> str:
    if path == "model.source":
        return f"--model {shlex.quote(str(value))}"
    return f"--set {path}={json.dumps(value).strip(chr(34))}"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes, seconds and kWh as numbers.

    `settings` is what a run.yaml holds. `choices` tells value, reason and source of every recommended field
    by its dotted path; a field that is missing there was set by the person. `memory` is the predicted peak
    with its parts. `work` is time, disk and energy; the time lies between seconds / spread and seconds x
    spread. `offers` are values to set so that it fits. Keys may be added, none is taken away or changed.
    """
    memory, work = plan.memory, plan.work
    return {
        "version": 1,
        "settings": plan.settings.model_dump(),
        "choices": {path: vars(choice) for path, choice in plan.choices.items()},
        "changed": sorted(plan.changed),
        "memory": _memory_json(memory),
        "work": vars(work),
        "offers": [
            {"changes": dict(offer.changes), "text": offer.text, "memory": _memory_json(offer.memory)}
            for offer in plan.offers
        ],
        "warnings": list(plan.warnings),
    }


def _memory_json(memory: MemoryEstimate) -> dict[str, Any]:
    return {
        "device": memory.device,
        "needed_bytes": memory.needed,
        "free_bytes": memory.free,
        "total_bytes": memory.total,
        "fits": memory.fits,
        "parts": {part.name: part.bytes for part in memory.parts},
        "method": memory.method,
        "remark": memory.remark,
        "processes": memory.processes,
        "sharded": memory.sharded,
    }


def run_rows() -> list[dict[str, Any]]:
    """All runs for the list, newest first; a run whose settings cannot be read is listed too.

    `advice` is the coach's verdict on the curves (`kind`, `sign`, `sentence`, `advice`), or null. Bytes and
    Unix times are numbers. Keys may be added, none is taken away or changed.
    """
    return [_run_row(run) for run in read_runs()]


def _run_row(run: ListedRun) -> dict[str, Any]:
    summary = run.summary
    return {
        "name": run.name,
        "state": run.state.value,
        "stage": summary.stage,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "loss": summary.loss,
        "validation_loss": summary.validation_loss,
        "best_loss": summary.best_loss,
        "best_step": summary.best_step,
        "exact_match_before": summary.before,
        "exact_match_after": summary.after,
        "advice": asdict(summary.advice) if summary.advice else None,
        "ollama_name": summary.name or None,
        "model": run.model(),
        "trial": asdict(run.trial) if run.trial else None,
        "updated": summary.updated,
        "size_bytes": folder_size(run.folder.path),
        "path": str(run.folder.path),
    }


def run_json(folder: RunFolder) -> dict[str, Any]:
    """Which run a command was about and how it is now, for programs."""
    status = folder.status()
    return {
        "outcome": "ok",
        "run": folder.name,
        "path": str(folder.path),
        "state": status.state.value,
        "stage": status.stage,
    }


RUN = 36
"""Cells for the name of a run: with the other columns, what a window of 80 has."""


def runs_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The list of runs as a table; the loss is the best one on the held-out rows."""
    if not rows:
        return ["There is no run yet. Start one with `ollama-tune` or `ollama-tune demo`."]
    lines = [f"{'run':<{RUN}} {'state':<15} {'loss':>8} {'size':>10}"]
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["trial"]:
            sweeps.setdefault(row["trial"]["sweep"], []).append(row)
    for row in rows:
        if not row["trial"]:
            lines += _run_lines(row)
        elif trials := sweeps.pop(row["trial"]["sweep"], []):
            lines += _sweep_lines(row["trial"]["sweep"], trials)
    return lines


def _best_loss(row: dict[str, Any]) -> float | None:
    loss: float | None = row["loss"] if row["best_loss"] is None else row["best_loss"]
    return loss


def _row_line(row: dict[str, Any], name: str) -> str:
    best = _best_loss(row)
    loss = "-" if best is None else f"{best:.4f}"
    return f"{name:<{RUN}} {row['state']:<15} {loss:>8} {human_bytes(row['size_bytes']):>10}"


def _step(row: dict[str, Any]) -> str:
    return f"step {row['step']:,} of {row['total_steps']:,}, " if row["total_steps"] else ""


def _run_lines(row: dict[str, Any]) -> list[str]:
    moment = datetime.datetime.fromtimestamp(row["updated"]) if row["updated"] else None
    when = moment.strftime("%Y-%m-%d %H:%M") if moment else "-"
    lines = [
        _row_line(row, one_line(row["name"], RUN)),
        f"    {when}  {_step(row)}{one_line(row['model'], 40)}",
    ]
    if row["advice"]:
        lines.append(f"    {row['advice']['sign']} {row['advice']['sentence']}")
    return lines


def _sweep_lines(sweep: str, rows: list[dict[str, Any]]) -> list[str]:
    """The runs of a sweep, the best first, and how those that ended on the way are deleted at once."""
    known = {row["name"]: _best_loss(row) for row in rows}
    losses = {name: math.inf if loss is None else loss for name, loss in known.items()}
    rows = sorted(rows, key=lambda row: (row["state"] != State.FINISHED.value, losses[row["name"]]))
    size = human_bytes(sum(row["size_bytes"] for row in rows))
    several = f"{len(rows)} runs" if len(rows) > 1 else "1 run"
    lines = [f"Sweep {sweep}, {several}, {size}:"]
    for row in rows:
        tried = one_line(words(row["trial"]["values"]), 60)
        lines += [_row_line(row, f"  {one_line(row['name'], RUN - 2)}"), f"    {_step(row)}{tried}"]
    states = {State(row["state"]) for row in rows}
    if states != {State.FINISHED} and not states.intersection(ALIVE):
        lines.append(f"  `ollama-tune delete {sweep}` removes all that did not come to their end.")
    return lines


def read_proof(folder: RunFolder) -> Verification:
    """What the last export of a run proved, as it was stored."""
    path = folder.export / "verification.json"
    try:
        return Verification.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        command = f"`ollama-tune export {folder.name}`"
        raise UsageError(f"{folder.name} has no export yet.", f"Make one with {command}.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TuneError(f"{path} cannot be read.", "Export the run again.", details=str(error)) from error


class NotProved(TuneError):
    """An export whose proof failed."""

    code = "not_proved"


def proof_json(proof: Verification) -> dict[str, Any]:
    """A proof for programs: `outcome` is `ok`, `warn` or `error`; a failed one says what to do."""
    if proof.verdict != "fail":
        return {"outcome": "ok" if proof.verdict == "pass" else "warn", "verification": proof.to_dict()}
    failed = ", ".join(check.name for check in proof.checks if check.verdict == "fail")
    there = fails_in_ollama_only(proof)
    what = f"The {'model in Ollama' if there else 'exported file'} failed its proof ({failed})."
    fix = "Update Ollama and export again." if there else EXPORT_AGAIN
    told = error_object(NotProved(what, fix))
    return told | {"verification": proof.to_dict()}


def finished_lines(folder: RunFolder) -> list[str]:
    """What a finished run leaves and the next commands."""
    last = folder.events()[-1]
    lines, shared = use_and_share([visible(str(command)) for command in last.get("commands", [])])
    if last["stage"] == "train":
        obstacle = export_obstacle(folder.settings())
        next_step = obstacle or f"Export it with `ollama-tune export {folder.name}`."
        tuned = folder.tuned or folder.adapter
        lines.append(f"{tuned.name.capitalize()}: {tuned}. {next_step}")
    if shared:
        lines.append(f"To share it: {'; '.join(shared)}")
    return [*lines, f"Everything is in {folder.path}."]
