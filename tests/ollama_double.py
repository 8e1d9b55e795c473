"""A strict stand-in for an Ollama server on a loopback port, by its protocol.

It refuses what a real one refuses, and also what a careful client never sends. With an `answer`
function, `/api/chat` can be answered by a real llama.cpp from the stored GGUF file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ollama_chat import chat, generate
from tests.ollama_engine import LlamaEngine
from tests.ollama_models import check_request, creation_lines, details, shown
from tests.ollama_state import DIGEST, Answer, Engine, Faults, Model, Refusal, Request, State

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")


class OllamaDouble:
    """`with OllamaDouble() as server:` … `server.url`. Unexpected failures inside it fail the test.

    Models run in a real llama.cpp unless another engine is given; `answer` replaces the answers to chats
    alone. `disk` is the size of the server's disk in bytes.
    """

    def __init__(
        self,
        *,
        version: str = "0.34.4",
        answer: Answer | None = None,
        engine: Engine | None = None,
        faults: Faults | None = None,
        disk: int | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._own = LlamaEngine()
        folder = Path(self._folder.name)
        (folder / "blobs").mkdir()
        self.state = State(version, folder, answer, engine or self._own, faults or Faults(), disk)

        class Bound(_Handler):
            state = self.state

        self._server = _Server(("127.0.0.1", 0), Bound)
        self._server.state = self.state
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests of a method whose path begins so."""
        return [r for r in self.state.requests if r.method == method and r.path.startswith(path)]

    def __enter__(self) -> OllamaDouble:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state.closing.set()
        self.state.speak.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        self._own.close()
        self._folder.cleanup()
        if kind is None and self.state.problems:
            raise AssertionError("the double failed") from self.state.problems[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: State

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self.state.problems.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 300
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _serve(self) -> None:
        self.state.active.append(self.path)
        try:
            self._check_address()
            self._route()
        except Refusal as refusal:
            self._send(refusal.status, {"error": str(refusal)} if str(refusal) else None)
        finally:
            self.state.active.remove(self.path)

    do_GET = do_HEAD = do_POST = do_DELETE = _serve

    def _check_address(self) -> None:
        """The Host header must be local; the refusal has no body, and neither are bytes read."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if self.state.faults.key not in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._record(None)
            self.close_connection = True
            raise Refusal(401, "unauthorized")
        if self.state.faults.forbidden or host not in ("127.0.0.1", "localhost"):
            self._record(None)
            self.close_connection = True
            raise Refusal(403, "")
        if self.state.faults.broken is not None:
            self._record(None)
            self.close_connection = True
            raise Refusal(*self.state.faults.broken)

    def _record(self, body: Any) -> None:
        self.state.requests.append(Request(self.command, self.path, body))

    def _route(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self._blob(self.path.removeprefix("/api/blobs/"))
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self._record(body)
        routes = {
            ("GET", "/api/version"): self._version,
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._ps,
            ("POST", "/api/create"): self._create,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/copy"): self._copy,
            ("DELETE", "/api/delete"): self._delete,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/chat"): self._chat,
        }
        route = routes.get((self.command, self.path))
        if route is None:
            raise Refusal(404, "404 page not found")
        route(body)

    def _send(self, status: int, tree: Any = None) -> None:
        content = b"" if tree is None or self.command == "HEAD" else json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    # blobs

    def _blob(self, digest: str) -> None:
        if not DIGEST.fullmatch(digest):
            self._record(None)
            self.close_connection = True
            raise Refusal(400, "invalid digest format")
        path = self.state.blob(digest)
        if self.command == "HEAD":
            self._record(None)
            self._send(200 if path.exists() else 404)
        elif self.command != "POST":
            raise Refusal(405, "method not allowed")
        elif path.exists():
            self._record(0)
            self.close_connection = True
            self._send(200)
        else:
            self._receive(digest, path)

    def _receive(self, digest: str, path: Path) -> None:
        if "Content-Length" not in self.headers:
            raise Refusal(411, "a careful client says how much it sends")
        if Request("HEAD", self.path, None) not in self.state.requests:
            raise AssertionError("a careful client asks before it sends a file")
        length, received = int(self.headers["Content-Length"]), 0
        self.state.take_room(length)
        seen = hashlib.sha256()
        temporary = tempfile.NamedTemporaryFile(dir=self.state.folder, delete=False)  # noqa: SIM115
        with temporary as file:
            while received < length:
                piece = self.rfile.read(min(1 << 16, length - received))
                if not piece:
                    self._record(received)
                    raise ConnectionResetError("the client left")
                received += len(piece)
                seen.update(piece)
                file.write(piece)
                self._break_upload(received, length)
        self._record(received)
        if f"sha256:{seen.hexdigest()}" != digest:
            words = f'digest mismatch, expected "{digest}", got "sha256:{seen.hexdigest()}"'
            raise Refusal(400, words)
        Path(temporary.name).rename(path)
        if self.state.faults.blob_gone_after_upload:
            self._die()
        self._send(201)

    def _break_upload(self, received: int, length: int) -> None:
        faults = self.state.faults
        if faults.slow_upload:
            time.sleep(faults.slow_upload)
        if faults.stall_mid_upload and received > length // 4:
            self._record(received)
            self.state.closing.wait(300)
            raise ConnectionResetError("stalled")
        if faults.die_mid_upload and received > length // 2:
            faults.die_mid_upload -= 1
            self._record(received)
            self._die()

    def _die(self) -> None:
        """Reset the connection, as a killed server does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        raise ConnectionResetError("died")

    # models

    def _name(self, text: Any) -> str:
        """The full name in lower case, or a refusal (rules of types/model/name.go)."""
        if not isinstance(text, str):
            raise Refusal(400, "invalid model name")
        rest, tag = text, "latest"
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        *places, model = rest.split("/")
        spaces = places[-1:]
        good = PART.fullmatch(model) and PART.fullmatch(tag) and all(map(NAMESPACE.fullmatch, spaces))
        if not good or len(places) > 2:
            raise Refusal(400, "invalid model name")
        return f"{rest}:{tag}".lower()

    def _known(self, text: Any) -> tuple[str, Model]:
        name = self._name(text)
        if name not in self.state.models:
            raise Refusal(404, f"model '{text}' not found")
        return name, self.state.models[name]

    def _create(self, body: dict[str, Any]) -> None:
        name = self._name(body.get("model"))
        check_request(self.state, body)
        if body.get("stream") is False:
            raise Refusal(400, "the double only streams")
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in creation_lines(self.state, name, body):
            content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.write(b"0\r\n\r\n")

    def _show(self, body: dict[str, Any]) -> None:
        name, model = self._known(body.get("model"))
        self._send(200, shown(self.state, name, model))

    def _copy(self, body: dict[str, Any]) -> None:
        _, model = self._known(body.get("source"))
        self.state.models[self._name(body.get("destination"))] = model
        self._send(200)

    def _delete(self, body: dict[str, Any]) -> None:
        name, _ = self._known(body.get("model"))
        del self.state.models[name]
        self._send(200)

    # answers

    def _version(self, body: dict[str, Any]) -> None:
        self._send(200, {"version": self.state.version})

    def _tags(self, body: dict[str, Any]) -> None:
        listed = {n: m for n, m in self.state.models.items() if n != self.state.faults.forgotten}
        found = [
            {"name": name, "model": name, "digest": model.digest[7:], "details": details(model)}
            for name, model in listed.items()
        ]
        self._send(200, {"models": found})

    def _ps(self, body: dict[str, Any]) -> None:
        found = []
        for name in sorted(self.state.running()):
            model = self.state.models.get(name)
            size = self.state.blob(model.digest).stat().st_size if model else 1
            found.append({"name": name, "size": size, "size_vram": size // 2})
        self._send(200, {"models": found})

    def _generate(self, body: dict[str, Any]) -> None:
        name, model = self._known(body.get("model"))
        self._send(200, generate(self.state, name, model, body))

    def _chat(self, body: dict[str, Any]) -> None:
        name, model = self._known(body.get("model"))
        self._send(200, chat(self.state, name, model, body))


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]
