"""What can be known of an Ollama server before any work: its version, the name, the room on its disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.values import Check
from ollama_tune.core.machine.generations import DEVELOPMENT, Generation, generation, number_of
from ollama_tune.core.machine.ollama import is_local
from ollama_tune.core.plan.names import check_ollama_name
from ollama_tune.core.text import human_bytes

SERVICE_MODELS = "/usr/share/ollama/.ollama/models"
"""Where Ollama's Linux service keeps its models: in the home of a user of its own."""
ROOM = "Make room (`ollama ls` shows the models, `ollama rm NAME` removes one)"
ASKED = 3
PATIENCE = 3.0
"""Seconds for each answer; the wizard waits for them."""


def preflight(url: str, name: str, size: int) -> list[Check]:
    """What stands in the way of a model of `size` bytes called `name` on the server at `url`.

    Checks "ollama version", "ollama name" and "ollama disk": `fail` is a reason not to begin, `warn` is to
    be shown, `skipped` could not be learned. Never raises; takes at most a few seconds.
    """
    try:
        named = _named(name)
    except UsageError as error:
        return [Check("ollama name", "fail", "not allowed", str(error))]
    try:
        with OllamaClient(url, PATIENCE) as client:
            version = client.version()
            found = generation(version)
            checks = [_version(version, found)]
            if found.usable:
                checks += [_replacing(client, named), _disk(client, found, size)]
            return checks
    except UsageError as error:
        return [named, Check("ollama version", "fail", "no address", str(error))]
    except TuneError as error:
        return [named, Check("ollama version", "skipped", "no answer", str(error))]


def _named(name: str) -> Check:
    full = check_ollama_name(name)
    tag = full.rpartition(":")[2].lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise UsageError(f"Ollama takes {full} for a model in its cloud.", "Choose another tag.")
    return Check("ollama name", "pass", full, "The name is one that Ollama takes.")


def _version(version: str, found: Generation) -> Check:
    if not found.usable:
        text = f"This Ollama {found.text}. Update it to 0.30 or newer."
        return Check("ollama version", "fail", version, text)
    if number_of(version) == DEVELOPMENT:
        return Check("ollama version", "warn", version, "A build of one's own; treated as the newest.")
    return Check("ollama version", "pass", version, f"This Ollama {found.text}.")


def _replacing(client: OllamaClient, named: Check) -> Check:
    if not client.exists(named.figure):
        return named
    text = f"{named.figure} exists and is replaced once the new one has passed its checks."
    return Check("ollama name", "warn", "exists", text)


def _disk(client: OllamaClient, found: Generation, size: int) -> Check:
    need = size * found.copies
    free = free_space(client)
    data = {"need": need, "free": free}
    if free is None:
        text = "How much room the server has cannot be seen from here; it needs " + human_bytes(need) + "."
        return Check("ollama disk", "skipped", "unknown", text, data)
    twice = " (twice the file: this version rewrites it)" if found.copies > 1 else ""
    text = f"The model needs {human_bytes(need)}{twice} of {human_bytes(free)} free on Ollama's disk."
    if need > free:
        return Check("ollama disk", "fail", "too little", f"{text} {ROOM} or choose a smaller type.", data)
    return Check("ollama disk", "pass", human_bytes(need), text, data)


def require_room(client: OllamaClient, found: Generation, digest: str, size: int) -> None:
    """`TuneError` where the server's disk is known to be too small; a file that is there needs no room."""
    copies = found.copies - (1 if client.has_blob(digest) else 0)
    free = free_space(client) if copies else None
    if free is not None and copies * size > free:
        twice = " (twice the file: this version rewrites it)" if copies > 1 else ""
        raise TuneError(
            f"The disk of Ollama has {human_bytes(free)} free; the model needs "
            f"{human_bytes(copies * size)}{twice}.",
            f"{ROOM} or export a smaller type; the GGUF file is kept.",
        )


def free_space(client: OllamaClient) -> int | None:
    """Free bytes of the disk on which a local server keeps its models; None where that cannot be seen.

    What the server shows comes first; a folder it shows that is none here lies in a container. Without
    any model the usual places are looked at.
    """
    if not is_local(client.url):
        return None
    shown = _shown_folder(client)
    free = (_free(folder) for folder in ([shown] if shown else _usual_folders()))
    return next((found for found in free if found is not None), None)


def _free(folder: Path) -> int | None:
    """Free bytes at a folder; one that may not be entered is judged by the folder it lies in."""
    try:
        return shutil.disk_usage(folder).free
    except PermissionError:
        return _free(folder.parent)
    except (OSError, ValueError):
        return None


def _usual_folders() -> list[Path]:
    named = os.environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    return [*([Path(named)] if named else []), Path(SERVICE_MODELS), Path.home() / ".ollama" / "models"]


def _shown_folder(client: OllamaClient) -> Path | None:
    for name in client.names()[:ASKED]:
        with contextlib.suppress(TuneError):
            if folder := model_folder(client.show(name)):
                return folder
    return None


def model_folder(shown: Mapping[str, Any]) -> Path | None:
    """The models folder, from the Modelfile that `/api/show` gives: `FROM <folder>/blobs/sha256-…`."""
    text = shown.get("modelfile")
    for line in text.splitlines() if isinstance(text, str) else ():
        path = Path(line.removeprefix("FROM ").strip())
        if line.startswith("FROM ") and path.is_absolute() and path.parent.name == "blobs":
            return path.parent.parent
    return None
