"""A Hugging Face hub on this machine, as strict as the real one about addresses, ranges and commits."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = 50_000
"""Files from this size on are stored as the hub stores weights: with a SHA-256, behind a redirect."""


@dataclass
class Hub:
    """What the server holds and how it misbehaves; `requests` is what it was asked.

    `accounts` maps tokens to whether they were let in to a gated model; `sent` is what each request brought
    as its Authorization. Weights come from another address where `cdn` names one.
    """

    folder: Path
    url: str = ""
    repository: str = "org/tiny"
    gated: bool = False
    failing: int = 0
    cut_after: int = 0
    cuts: int = 0
    corrupt: bool = False
    ranges: bool = True
    cdn: str = ""
    said: str = ""
    accounts: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: list[tuple[str, str | None]] = field(default_factory=list)
    datasets: dict[str, Path] = field(default_factory=dict)
    commit: str = COMMIT
    """What `main` names now; what it named first is there too (of a data set as `id@commit`)."""

    def dataset_file(self, repository: str, name: str) -> bytes | None:
        """A file of a data set, in folders or not; `datasets` maps ids (or `id@revision`) to folders."""
        path = self.datasets[repository] / name
        return path.read_bytes() if ".." not in name and path.is_file() else None

    def dataset_info(self, repository: str) -> dict[str, object]:
        folder = self.datasets[repository]
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        siblings = [_sibling(name, (folder / name).read_bytes()) for name in names]
        gated = "manual" if self.gated else False
        name, _, revision = repository.partition("@")
        named = hashlib.sha1(repository.encode()).hexdigest() if revision != COMMIT else COMMIT
        names_of = {"id": name, "sha": named if revision else self.commit}
        return {**names_of, "gated": gated, "private": False, "siblings": siblings}

    def file(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if "/" not in name and path.is_file() else None

    def info(self, revision: str = "main") -> dict[str, object]:
        siblings = [_sibling(path.name, path.read_bytes()) for path in sorted(self.folder.iterdir())]
        gated = "manual" if self.gated else False
        sha = self.commit if revision in ("main", self.commit) else COMMIT
        names = {"id": self.repository, "modelId": self.repository, "sha": sha}
        return {**names, "gated": gated, "private": False, "siblings": siblings}


def _sibling(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "b" * 40}
    if len(content) >= LFS:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return entry


def _told(info: dict[str, object], query: dict[str, list[str]]) -> dict[str, object]:
    """An answer of the hub, which tells no sizes unless it is asked for them."""
    asked = query.get("blobs", ["false"])[0].lower() == "true"
    return info if asked else info | {"siblings": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""

    def do_HEAD(self) -> None:
        self._refuse(405, "", "not expected")

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        span = self.headers.get("Range")
        self.hub.requests.append(self.path + (f" {span}" if span else ""))
        token = self.headers.get("Authorization")
        self.hub.sent.append((address.path, token))
        if self.hub.failing:
            self._refuse(self.hub.failing, "", self.hub.said or "out of order")
        elif token is not None and token.removeprefix("Bearer ") not in self.hub.accounts:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif parts[:2] == ["api", "models"]:
            self._api(parts[2:], parse_qs(address.query))
        elif parts[:2] == ["api", "datasets"]:
            self._dataset_api(parts[2:], parse_qs(address.query))
        elif parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            self._dataset_resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        elif parts[0] == "cdn" and len(parts) == 2:
            self._send(self.hub.file(parts[1]) or b"")
        elif len(parts) == 5 and "/".join(parts[:2]) == self.hub.repository and parts[2] == "resolve":
            self._resolve(parts[3], parts[4])
        else:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if "/".join(parts[:2]) != self.hub.repository:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif parts[2:] and parts[3:] not in [[name] for name in ("main", "v1", COMMIT, self.hub.commit)]:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            self._json(_told(self.hub.info(*parts[3:]), query))

    def _dataset_api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        name, revision = "/".join(parts[:2]), "/".join(parts[3:]) or "main"
        known = name if revision in ("main", "v1", self.hub.commit) else f"{name}@{revision}"
        if name not in self.hub.datasets:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif known not in self.hub.datasets:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            self._json(_told(self.hub.dataset_info(known), query))

    def _dataset_resolve(self, repository: str, commit: str, name: str) -> None:
        known = {
            str(self.hub.dataset_info(key)["sha"]): key
            for key in self.hub.datasets
            if key.startswith(repository)
        }
        content = self.hub.dataset_file(known[commit], name) if commit in known else None
        if commit not in known:
            self._refuse(404, "RevisionNotFound", "files must be taken from one commit")
        elif self.hub.gated and not self._let_in():
            signed_in = "Authorization" in self.headers
            self._refuse(403 if signed_in else 401, "GatedRepo", "Access to data set is restricted")
        elif content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send(content)

    def _resolve(self, revision: str, name: str) -> None:
        content = self.hub.file(name)
        if revision not in (COMMIT, self.hub.commit):
            self._refuse(404, "RevisionNotFound", "files must be taken from one commit")
        elif self.hub.gated and not self._let_in():
            known = "Authorization" in self.headers
            self._refuse(403 if known else 401, "GatedRepo", "Access to model is restricted")
        elif content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif len(content) >= LFS:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.cdn}/cdn/{name}")
            self.send_header("X-Repo-Commit", revision)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(content)

    def _let_in(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.accounts.get(token, False)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode())

    def _send(self, content: bytes) -> None:
        start, end = 0, len(content)
        span = self.headers.get("Range") if self.hub.ranges else None
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
            if start >= len(content):
                self._refuse(416, "", "range not satisfiable")
                return
        body = content[start:end]
        if self.hub.corrupt and len(content) >= LFS:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.hub.cuts and len(body) > self.hub.cut_after and (span or "").endswith("-"):
            self.hub.cuts -= 1
            self.wfile.write(body[: self.hub.cut_after])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    """Serve the files of `folder` as the model `org/tiny`."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def online(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """`running`, and this process asks it as if it were huggingface.co, with no token."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(folder) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
