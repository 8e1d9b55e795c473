"""From a finished GGUF file to a model in Ollama that replaces an old one only when it works."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ollama import OllamaClient, Status, same_name
from ollama_tune.core.export.values import ExportStopped, Progress, Stopped
from ollama_tune.core.export.wire import KEPT
from ollama_tune.core.plan.names import check_ollama_name

UNLOADING = 10.0
"""Seconds in which a server should have dropped the tried model from memory."""
AFTER_STOP = 0.7


@dataclass(frozen=True)
class Recipe:
    """What the server is told besides the file; nothing else is set, above all no sampling values."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Published:
    """The full name the model got, and whether its test copy has left the server's memory."""

    name: str
    unloaded: bool


def publish(
    client: OllamaClient,
    name: str,
    file: Path,
    digest: str,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    on_status: Status | None = None,
    stopped: Stopped | None = None,
    check: Callable[[str], None] | None = None,
) -> Published:
    """Upload, create under a temporary name, let `check` try that, and only then give it its name.

    Whatever fails, a model that had the name before is untouched, and the temporary one is unloaded and
    deleted.
    """
    full = check_ollama_name(name)
    client.push_blob(file, digest, progress, stopped)
    temporary = temporary_name(full)
    try:
        client.create(
            temporary,
            {"model.gguf": digest},
            recipe.parameters,
            on_status,
            stopped,
            template=recipe.template,
            system=recipe.system,
        )
        if check is not None:
            check(temporary)
        client.copy(temporary, full)
    except ExportStopped:
        _remove_soon(client, temporary)
        raise
    except BaseException:
        _remove(client, temporary)
        raise
    unloaded = _remove(client, temporary)
    if not any(same_name(listed, full) for listed in client.names()):
        raise TuneError(
            f"Ollama took {full} but does not list it.", f"Look at its log and export again; {KEPT}"
        )
    return Published(full, unloaded)


def temporary_name(full: str) -> str:
    """A name beside the final one, by its tag. Always the same, so that what a server made after a
    stop (before 0.34.1 it does not notice that the client left) is replaced by the next export."""
    rest, _, tag = full.rpartition(":")
    return f"{rest}:{tag[:60]}-unfinished"


def _remove(client: OllamaClient, temporary: str) -> bool:
    """Unload and delete; True when the memory is free. Failures here must not hide the one that led here,
    and a model never made cannot be deleted."""
    unloaded = False
    with contextlib.suppress(TuneError):
        unloaded = client.unload(temporary, UNLOADING)
    with contextlib.suppress(TuneError):
        client.delete(temporary)
    return unloaded


def _remove_soon(client: OllamaClient, temporary: str) -> None:
    """The same after a stop, which must not wait for a server that has stalled."""

    def delete() -> None:
        with contextlib.suppress(TuneError, RuntimeError):  # the client may be closed by then
            client.unload(temporary)
            client.delete(temporary)

    thread = threading.Thread(target=delete, daemon=True)
    thread.start()
    thread.join(AFTER_STOP)
