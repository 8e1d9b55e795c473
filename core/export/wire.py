"""Reading what an untrusted server says, and waiting for it without losing sight of a wish to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.values import ExportStopped, Stopped
from ollama_tune.core.machine.ollama import object_of
from ollama_tune.core.text import one_line

MAX_ANSWER = 16 << 20
MAX_LINE = 1 << 20
MAX_WORDS = 300
TICK = 0.1
KEPT = "the GGUF file is kept."

T = TypeVar("T")

_NEWER = "Update Ollama and export again"
_SMALLER = "Free memory (`ollama stop` a loaded model) or choose a smaller type, and export again"
HINTS = {
    "digest mismatch": "The bytes changed on their way; check the disk and export again",
    "no space": "Make room on the disk of the Ollama server and export again",
    "system memory": _SMALLER,
    "out of memory": _SMALLER,
    "out of device memory": _SMALLER,
    "malloc failed": _SMALLER,
    "failed to allocate": _SMALLER,
    "cannot be allocated": _SMALLER,
    "insufficient memory": _SMALLER,
    "unsupported architecture": _NEWER,
    "unknown model architecture": _NEWER,
    "unknown architecture": _NEWER,
    "template error": _NEWER,
    "llama-server binary": "Install Ollama again, or a newer one: its llama-server is missing",
    "llama-quantize": "Update or reinstall Ollama and export again",
    "invalid model name": "Choose a name of letters, digits, - _ and dots",
    "unauthorized": "Set OLLAMA_API_KEY to a key that this server takes",
    "not found": "Look whether somebody deleted it and export again",
}
"""What to do by a part of the server's words; the first that fits counts."""


class Unreachable(TuneError):
    """Nothing answers at the address of the server."""


class Refused(TuneError):
    """The server answered, with an error of its own: this model, this name, this request."""


def hint(status: int, words: str) -> str:
    """What to do about a refusal, by the server's words and status."""
    for sign, advice in HINTS.items():
        if sign in words.lower():
            return advice
    if status == 401:
        return HINTS["unauthorized"]
    trouble = "Look at Ollama's log, restart it" if status >= 500 else "Look at Ollama's log, update it"
    return f"{trouble} and export again"


def patiently(
    work: Callable[[], T],
    stopped: Stopped | None = None,
    tick: Callable[[], None] = lambda: None,
    cancel: Callable[[], None] = lambda: None,
) -> T:
    """Run blocking work aside and look every tenth of a second for a wish to stop.

    Callbacks run on the caller's thread. After a stop the work ends by itself at its next piece; a
    server that has stalled holds only the thread, not the caller.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TICK)
            tick()
            if stopped is not None and stopped():
                raise ExportStopped
    finally:
        cancel()
    if errors:
        raise errors[0]
    return results[0]


def words_of(content: bytes) -> str:
    """The server's own words of a failure: the `error` of a JSON object, else the plain text."""
    error = object_of(content).get("error")
    return one_line(error if isinstance(error, str) else content.decode("utf-8", "replace"), MAX_WORDS)


def limited(answer: httpx.Response) -> bytes:
    """The body of an answer that is being streamed, cut at a length no honest one has."""
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) > MAX_ANSWER:
            break
    return content


def split_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines ended by a line feed only: JSON text may hold other line separators."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > MAX_LINE:
            raise TuneError("Ollama's answer has a line without end.", f"Look at its log; {KEPT}")
    if rest.strip():
        yield rest


def count_of(value: Any) -> int:
    """A whole number that is not negative, else 0."""
    return value if isinstance(value, int) and value >= 0 else 0
