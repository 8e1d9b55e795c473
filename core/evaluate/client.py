"""The interface's end of the Try-it conversation: starts the chat process and never waits for it."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_tune.core.evaluate.asking import Asking
from ollama_tune.core.evaluate.conversation import MODELS, HeldOut
from ollama_tune.core.runs.folder import RunFolder

MODULE = "ollama_tune.core.evaluate.chat"
MAX_LINE = 1 << 20
MAX_WAITING = 10_000
USUAL = Asking()


class ChatProcess:
    """A child process that answers with the base and the tuned model of a run.

    Two threads do all reading and writing, so no method here waits; at most ten thousand unread
    messages are held, after which the child waits. It ends with `close` or with this process.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._count = self._cancelled = 0
        self._closed = False
        self._outgoing: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._incoming: queue.Queue[dict[str, Any]] = queue.Queue(MAX_WAITING)
        with (folder.path / "chat.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(folder.path.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        for task in (self._read, self._write):
            threading.Thread(target=task, daemon=True).start()

    def ask(
        self,
        messages: Mapping[str, Sequence[Mapping[str, Any]]],
        asking: Asking = USUAL,
        *,
        tools: str = "",
    ) -> int:
        """Ask each model its own conversation; returns the id under which `poll` brings the answers."""
        return self._send({"messages": messages, "tools": tools}, asking)

    def ask_several(
        self, questions: Sequence[HeldOut], asking: Asking = USUAL, models: Sequence[str] = MODELS
    ) -> int:
        """Ask all questions at once, each for itself; returns the id."""
        asked = [question.request() for question in questions]
        return self._send({"questions": asked, "models": list(models)}, asking)

    def _send(self, request: dict[str, Any], asking: Asking) -> int:
        self._count += 1
        self._outgoing.put({"id": self._count, **request, **asking.request()})
        return self._count

    def poll(self) -> list[dict[str, Any]]:
        """Every message since the last call; their forms stand in `core/evaluate/chat.py`."""
        messages: list[dict[str, Any]] = []
        while len(messages) < MAX_WAITING:
            try:
                messages.append(self._incoming.get_nowait())
            except queue.Empty:
                break
        return messages

    def cancel(self) -> None:
        """End all answers asked for so far; what was already written stays."""
        while self._cancelled < self._count:
            self._cancelled += 1
            self._outgoing.put({"cancel": self._cancelled})

    @property
    def alive(self) -> bool:
        """True while it can answer."""
        return not self._closed and self._process.poll() is None

    def close(self) -> None:
        """End the process; there is nothing in it to save."""
        self._closed = True
        self._outgoing.put(None)
        self._process.kill()
        self._process.wait()
        self.poll()

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            while (message := self._outgoing.get()) is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        told = False
        with self._process.stdout as pipe:
            while line := pipe.readline(MAX_LINE):
                message = _parse(line)
                told = told or ("error" in message and "id" not in message)
                if message:
                    self._incoming.put(message)
        self._process.wait()
        if not (self._closed or told):
            what = "The process that answers has ended."
            fix = f"Open this screen again; {self._folder.path / 'chat.log'} may say why."
            self._incoming.put({"error": {"what": what, "fix": fix}})


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
