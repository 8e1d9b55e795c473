"""One look at the whole box."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.host import read_disk, read_host
from ollama_tune.core.machine.ollama import read_ollama
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.paths import data_dir


def probe_machine(folder: Path | None = None) -> Machine:
    """GPUs, CPU, memory, Ollama, and the disk of `folder` (default: where runs are kept), as of now."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        ollama = pool.submit(read_ollama)
        gpu = pool.submit(read_gpus)
        disk = read_disk(folder or data_dir())
        return Machine(gpu=gpu.result(), host=read_host(), disk=disk, ollama=ollama.result())
