"""What is known before an export: the model, the box, the types, and the way to Ollama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import DISK_FULL, SMALLER, SPARE, disk_full, require_room
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.export.values import Check, Verification
    from ollama_tune.core.machine.values import Machine, OllamaStatus
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.gguf_types import TypeOffer
    from ollama_tune.core.plan.settings import ExportSettings, GgufType
    from ollama_tune.core.plan.values import Choice

FREE_SECONDS = 10.0
SHARING = (["ollama", "signin"], ["ollama", "cp"], ["ollama", "push"])


@dataclass(frozen=True)
class Look:
    """One look before an export; `error` says why the base model could not be read.

    `offers` is what each type costs on this box, `recommended` the best of them with its reason.
    """

    ollama: OllamaStatus
    spec: ModelSpec | None = None
    suggestion: str = ""
    offers: Mapping[GgufType, TypeOffer] = field(default_factory=dict)
    recommended: Choice | None = None
    error: TuneError | None = None

    def size(self, gguf_type: GgufType) -> int:
        """Bytes of the file in that type; 0 while the model is not known."""
        return self.offers[gguf_type].bytes if gguf_type in self.offers else 0

    def obstacle(self, gguf_type: GgufType) -> str:
        """Why that type cannot be written on this box, in a sentence; empty where it can."""
        if gguf_type not in self.offers or self.offers[gguf_type].available:
            return ""
        return f"{gguf_type} needs llama.cpp's quantizer (xllamacpp or libgguf), and none is installed here."


def without_export(folder: RunFolder) -> list[str]:
    """The commands that answer with what was trained, for a run whose result cannot be exported."""
    return [f"ollama-tune {verb} {folder.name}" for verb in ("chat", "evaluate")]


def look(folder: RunFolder, machine: Machine) -> Look:
    """Read the run's base model and say what each type means on this box; slow, so only from a thread."""
    from ollama_tune.core.models.describe import describe
    from ollama_tune.core.plan.exportable import export_obstacle
    from ollama_tune.core.plan.gguf_types import serving_context, type_offers
    from ollama_tune.core.plan.names import suggest_name
    from ollama_tune.core.plan.rules import export_type

    try:
        settings = folder.settings()
        spec = describe(settings.model.source, settings.model.revision)
    except TuneError as error:
        return Look(machine.ollama, error=error)
    spec = replace(spec, export_reason=export_obstacle(settings) or spec.export_reason)
    context = serving_context(settings, spec)
    return Look(
        machine.ollama,
        spec,
        suggest_name(spec, settings.data.path),
        type_offers(spec, machine, context),
        export_type(spec, machine, context),
    )


def ask_ollama(status: OllamaStatus, name: str, size: int) -> list[Check]:
    """What the server that answered says of a model of that name and size; empty without a server."""
    from ollama_tune.core.export.preflight import preflight

    return preflight(status.url, name, size) if status.reachable else []


def replaces(checks: Sequence[Check]) -> bool:
    """True when Ollama has a model of that name."""
    return any(check.name == "ollama name" and check.verdict == "warn" for check in checks)


def refusal(checks: Sequence[Check]) -> str:
    """The first reason not to send anything to this server, in a sentence; empty where there is none."""
    return next((check.text for check in checks if check.verdict == "fail"), "")


def remarks(request: ExportSettings) -> list[str]:
    """What should be known before a long run that ends in Ollama: an old model of that name, a full disk."""
    from ollama_tune.core.machine.ollama import read_ollama

    if request.name is None or not request.push:
        return []
    checks = ask_ollama(read_ollama(), request.name, 0)
    return [one_line(check.text, 240) for check in checks if check.verdict in ("warn", "fail")]


def fails_in_ollama_only(proof: Verification) -> bool:
    """True where the file is proved and only the model that Ollama made of it is not."""
    failed = [check.name for check in proof.checks if check.verdict == "fail"]
    return bool(failed) and all(name.startswith("ollama") for name in failed)


def use_and_share(commands: Sequence[str]) -> tuple[list[str], list[str]]:
    """What to type to talk to the model, and what to type to put it into a registry."""
    shared = [command for command in commands if command.split()[:2] in SHARING]
    return [command for command in commands if command not in shared], shared


def begin_export(folder: RunFolder, request: ExportSettings, size: int) -> None:
    """Write the request into the run's folder and start a worker on it; a training one may just be ending.

    Raises `BusyError` where a worker goes on, for which no other request may be left behind, and `TuneError`
    where it cannot be, or where the disk has no room for a file of `size` bytes.
    """
    from ollama_tune.core.runs.control import wait_until_free
    from ollama_tune.core.runs.folder import write_export_request
    from ollama_tune.core.runs.launch import busy, start

    require_room(folder.path, size + SPARE, SMALLER)
    if not wait_until_free(folder, FREE_SECONDS):
        raise busy(folder)
    try:
        write_export_request(folder, request.model_dump())
        start(folder, "export")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full(folder.path, size + SPARE, SMALLER) from error
        what = f"The export could not be asked for: {error.strerror}."
        raise TuneError(what, f"Make {folder.path} writable and export again.") from error
