"""Whether an Ollama server answers, by the same rules for OLLAMA_HOST as Ollama's own client."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ollama_tune.core.errors import UsageError
from ollama_tune.core.machine.values import OllamaModel, OllamaStatus
from ollama_tune.core.text import one_line, visible

if TYPE_CHECKING:
    import httpx

DEFAULT_PORT = "11434"
LOCAL_PATIENCE, REMOTE_PATIENCE = 0.9, 1.9
MAX_ANSWER = 1 << 20
Answer = tuple[int, dict[str, Any]]
"""Status and JSON object."""


def ollama_url() -> str:
    """The server's address from `OLLAMA_HOST`, as `scheme://host:port[/path]`.

    Without a scheme the port is 11434, with one it is 80 or 443; a wrong port counts as none, and an
    address that means "every interface" becomes loopback (rules of Ollama's envconfig).
    """
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    default = {"http": "80", "https": "443"}.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    place, _, path = rest.partition("/")
    host, port = _split_port(place, default)
    host = _connectable(host)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}" + (f"/{path}".rstrip("/") if path else "")


def _split_port(place: str, default: str) -> tuple[str, str]:
    """Host without brackets, and the port or the default where it is missing or wrong."""
    inside, bracket, after = place.removeprefix("[").partition("]")
    if place.startswith("[") and bracket:
        host, port = inside, after.removeprefix(":")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    else:
        host, port = place, ""
    valid = port.isascii() and port.isdecimal() and len(port) <= 9 and int(port) <= 65535
    return host, str(int(port)) if valid else default


def _connectable(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)


def is_local(url: str) -> bool:
    """Whether the address is this machine, so that the server's GPU memory is this machine's too."""
    try:
        host = urlsplit(url).hostname or ""
        return host in ("localhost", socket.gethostname().lower()) or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def authorization() -> dict[str, str]:
    """The header for a server that asks for a key (`OLLAMA_API_KEY`), as Ollama's own clients send it.

    Raises `UsageError` for a key that no header can hold; the key itself is in no message.
    """
    key = os.environ.get("OLLAMA_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OLLAMA_API_KEY holds a character that no key has.", "Set it again, or unset it.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def read_ollama() -> OllamaStatus:
    """Ask the server for its version and loaded models; answers within 1 s (2 s for a remote one)."""
    url = ollama_url()
    local = is_local(url)
    patience = LOCAL_PATIENCE if local else REMOTE_PATIENCE
    answers: list[OllamaStatus] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(url, local, patience)), daemon=True)
    thread.start()
    thread.join(patience)
    return answers[0] if answers else _silent(url, local)


def _silent(url: str, local: bool) -> OllamaStatus:
    return OllamaStatus(url, None, f"Nothing answers at {url} in time; {_advice(local)}.", local)


def _advice(local: bool) -> str:
    return "start it with `ollama serve`" if local else "check OLLAMA_HOST and that the server is on"


def _ask(url: str, local: bool, patience: float) -> OllamaStatus:
    ask = _ask_here if local and url.startswith("http://") else _ask_there
    try:
        return ask(url, local, patience)
    except UsageError as error:
        return OllamaStatus(url, None, str(error), local)


def _ask_here(url: str, local: bool, patience: float) -> OllamaStatus:
    """Ask a server of this machine by the standard library: httpx takes longer to import than all the rest
    of the probe, and the first screen waits for it.
    """
    import http.client

    place = urlsplit(url)

    def get(path: str) -> Answer:
        server = http.client.HTTPConnection(place.hostname or "", place.port, timeout=patience)
        with contextlib.closing(server):
            server.request("GET", place.path + path, headers=authorization())
            answer = server.getresponse()
            return answer.status, object_of(answer.read(MAX_ANSWER))

    try:
        return _status(url, local, get)
    except TimeoutError:
        return _silent(url, local)
    except (http.client.HTTPException, ValueError) as error:
        return _not_asked(url, local, error)
    except OSError:
        return _absent(url, local)


def _ask_there(url: str, local: bool, patience: float) -> OllamaStatus:
    """Ask any other server, through the proxies and certificates that hold for it."""
    import httpx

    try:
        with open_client(url, patience) as client:
            return _status(url, local, lambda path: request(client, "GET", path))
    except httpx.ConnectError:
        return _absent(url, local)
    except httpx.TimeoutException:
        return _silent(url, local)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _not_asked(url, local, error)


def _status(url: str, local: bool, get: Callable[[str], Answer]) -> OllamaStatus:
    """What two answers say of the server."""
    status, answer = get("/api/version")
    if status != 200:
        return OllamaStatus(url, None, refusal(url, status), local)
    version = answer.get("version")
    if not isinstance(version, str) or not version:
        text = f"What answers at {url} is not Ollama; set OLLAMA_HOST to Ollama's address."
        return OllamaStatus(url, None, text, local)
    status, answer = get("/api/ps")
    return OllamaStatus(url, one_line(version, 40), "", local, loaded_models(answer) if status == 200 else ())


def _absent(url: str, local: bool) -> OllamaStatus:
    return OllamaStatus(url, None, f"No Ollama answers at {url}; {_advice(local)}.", local)


def _not_asked(url: str, local: bool, error: Exception) -> OllamaStatus:
    text = f"{url} cannot be asked ({one_line(str(error), 80)}); check OLLAMA_HOST."
    return OllamaStatus(url, None, text, local)


def refusal(url: str, status: int) -> str:
    """Why a server does not answer with what was asked for, and what to do."""
    if status == 403:
        return (
            f"Ollama at {url} refuses this address (403); "
            "set OLLAMA_HOST to 127.0.0.1, or start the server with OLLAMA_HOST=0.0.0.0."
        )
    if status == 401:
        return f"Ollama at {url} asks for a key (401); set OLLAMA_API_KEY to one that it takes."
    return f"{url} answered {status} instead of a version; restart Ollama or check OLLAMA_HOST."


def open_client(url: str, patience: float) -> httpx.Client:
    """A client for a server; proxies are for other hosts only. `patience` in seconds for each answer."""
    import httpx

    return httpx.Client(base_url=url, timeout=patience, trust_env=not is_local(url), headers=authorization())


def loaded_models(answer: dict[str, Any]) -> tuple[OllamaModel, ...]:
    """What an answer of `/api/ps` says the server holds in memory: bytes in all and on the GPU."""
    models = answer.get("models")
    found = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
    return tuple(
        OllamaModel(visible(str(m.get("name", "")))[:200], _count(m.get("size")), _count(m.get("size_vram")))
        for m in found
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def request(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
    """Status and JSON object; an endless answer is cut, and what is no object counts as an empty one."""
    content = b""
    with client.stream(method, path, json=body) as answer:
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > MAX_ANSWER:
                break
    return answer.status_code, object_of(content)


def object_of(content: bytes) -> dict[str, Any]:
    """The JSON object in an answer; anything else counts as an empty one."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
