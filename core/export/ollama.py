"""A model's way into Ollama over HTTP: blob, create, check, copy; never files of the server.

The protocol is that of Ollama 0.30 and later (docs/api.md there). What the server says is untrusted text.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import httpx

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.wire import (
    KEPT,
    MAX_WORDS,
    count_of,
    hint,
    limited,
    object_of,
    patiently,
    split_lines,
    words_of,
)
from ollama_tune.core.machine.ollama import is_local
from ollama_tune.core.text import one_line

CHUNK = 1 << 18
SHORT = httpx.Timeout(10.0, connect=5.0)
LONG = httpx.Timeout(30.0 * 60, connect=5.0, write=60.0)
"""Ollama says nothing while it rewrites or loads a large model; a stop does not wait for it."""

PARAMETERS: dict[str, type | tuple[type, ...]] = {
    "stop": list,
    "num_ctx": int,
    "num_predict": int,
    "seed": int,
    "top_k": int,
    "top_p": (int, float),
    "min_p": (int, float),
    "temperature": (int, float),
    "repeat_penalty": (int, float),
}
"""What may be set at create: Ollama checks no types there, and a wrong one breaks every later request."""

Status = Callable[[str, int, int], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """A generated text and why it ended (`stop` or `length`); token counts as Ollama gives them."""

    text: str
    done_reason: str
    prompt_tokens: int
    tokens: int


class OllamaClient:
    """One Ollama server. Every failure is a `TuneError` that says what to do."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            if not self.url.startswith(("http://", "https://")):
                raise httpx.InvalidURL("no http")
            self._http = httpx.Client(base_url=self.url, timeout=SHORT, trust_env=not is_local(url))
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(
                f"{one_line(url, 80)} is not the address of a server.",
                "Set OLLAMA_HOST to an address such as 127.0.0.1:11434.",
            ) from error

    def __enter__(self) -> OllamaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def version(self) -> str:
        """The server's version."""
        version = self._json("GET", "/api/version").get("version")
        if not isinstance(version, str) or not version:
            raise TuneError(
                f"What answers at {self.url} is not Ollama.", "Set OLLAMA_HOST to Ollama's address."
            )
        return one_line(version, 40)

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds those bytes; `digest` is `sha256:` and 64 lower-case hex digits."""
        status, _ = self._call("HEAD", f"/api/blobs/{_checked_digest(digest)}")
        if status not in (200, 404):
            self._refuse(status, "")
        return status == 200

    def push_blob(
        self,
        path: Path,
        digest: str,
        progress: Progress | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> bool:
        """Send a file unless the server has it; True when bytes were sent. Stops within a second.

        The protocol cannot resume, so after a dropped connection the whole file is sent once more.
        """
        if self.has_blob(digest):
            return False
        for _ in range(2):
            try:
                self._upload(path, digest, progress, stopped)
                return True
            except _Dropped as error:
                dropped = error
                if self.has_blob(digest):
                    return True
        raise TuneError(
            "Ollama closed the connection twice while it received the file.",
            f"Look at Ollama's log and its disk space, then export again; {KEPT}",
            details=str(dropped),
        ) from dropped

    def _upload(
        self, path: Path, digest: str, progress: Progress | None, stopped: Callable[[], bool] | None
    ) -> None:
        upload = _Upload(path)
        report = progress or (lambda done, total: None)
        report(0, upload.total)

        def send() -> tuple[int, str]:
            headers = {"Content-Length": str(upload.total), "Content-Type": "application/octet-stream"}
            with self._failures(dropped=True):
                answer = self._http.post(
                    f"/api/blobs/{digest}", content=upload.pieces(), headers=headers, timeout=LONG
                )
            return answer.status_code, words_of(answer.content[:MAX_WORDS])

        status, words = patiently(send, stopped, lambda: report(upload.sent, upload.total), upload.cancel)
        if status not in (200, 201):
            self._refuse(status, words)
        report(upload.total, upload.total)

    def create(
        self,
        model: str,
        files: Mapping[str, str],
        parameters: Mapping[str, Any] | None = None,
        on_status: Status | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        """Make a model of blobs: `files` maps a file name to its digest. Only `success` is success.

        `on_status` gets each line's text with `completed` and `total` (0 where the server gives none).
        """
        body = {"model": model, "files": dict(files), "stream": True}
        if parameters:
            body["parameters"] = _checked_parameters(parameters)
        lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
        cancelled = threading.Event()
        last = {"status": ""}

        def tell() -> None:
            with contextlib.suppress(Empty):
                while True:
                    line = lines.get_nowait()
                    last["status"] = one_line(str(line.get("status", "")), MAX_WORDS)
                    if on_status and last["status"]:
                        on_status(
                            last["status"], count_of(line.get("completed")), count_of(line.get("total"))
                        )

        def work() -> None:
            for line in self._lines("/api/create", body, cancelled):
                lines.put(line)

        patiently(work, stopped, tell, cancelled.set)
        tell()
        if last["status"] != "success":
            raise TuneError(
                f"Ollama ended without saying that the model was made (last: {last['status'] or 'nothing'}).",
                f"Look at Ollama's log and export again; {KEPT}",
            )

    def _lines(
        self, path: str, body: Mapping[str, Any], cancelled: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """The objects of a stream, one a line; an `error` in any of them is a failure, even at HTTP 200."""
        with self._failures(), self._http.stream("POST", path, json=body, timeout=LONG) as answer:
            if answer.status_code != 200:
                self._refuse(answer.status_code, words_of(limited(answer)))
            for line in split_lines(answer.iter_bytes()):
                if cancelled.is_set():
                    return
                tree = object_of(line)
                if tree.get("error"):
                    self._refuse(200, one_line(str(tree["error"]), MAX_WORDS))
                yield tree

    def exists(self, model: str) -> bool:
        """Whether the server has a model of that name."""
        status, content = self._call("POST", "/api/show", {"model": model})
        if status not in (200, 404):
            self._refuse(status, words_of(content))
        return status == 200

    def show(self, model: str) -> dict[str, Any]:
        """What the server knows of a model: template, parameters, details; untrusted text."""
        return self._json("POST", "/api/show", {"model": model})

    def delete(self, model: str) -> None:
        """Remove a model; it is unloaded separately."""
        self._json("DELETE", "/api/delete", {"model": model})

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; a model of that name is replaced in one go."""
        self._json("POST", "/api/copy", {"source": source, "destination": destination})

    def unload(self, model: str) -> None:
        """Let the server drop a model from memory; it does so a little later."""
        self._json("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 64,
        stopped: Callable[[], bool] | None = None,
    ) -> Answer:
        """The model's answer at temperature 0; loads it first, which can take minutes."""
        options = {"temperature": 0, "num_predict": max_new_tokens, "seed": 0}
        body = {"model": model, "messages": [dict(m) for m in messages], "stream": False, "options": options}
        tree = patiently(lambda: self._json("POST", "/api/chat", body, LONG), stopped)
        message = tree.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise TuneError("Ollama's answer to a test question has no text.", f"Look at its log; {KEPT}")
        reason = one_line(str(tree.get("done_reason", "")), 40)
        return Answer(text, reason, count_of(tree.get("prompt_eval_count")), count_of(tree.get("eval_count")))

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: httpx.Timeout = SHORT
    ) -> dict[str, Any]:
        status, content = self._call(method, path, body, timeout)
        if status != 200:
            self._refuse(status, words_of(content))
        return object_of(content)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: httpx.Timeout = SHORT
    ) -> tuple[int, bytes]:
        with self._failures(), self._http.stream(method, path, json=body, timeout=timeout) as answer:
            return answer.status_code, limited(answer)

    @contextlib.contextmanager
    def _failures(self, *, dropped: bool = False) -> Iterator[None]:
        """Turn failures of the connection into errors a person understands."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            advice = "Start it with `ollama serve`" if is_local(self.url) else "Check OLLAMA_HOST"
            raise TuneError(
                f"No Ollama answers at {self.url}.", f"{advice} and export again; {KEPT}", details=str(error)
            ) from error
        except httpx.RequestError as error:
            if dropped:
                raise _Dropped(str(error)) from error
            late = isinstance(error, httpx.TimeoutException)
            what = "did not answer in time" if late else "closed the connection"
            raise TuneError(
                f"Ollama at {self.url} {what}.",
                f"Look at its log, then export again; {KEPT}",
                details=repr(error),
            ) from error

    def _refuse(self, status: int, words: str) -> NoReturn:
        """Raise what a refusal means; 200 stands for an error after the answer had begun."""
        if status == 403:
            raise TuneError(
                f"Ollama at {self.url} refuses this address (403{': ' + words if words else ''}).",
                f"Set OLLAMA_HOST to 127.0.0.1, or start the server with OLLAMA_HOST=0.0.0.0; {KEPT}",
            )
        shown = words or f"status {status}, no words"
        raise TuneError(f"Ollama refused: {shown.rstrip('.')}.", f"{hint(status, words)}; {KEPT}")


class _Dropped(Exception):
    """The connection broke while a file was being sent."""


class _Upload:
    """A file on its way: bytes sent so far, and a way to end it between two pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cancelled = threading.Event()
        self.sent = 0
        with self._readable():
            self.total = path.stat().st_size

    def cancel(self) -> None:
        self._cancelled.set()

    def pieces(self) -> Iterator[bytes]:
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


def _checked_digest(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"not a digest: {digest!r}")
    return digest


def _checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in parameters.items():
        if name not in PARAMETERS or isinstance(value, bool) or not isinstance(value, PARAMETERS[name]):
            raise ValueError(f"not a parameter that Ollama takes: {name}={value!r}")
    return dict(parameters)
