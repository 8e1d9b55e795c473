"""The commands `export` and `verify`: from a run, or an adapter of another tool, to a proved model."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.shell import (
    Interrupted,
    end_json,
    error_object,
    has_terminal,
    interruption,
    leave,
)

if TYPE_CHECKING:
    from ollama_tune.core.export.values import Verification
    from ollama_tune.core.plan.settings import ExportSettings
    from ollama_tune.core.runs.folder import RunFolder, State
    from ollama_tune.tui.exporting import Look

TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0")
FORMS = ("merged", "adapter", "adapter_gguf")


def _forms(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[str] | None:
    """`--also` any number of times, with commas or without."""
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in FORMS]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(FORMS)}.")
    return list(dict.fromkeys(names)) or None


@click.command()
@click.argument("source", required=False, metavar="[RUN|ADAPTER_DIR]")
@click.option("--base", help="Base model of an adapter folder; default: the one it names.")
@click.option("--name", help="Name in Ollama; default: the run's.")
@click.option("--type", "gguf_type", type=click.Choice(TYPES, case_sensitive=False), help="Number format.")
@click.option("--also", multiple=True, callback=_forms, metavar="FORM", help=f"Also {', '.join(FORMS)}.")
@click.option("--system", help="A system prompt stored with the model; an empty text removes it.")
@click.option("--importance/--no-importance", default=None, help="Weigh the rounding by your own rows.")
@click.option("--push/--no-push", default=None, help="Send it to Ollama when one answers.")
@click.option("--yes", is_flag=True, help="Replace a model of that name in Ollama without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, progress to stderr.")
def export(source: str | None, base: str | None, yes: bool, as_json: bool, **options: Any) -> None:
    """Write a trained model as GGUF, prove it, and put it into Ollama.

    Takes a run (the newest when none is named), or a folder with a LoRA adapter that PEFT, Unsloth,
    LLaMA-Factory or Axolotl wrote. Exit status 0 means that the proof passed.

    \b
    Examples:
      ollama-tune export RUN --type q4_k_m
      ollama-tune export RUN --name me/kitchen:v2 --also merged,adapter_gguf
      ollama-tune export ./lora-out --base Qwen/Qwen3-4B --name kitchen
      ollama-tune export RUN --no-push --json
    """
    adopted = _is_adapter(source)
    folder = _folder(source, base, options["name"], adopted)
    try:
        found = _look(folder)
        request = _request(folder, found, options, adopted)
        _allowed(found, request, yes)
    except BaseException:
        if adopted:
            _forget(folder)
        raise
    _export(folder, request, found.size(request.type), as_json)


def _is_adapter(source: str | None) -> bool:
    """True for a folder that is no run."""
    from ollama_tune.core.paths import runs_dir

    runs = (Path(source or ""), runs_dir() / (source or ""))
    return bool(source) and runs[0].is_dir() and not any((run / "run.yaml").is_file() for run in runs)


def _folder(source: str | None, base: str | None, name: str | None, adopted: bool) -> RunFolder:
    """The named run, or a new one around an adapter folder."""
    from ollama_tune.core.runs.folder import find_run

    if adopted:
        from ollama_tune.core.export.foreign import adopt

        return adopt(Path(str(source)), base, name)
    if base is not None:
        raise UsageError(
            "--base belongs to an adapter folder, and a run knows its base.",
            "Name a folder with adapter_config.json, or leave --base out.",
        )
    return find_run(source)


def _forget(folder: RunFolder) -> None:
    """Remove the run around an adapter of which nothing came."""
    from ollama_tune.core.runs.control import delete

    with contextlib.suppress(TuneError, OSError):
        delete(folder)


def _look(folder: RunFolder) -> Look:
    from ollama_tune.core.machine.probe import probe_machine
    from ollama_tune.tui.exporting import look

    found = look(folder, probe_machine())
    if found.error is not None:
        raise found.error
    return found


def _request(folder: RunFolder, found: Look, options: dict[str, Any], adopted: bool) -> ExportSettings:
    """What was asked for last, else what is recommended, changed by the options that were given."""
    from ollama_tune.core.plan.settings import parse

    last = folder.export_settings()
    planned = last.name is not None and not adopted
    fresh = {} if planned or found.recommended is None else {"type": found.recommended.value}
    wanted = {
        "name": options["name"],
        "type": options["gguf_type"],
        "importance": options["importance"],
        "system": options["system"],
        "also": options["also"],
        "push": options["push"],
    }
    values = last.model_dump() | fresh | {key: value for key, value in wanted.items() if value is not None}
    values["system"] = values["system"] or None
    values["name"] = values["name"] or found.suggestion
    return parse({"export": values}).export


def _allowed(found: Look, request: ExportSettings, yes: bool) -> None:
    """Nothing is begun that cannot end well, and no model is replaced without a yes."""
    from ollama_tune.tui.exporting import ask_ollama, refusal, replaces

    if found.spec is not None and found.spec.export_reason:
        raise TuneError(found.spec.export_reason, "What was trained stays in the run's folder.")
    if obstacle := found.obstacle(request.type):
        raise UsageError(obstacle, "Choose another --type.")
    checks = ask_ollama(found.ollama, str(request.name), found.size(request.type)) if request.push else []
    refused = refusal(checks)
    if refused:
        raise TuneError(refused, "Mend that, or say --no-push to write the file only.")
    if yes or not replaces(checks):
        return
    if not has_terminal():
        raise UsageError(
            f"Ollama has a model called {request.name} already.",
            "Say --yes to replace it once the new one is proved, or give another --name.",
        )
    question = f"Ollama has a model called {request.name}. Replace it once the new one is proved?"
    click.confirm(question, abort=True, err=True)


def _export(folder: RunFolder, request: ExportSettings, size: int, as_json: bool) -> NoReturn:
    """Start the export, follow it, and exit with what its proof says."""
    from ollama_tune.tui.exporting import begin_export
    from ollama_tune.tui.follow import Follower, follow

    follower = Follower(lambda line: click.echo(line, err=as_json))
    seen = len(folder.events())
    begin_export(folder, request, size)
    try:
        state = follow(folder, follower, skip=seen)
    except KeyboardInterrupt as error:
        end = interruption(error, *leave(folder, True, quiet=as_json))
        if as_json:
            end_json(end.exit_code, **error_object(end), run=str(folder.path))
        raise end from None
    _report(folder, state, follower.verification, as_json)


def _report(folder: RunFolder, state: State, proof: Verification | None, as_json: bool) -> NoReturn:
    """The last lines, or the one object, and the exit status."""
    from ollama_tune.core.runs.folder import State
    from ollama_tune.tui.printing import finished_lines, proof_json

    if state is State.FINISHED and proof is not None:
        if as_json:
            end_json(exit_status(proof), **proof_json(proof), run=str(folder.path))
        for line in finished_lines(folder):
            click.echo(line)
        sys.exit(exit_status(proof))
    error = _failure(folder, state, proof)
    if as_json:
        proved = {} if proof is None else {"verification": proof.to_dict()}
        end_json(error.exit_code, **error_object(error), run=str(folder.path), **proved)
    if state is not State.FAILED:  # an error of the worker's was shown when it came
        click.echo(f"✗ {error}", err=True)
    sys.exit(error.exit_code)


def _failure(folder: RunFolder, state: State, proof: Verification | None) -> TuneError:
    from ollama_tune.core.runs.folder import State
    from ollama_tune.tui.printing import NotProved

    last = folder.events()[-1]
    if state is State.FAILED:
        kind = NotProved if proof is not None and proof.verdict == "fail" else TuneError
        return kind(str(last["what"]), str(last["fix"]))
    if state is State.STOPPED:
        return _stopped()
    return TuneError("The export ended without a word.", f"Look at {folder.log_path} and try again.")


def _stopped() -> TuneError:
    return Interrupted("The export was stopped.", "Export again when you like.")


def exit_status(proof: Verification) -> int:
    """0 where the proof passed, with or without remarks."""
    return 1 if proof.verdict == "fail" else 0


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
def verify(name: str | None, as_json: bool) -> None:
    """Show what the last export of a run proved; nothing is computed or changed.

    Exit status 0 means that the proof passed, 1 that it failed. With --json one object is printed: outcome
    (ok, warn or error), verification (every check with its figure and verdict), run.

    \b
    Examples:
      ollama-tune verify
      ollama-tune verify RUN --json
    """
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.tui.follow import card_lines
    from ollama_tune.tui.printing import proof_json, read_proof

    folder = find_run(name)
    proof = read_proof(folder)
    if as_json:
        end_json(exit_status(proof), **proof_json(proof), run=str(folder.path))
    for line in card_lines(proof):
        click.echo(line)
    sys.exit(exit_status(proof))
