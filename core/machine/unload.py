"""Asks Ollama to give back the memory of its loaded models before a run; no process is ever ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.ollama import (
    is_local,
    loaded_models,
    ollama_url,
    open_client,
    refusal,
    request,
)
from ollama_tune.core.machine.values import OllamaModel

if TYPE_CHECKING:
    import httpx

PATIENCE = 30.0
"""Seconds that a server gets to let its models go; it answers at once and frees memory later."""
ANSWER_PATIENCE = 10.0
POLL = 0.25
CALM, LONGEST_WATCH = 2.0, 10.0
"""Seconds for which free memory must not rise any more, and after which no more is waited for."""
NOISE = 16 << 20
"""Bytes by which free memory moves by itself."""

Stopped = Callable[[], bool]
FreeNow = Callable[[], dict[str, int]]


@dataclass(frozen=True)
class Unloaded:
    """What became of the loaded models.

    `gone` are those the server let go, `left` those it still holds. `free` is the free memory of each GPU
    by its UUID in bytes afterwards, the least of two calm seconds; `gained` is how much more that is than
    before, over all GPUs.
    """

    gone: tuple[OllamaModel, ...]
    left: tuple[OllamaModel, ...]
    free: dict[str, int]
    gained: int

    @property
    def complete(self) -> bool:
        """True when the server holds no model any more."""
        return not self.left


def unload_loaded(
    url: str | None = None,
    *,
    patience: float | None = None,
    free_now: FreeNow | None = None,
    stopped: Stopped | None = None,
) -> Unloaded:
    """Let the Ollama of this machine unload all its models, and wait (30 seconds) until their memory is free.

    Anybody's next request loads a model again, so free memory has to be read once more just before a run.
    `free_now` stands in for NVML; `stopped` is asked between two looks and ends the waiting early. Raises
    `UsageError` for the server of another host, and `TuneError` when none answers.
    """
    import httpx

    place, read = url or ollama_url(), free_now or gpu_free
    if not is_local(place):
        raise UsageError(
            f"The Ollama at {place} runs on another machine, so none of its memory is this one's.",
            "Choose a smaller model, or make memory free here.",
        )
    before = read()
    try:
        with open_client(place, ANSWER_PATIENCE) as client:
            asked = _loaded(client)
            for model in asked:
                body = {"model": model.name, "keep_alive": 0, "stream": False}
                request(client, "POST", "/api/generate", body)
            left = _wait(client, PATIENCE if patience is None else patience, stopped)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TuneError(
            f"Ollama at {place} does not answer, so its models stay loaded.",
            "Look whether it still runs, or stop it yourself.",
            details=repr(error),
        ) from error
    gone = tuple(model for model in asked if model.name not in {other.name for other in left})
    free = settled(read, stopped, CALM) if gone else before
    return Unloaded(gone, left, free, sum(free.values()) - sum(before.values()))


def _loaded(client: httpx.Client) -> tuple[OllamaModel, ...]:
    status, answer = request(client, "GET", "/api/ps")
    if status != 200:
        raise TuneError(
            "Ollama does not tell which models it holds.",
            "Look at `ollama ps`, and stop them with `ollama stop`.",
            details=refusal(str(client.base_url), status),
        )
    return loaded_models(answer)


def _wait(client: httpx.Client, patience: float, stopped: Stopped | None) -> tuple[OllamaModel, ...]:
    """The models still loaded when there are none, when time is up, or when the person stops."""
    end = time.monotonic() + patience
    while left := _loaded(client):
        if time.monotonic() >= end or (stopped and stopped()):
            break
        time.sleep(POLL)
    return left


def gpu_free() -> dict[str, int]:
    """Free bytes of every GPU by its UUID, as the driver says now; empty without one."""
    return {gpu.uuid: gpu.free for gpu in read_gpus().gpus}


def settled(
    free_now: FreeNow = gpu_free, stopped: Stopped | None = None, calm: float = CALM
) -> dict[str, int]:
    """Free bytes of every GPU once they rise no more: the least seen in `calm` seconds without a rise.

    A driver gives memory back a while after a program let it go. Raises nothing; waits 10 seconds at most.
    """
    least = highest = free_now()
    start = since = time.monotonic()
    while least and (now := time.monotonic()) - since < calm and now - start < LONGEST_WATCH:
        if stopped and stopped():
            break
        time.sleep(POLL)
        seen = free_now()
        if any(seen.get(name, 0) > value + NOISE for name, value in highest.items()):
            least, highest, since = seen, seen, time.monotonic()
        else:
            least = {name: min(value, seen.get(name, 0)) for name, value in least.items()}
    return least
