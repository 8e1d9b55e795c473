"""Step 9 in plain lines: how to talk to the model, what it learned, and where everything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.exporting import use_and_share, without_export
from ollama_tune.tui.plain.export import exported, proof
from ollama_tune.tui.plain.training import rate_lines
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.compare import Sample
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "done")
SAMPLES = 3
WIDTH = 400


def ask_done(wizard: Wizard) -> None:
    """Say it; `n` begins a new run."""
    from ollama_tune.tui.plain.wizard import Anew

    talk, folder = wizard.talk, wizard.run_folder()
    talk.say(*_use_lines(folder), *_place_lines(folder), *learned_lines(folder))
    while True:
        talk.hint("Enter ends this program, n begins a new run.")
        answer = talk.ask("Done", "end", TOPIC).lower()
        if not answer:
            return
        if answer == "n":
            raise Anew
        talk.say("✗ Press Enter, or type n.")


def _use_lines(folder: RunFolder) -> list[str]:
    """What to type now."""
    done = exported(folder)
    if done is None:
        waits = "The model is trained; there is no file for Ollama yet. b goes back to Export."
        obstacle = export_obstacle(folder.settings())
        return [obstacle, *(f"  {command}" for command in without_export(folder))] if obstacle else [waits]
    name = done.get("ollama_name")
    use, share = use_and_share([str(command) for command in done.get("commands") or []])
    use = use or ([f"ollama run {name}"] if name else [])
    where = f"{one_line(str(name).removesuffix(':latest'), 80)} is in Ollama. Talk to it with:"
    lines = [f"✓ {where}" if name else "✓ The model file is ready. Where Ollama runs, type:"]
    lines += [f"  {visible(command)}" for command in use]
    return [*lines, *(["To share it:"] if share else []), *(f"  {visible(command)}" for command in share)]


def _place_lines(folder: RunFolder) -> list[str]:
    """Where everything is."""
    proved = proof(folder)
    file = [f"Model file: {folder.export.name}/{one_line(proved.file, 120)} in it."] if proved else []
    done, away = exported(folder), []
    if done is not None and not done.get("ollama_name"):
        away = [f"Is Ollama on another computer? Copy {folder.export.name} there, and use its Modelfile."]
    return [f"Everything is in the folder {tilde(folder.path)}", *file, *away]


def learned_lines(folder: RunFolder) -> list[str]:
    """The rates before and after, then a few answers of both models."""
    from ollama_tune.core.evaluate.compare import compare

    figures, lines = compare(folder.events()), rate_lines(folder)
    for sample in figures.samples[:SAMPLES]:
        lines += _sample_lines(sample)
    return lines or ["Nothing was measured: no rows were held out."]


def _sample_lines(sample: Sample) -> list[str]:
    from ollama_tune.core.evaluate.metrics import exact_match

    lines = [f"Question: {one_line(sample.prompt, WIDTH)}"]
    for name, answer in (("before", sample.base), ("after", sample.tuned)):
        if answer is not None:
            verdict = "right" if exact_match(answer, sample.reference) else "not right"
            lines.append(f"  {name}, {verdict}: {one_line(answer, WIDTH) or '(nothing)'}")
    return lines
