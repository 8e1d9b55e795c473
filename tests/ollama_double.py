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

from tests.ollama_state import Answer, Faults, Model, Refusal, Request, State

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
CREATE_FIELDS = {"model", "files", "parameters", "stream", "system", "template", "license"}
OLD_CREATE_FIELDS = {"adapters", "quantize", "from"}
ZERO = f"sha256:{0:064d}"


class OllamaDouble:
    """`with OllamaDouble() as server:` … `server.url`. Unexpected failures inside it fail the test."""

    def __init__(
        self,
        *,
        version: str = "0.34.4",
        answer: Answer = lambda gguf, body: ("It is blue.", "stop"),
        faults: Faults | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.state = State(version, Path(self._folder.name), answer, faults or Faults())

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
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
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
    timeout = 20
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _serve(self) -> None:
        try:
            self._check_address()
            self._route()
        except Refusal as refusal:
            self._send(refusal.status, {"error": str(refusal)} if str(refusal) else None)

    do_GET = do_HEAD = do_POST = do_DELETE = _serve

    def _check_address(self) -> None:
        """The Host header must be local; the refusal has no body, and neither are bytes read."""
        host = self.headers.get("Host", "").rpartition(":")[0]
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
        length, received = int(self.headers["Content-Length"]), 0
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
        if faults.stall_mid_upload and received > length // 4:
            self._record(received)
            self.state.closing.wait(20)
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
        model = self._checked(body)
        if body.get("stream") is False:
            raise Refusal(400, "the double only streams")
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self._create_lines(name, model):
            content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.write(b"0\r\n\r\n")

    def _checked(self, body: dict[str, Any]) -> Model:
        state = self.state
        if body.get("adapters"):
            words = "LoRA adapters are no longer supported" if state.current else "the double takes none"
            raise Refusal(400, words)
        files = body.get("files")
        if not files:
            raise Refusal(400, "neither 'from' or 'files' was specified")
        if body.get("quantize") and state.current:
            raise Refusal(400, "create-time quantization is only supported for safetensors imports")
        unknown = set(body) - CREATE_FIELDS - (set() if state.current else OLD_CREATE_FIELDS)
        if unknown:
            raise Refusal(400, f"a careful client does not send {sorted(unknown)}")
        for name, digest in files.items():
            self._check_file(name, digest)
        if len(files) != 1:
            raise Refusal(400, "mixed model file types")
        return Model(next(iter(files.values())), dict(files), dict(body.get("parameters") or {}))

    def _check_file(self, name: str, digest: str) -> None:
        parts = name.split("/")
        bad = not name or any(part in ("", ".", "..") for part in parts)
        if bad or (self.state.current and ("\\" in name or ":" in name)):
            raise Refusal(400, "invalid file name")
        if not DIGEST.fullmatch(digest):
            raise Refusal(400, "invalid digest format")
        if not self.state.blob(digest).exists():
            raise Refusal(400, f"blob {digest} not found")
        if name.endswith(".safetensors"):
            raise Refusal(400, "unsupported MLX architecture")
        if self.state.blob(digest).read_bytes()[:4] != b"GGUF":
            raise Refusal(400, "supplied file was not in GGUF format")

    def _create_lines(self, name: str, model: Model) -> Iterator[dict[str, Any]]:
        faults = self.state.faults
        yield {"status": "parsing GGUF"}
        if faults.create_silence:
            time.sleep(faults.create_silence)
        if faults.create_error is not None:
            yield {"error": faults.create_error}
            return
        if not self.state.current:
            for done in (0, 50, 100, 120):
                yield {"status": "validating GGUF model", "digest": ZERO, "total": 100, "completed": done}
        yield {"status": "a status of tomorrow \x85 \u2028 with separators"}
        yield {"status": f"using existing layer {model.digest}"}
        yield {"status": "writing manifest"}
        if faults.create_without_success:
            return
        self.state.models[name] = model
        yield {"status": "success"}

    def _show(self, body: dict[str, Any]) -> None:
        _, model = self._known(body.get("model"))
        self._send(200, {"template": "{{ .Prompt }}", "parameters": json.dumps(model.parameters)})

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
        found = [{"name": name, "digest": model.digest[7:]} for name, model in self.state.models.items()]
        self._send(200, {"models": found})

    def _ps(self, body: dict[str, Any]) -> None:
        found = []
        for name in self.state.loaded:
            model = self.state.models.get(name)
            size = self.state.blob(model.digest).stat().st_size if model else 1
            found.append({"name": name, "size": size, "size_vram": size // 2})
        self._send(200, {"models": found})

    def _generate(self, body: dict[str, Any]) -> None:
        name, _ = self._known(body.get("model"))
        if body.get("keep_alive") != 0 or body.get("prompt"):
            raise Refusal(400, "the double only unloads by generate")
        self.state.loaded.discard(name)
        self._send(200, {"model": body["model"], "response": "", "done": True, "done_reason": "unload"})

    def _chat(self, body: dict[str, Any]) -> None:
        name, model = self._known(body.get("model"))
        stop = model.parameters.get("stop", [])
        if not isinstance(stop, list):
            raise Refusal(400, 'option "stop" must be of type array')
        if body.get("stream") is not False:
            raise Refusal(400, "the double only answers whole")
        self.state.loaded.add(name)
        if self.state.faults.chat_error:
            raise Refusal(500, self.state.faults.chat_error)
        text, reason = self.state.answer(self.state.blob(model.digest), body)
        answer = {"model": body["model"], "message": {"role": "assistant", "content": text}, "done": True}
        self._send(200, answer | {"done_reason": reason, "prompt_eval_count": 9, "eval_count": 4})


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]
