"""A model's way into Ollama over HTTP: blob, create, check, copy; never files of the server.

The protocol is that of Ollama 0.30 and later (docs/api.md there). What the server says is untrusted text.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import httpx

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.upload import Dropped, Upload, send_with_patience
from ollama_tune.core.export.values import Progress, Stopped
from ollama_tune.core.export.wire import (
    KEPT,
    MAX_WORDS,
    Refused,
    Unreachable,
    count_of,
    hint,
    limited,
    patiently,
    split_lines,
    words_of,
)
from ollama_tune.core.machine.ollama import authorization, is_local, object_of
from ollama_tune.core.text import one_line

SHORT = 10.0
"""Seconds for an answer that needs no work."""
LONG = httpx.Timeout(30.0 * 60, connect=5.0, write=60.0)
"""Ollama says nothing while it rewrites or loads a large model; a stop does not wait for it."""
POLL = 0.1

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


@dataclass(frozen=True)
class Answer:
    """A generated text and why it ended (`stop` or `length`); token counts as Ollama gives them.

    `prompt_tokens` is 0 where a server does not count; `thought` is what Ollama took out of the text
    because it stood between marks of thinking.
    """

    text: str
    done_reason: str
    prompt_tokens: int
    tokens: int
    thought: str = ""


class OllamaClient:
    """One Ollama server. Every failure is a `TuneError` that says what to do."""

    def __init__(self, url: str, patience: float = SHORT) -> None:
        self.url = url.rstrip("/")
        short = httpx.Timeout(patience, connect=min(patience, 5.0))
        try:
            if not self.url.startswith(("http://", "https://")):
                raise httpx.InvalidURL("no http")
            headers, trust = authorization(), not is_local(url)
            self._http = httpx.Client(base_url=self.url, timeout=short, trust_env=trust, headers=headers)
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
        self, path: Path, digest: str, progress: Progress | None = None, stopped: Stopped | None = None
    ) -> bool:
        """Send a file unless the server has it; True when bytes were sent. Stops within a second.

        After a lost connection the whole file is sent again, a few times.
        """
        if self.has_blob(digest):
            return False

        def send() -> None:
            with self._failures(dropped=True):
                status, words = Upload(path).post(self._http, f"/api/blobs/{digest}", progress, stopped)
            if status not in (200, 201):
                self._refuse(status, words)

        send_with_patience(send, lambda: self.has_blob(digest), stopped)
        return True

    def create(
        self,
        model: str,
        files: Mapping[str, str],
        parameters: Mapping[str, Any] | None = None,
        on_status: Status | None = None,
        stopped: Stopped | None = None,
        *,
        template: str | None = None,
        system: str | None = None,
    ) -> None:
        """Make a model of blobs: `files` maps a file name to its digest. Only `success` is success.

        `template` is a Go template, for servers that ignore the file's own. `on_status` gets each line's
        text with `completed` and `total` (0 where the server gives none).
        """
        body = {"model": model, "files": dict(files), "stream": True}
        if parameters:
            body["parameters"] = _checked_parameters(parameters)
        body |= {name: text for name, text in (("template", template), ("system", system)) if text}
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

    def names(self) -> list[str]:
        """The models that the server lists; untrusted text."""
        return _names(self._json("GET", "/api/tags"))

    def unload(self, model: str, patience: float = 0.0) -> bool:
        """Let the server drop a model from memory, and see for `patience` seconds whether it does.

        Memory is freed a while after the answer; True once the server no longer counts it as loaded.
        """
        self._json("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        end = time.monotonic() + patience
        while any(same_name(name, model) for name in _names(self._json("GET", "/api/ps"))):
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        return True

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 64,
        stopped: Stopped | None = None,
    ) -> Answer:
        """The model's answer at temperature 0; loads it first, which can take minutes."""
        body = {"messages": [dict(m) for m in messages], "options": _greedy(max_new_tokens)}
        tree = self._ask("/api/chat", model, body, stopped)
        message = tree.get("message")
        return _answer(tree, message if isinstance(message, dict) else {}, "content")

    def complete(
        self, model: str, prompt: str, *, max_new_tokens: int = 1, stopped: Stopped | None = None
    ) -> Answer:
        """What follows a prompt that no template touches (`raw`), at temperature 0."""
        body = {"prompt": prompt, "raw": True, "options": _greedy(max_new_tokens)}
        tree = self._ask("/api/generate", model, body, stopped)
        return _answer(tree, tree, "response")

    def rendered(
        self, model: str, messages: Sequence[Mapping[str, str]], stopped: Stopped | None = None
    ) -> str | None:
        """The prompt that the server makes of messages; None from one that does not show it."""
        body = {"messages": [dict(m) for m in messages], "_debug_render_only": True, "options": _greedy(1)}
        found = self._ask("/api/chat", model, body, stopped).get("_debug_info")
        text = found.get("rendered_template") if isinstance(found, dict) else None
        return text if isinstance(text, str) else None

    def _ask(self, path: str, model: str, body: Mapping[str, Any], stopped: Stopped | None) -> dict[str, Any]:
        whole = {"model": model, "stream": False, **body}
        return patiently(lambda: self._json("POST", path, whole, long=True), stopped)

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, long: bool = False
    ) -> dict[str, Any]:
        status, content = self._call(method, path, body, long=long)
        if status != 200:
            self._refuse(status, words_of(content))
        return object_of(content)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, long: bool = False
    ) -> tuple[int, bytes]:
        timeout = LONG if long else self._http.timeout
        with self._failures(), self._http.stream(method, path, json=body, timeout=timeout) as answer:
            return answer.status_code, limited(answer)

    @contextlib.contextmanager
    def _failures(self, *, dropped: bool = False) -> Iterator[None]:
        """Turn failures of the connection into errors a person understands."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            advice = "Start it with `ollama serve`" if is_local(self.url) else "Check OLLAMA_HOST"
            raise Unreachable(
                f"No Ollama answers at {self.url}.", f"{advice} and export again; {KEPT}", details=str(error)
            ) from error
        except httpx.RequestError as error:
            if dropped:
                raise Dropped(str(error)) from error
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
        raise Refused(f"Ollama refused: {shown.rstrip('.')}.", f"{hint(status, words)}; {KEPT}")


def _greedy(max_new_tokens: int) -> dict[str, Any]:
    """Options of a test: always the most likely token, and nothing of the server's usual penalties."""
    return {"temperature": 0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0, "num_predict": max_new_tokens}


def _answer(tree: Mapping[str, Any], message: Mapping[str, Any], key: str) -> Answer:
    text, thought = message.get(key), message.get("thinking")
    if not isinstance(text, str):
        raise Refused("Ollama's answer to a test question has no text.", f"Look at its log; {KEPT}")
    return Answer(
        text,
        one_line(str(tree.get("done_reason", "")), 40),
        count_of(tree.get("prompt_eval_count")),
        count_of(tree.get("eval_count")),
        thought if isinstance(thought, str) else "",
    )


def _names(tree: Mapping[str, Any]) -> list[str]:
    models = tree.get("models")
    entries = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    return [entry["name"] for entry in entries if isinstance(entry.get("name"), str)]


def same_name(one: str, other: str) -> bool:
    """Whether two names mean the same model: case, the usual host and namespace, and `latest` are nothing."""
    return _spelled_out(one) == _spelled_out(other)


def _spelled_out(name: str) -> str:
    full = name if name.rfind(":") > name.rfind("/") else f"{name}:latest"
    return full.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")


def _checked_digest(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"not a digest: {digest!r}")
    return digest


def _checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in parameters.items():
        if name not in PARAMETERS or isinstance(value, bool) or not isinstance(value, PARAMETERS[name]):
            raise ValueError(f"not a parameter that Ollama takes: {name}={value!r}")
    return dict(parameters)
