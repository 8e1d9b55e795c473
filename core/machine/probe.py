"""One look at the whole box."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.host import read_disk, read_host
from ollama_tune.core.machine.ollama import read_ollama
from ollama_tune.core.machine.values import Disk, Machine, OllamaStatus
from ollama_tune.core.paths import data_dir, models_dir

SERVICE_HOME = Path("/usr/share/ollama")
"""The home of the user that Ollama's Linux service runs as; others may not look into it."""


def probe_machine(folder: Path | None = None) -> Machine:
    """GPUs, CPU, memory, Ollama, and the disk of `folder` (default: where runs are kept), as of now."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        ollama = pool.submit(read_ollama)
        gpu = pool.submit(read_gpus)
        disk, models = read_disk(folder or data_dir()), read_disk(models_dir())
        host, server = read_host(), ollama.result()
        return Machine(gpu.result(), host, disk, server, models, ollama_disk(server))


def ollama_disk(server: OllamaStatus) -> Disk | None:
    """The disk of a local server's models, where one of its usual folders can be seen from here."""
    if not server.local or not server.reachable:
        return None
    named = os.environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    places = [Path(named)] if named else [SERVICE_HOME, Path.home() / ".ollama"]
    # Path.is_dir raises where a folder above may not be looked into.
    return next((read_disk(place) for place in places if os.path.isdir(place)), None)  # noqa: PTH112
