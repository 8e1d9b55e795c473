"""As much of Ollama as is asked before an export: version, models, whether a name is taken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(BaseHTTPRequestHandler):
    """It has one model, `taken`."""

    version = ""

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(200, {"version": self.version} if self.path == "/api/version" else {"models": []})

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        known = name.removesuffix(":latest") == "taken"
        self._answer(200, {"details": {}}) if known else self._answer(404, {"error": "model not found"})

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def answering(version: str) -> Iterator[str]:
    """An Ollama of that version while the block runs: its host and port."""
    handler = type("Versioned", (Server,), {"version": version})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
