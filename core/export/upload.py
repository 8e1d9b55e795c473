"""A file's way to an Ollama server: whole, with byte progress, tried again when the connection breaks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.values import Progress, Stopped
from ollama_tune.core.export.wire import KEPT, MAX_WORDS, Unreachable, patiently, words_of

CHUNK = 1 << 18
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before the second, third and fourth try: long enough for a server that restarts itself."""
PATIENCE = httpx.Timeout(30.0 * 60, connect=5.0, write=60.0)


class Dropped(Exception):
    """The connection broke while a file was being sent."""


def send_with_patience(
    send: Callable[[], None], arrived: Callable[[], bool], stopped: Stopped | None = None
) -> None:
    """Send, and after a broken connection send again from the start: the protocol cannot resume.

    `arrived` tells whether the server has the whole file after all, as when only its answer was lost.
    """
    for pause in (0.0, *PAUSES):
        try:
            if pause:
                _wait(pause, stopped)
                if arrived():
                    return
            send()
            return
        except (Dropped, Unreachable) as error:
            lost = error
    if isinstance(lost, Unreachable):
        raise lost
    raise TuneError(
        f"Ollama closed the connection {len(PAUSES) + 1} times while it received the file.",
        f"Look at Ollama's log and its disk space, then export again; {KEPT}",
        details=str(lost),
    ) from lost


def _wait(seconds: float, stopped: Stopped | None) -> None:
    done = threading.Event()
    patiently(lambda: done.wait(seconds), stopped, cancel=done.set)


class Upload:
    """One try: bytes sent so far, and a way to end it between two pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cancelled = threading.Event()
        self.sent = 0
        with self._readable():
            self.total = path.stat().st_size

    def post(
        self, http: httpx.Client, place: str, progress: Progress | None, stopped: Stopped | None
    ) -> tuple[int, str]:
        """Send the file; the status and the words of the answer. Stops within a second."""
        report = progress or (lambda done, total: None)
        report(0, self.total)
        headers = {"Content-Length": str(self.total), "Content-Type": "application/octet-stream"}

        def send() -> tuple[int, str]:
            answer = http.post(place, content=self._pieces(), headers=headers, timeout=PATIENCE)
            return answer.status_code, words_of(answer.content[:MAX_WORDS])

        found = patiently(send, stopped, lambda: report(self.sent, self.total), self._cancelled.set)
        if found[0] in (200, 201):
            report(self.total, self.total)
        return found

    def _pieces(self) -> Iterator[bytes]:
        with self._readable(), self._path.open("rb") as file:
            while (piece := file.read(CHUNK)) and not self._cancelled.is_set():
                yield piece
                self.sent += len(piece)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TuneError(f"{self._path} cannot be read: {error.strerror}.", "Export again.") from error
