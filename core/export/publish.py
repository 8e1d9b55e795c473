"""From a finished GGUF file to a model in Ollama that replaces an old one only when it works."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ollama import OllamaClient, Progress, Status
from ollama_tune.core.export.wire import KEPT
from ollama_tune.core.plan.names import check_ollama_name


class Generation(Enum):
    """What a server can do, by its version."""

    TOO_OLD = "before 0.5.5: no create from files"
    GO_TEMPLATES = "0.5.5 to 0.24: ignores the chat template in a GGUF file"
    CONVERTING = "0.30.0 to 0.34.0: uses the file's template, rewrites the file"
    CURRENT = "0.34.1 and newer: uses the file's template, stores the file as it is"


def generation(version: str) -> Generation:
    """The generation of a version such as `0.34.4` or `0.30.0-rc2`; unknown ones count as current."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    number = tuple(int(part) for part in found.groups()) if found else (0, 0, 0)
    if number == (0, 0, 0) or number >= (0, 34, 1):
        return Generation.CURRENT
    if number < (0, 5, 5):
        return Generation.TOO_OLD
    return Generation.GO_TEMPLATES if number < (0, 30, 0) else Generation.CONVERTING


def require_supported(client: OllamaClient) -> Generation:
    """The server's generation; `TuneError` where an exported model could not chat there."""
    version = client.version()
    found = generation(version)
    if found in (Generation.TOO_OLD, Generation.GO_TEMPLATES):
        raise TuneError(
            f"Ollama {version} does not use the chat template of an imported model.",
            f"Update Ollama to 0.30 or newer and export again; {KEPT}",
        )
    return found


def publish(
    client: OllamaClient,
    name: str,
    file: Path,
    digest: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    on_status: Status | None = None,
    stopped: Callable[[], bool] | None = None,
    check: Callable[[str], None] | None = None,
) -> str:
    """Upload, create under a temporary name, let `check` try that, and only then give it its name.

    Returns the full name. Whatever fails, a model that had the name before is untouched, and the
    temporary one is unloaded and deleted.
    """
    full = check_ollama_name(name)
    require_supported(client)
    client.push_blob(file, digest, progress, stopped)
    temporary = temporary_name(full)
    try:
        client.create(temporary, {"model.gguf": digest}, parameters, on_status, stopped)
        if check is not None:
            check(temporary)
        client.copy(temporary, full)
    finally:
        _remove(client, temporary)
    return full


def temporary_name(full: str) -> str:
    """A name beside the final one, by its tag. Always the same, so that what a server made after a
    stop (before 0.34.1 it does not notice that the client left) is replaced by the next export."""
    rest, _, tag = full.rpartition(":")
    return f"{rest}:{tag[:60]}-unfinished"


def _remove(client: OllamaClient, temporary: str) -> None:
    """Failures here must not hide the one that led here; a model never made cannot be deleted."""
    for step in (client.unload, client.delete):
        with contextlib.suppress(TuneError):
            step(temporary)
