"""OLLAMA_HOST by Ollama's own rules, and what is said of every kind of server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ollama_tune.core.machine import ollama
from ollama_tune.core.machine.ollama import is_local, ollama_url, read_ollama
from ollama_tune.core.machine.values import OllamaStatus
from tests.ollama_double import Faults, Model, OllamaDouble, silent_port

FORMS = [
    ("", "http://127.0.0.1:11434"),
    ("  ", "http://127.0.0.1:11434"),
    ("1.2.3.4", "http://1.2.3.4:11434"),
    ("1.2.3.4:1234", "http://1.2.3.4:1234"),
    (":1234", "http://127.0.0.1:1234"),
    (" 1.2.3.4 ", "http://1.2.3.4:11434"),
    ('"1.2.3.4"', "http://1.2.3.4:11434"),
    ("'example.com:5000'", "http://example.com:5000"),
    ("example.com", "http://example.com:11434"),
    ("localhost", "http://localhost:11434"),
    ("example.com:0", "http://example.com:0"),
    ("example.com:66000", "http://example.com:11434"),
    ("example.com:-1", "http://example.com:11434"),
    ("example.com:port", "http://example.com:11434"),
    ("example.com:", "http://example.com:11434"),
    ("http://1.2.3.4", "http://1.2.3.4:80"),
    ("https://1.2.3.4", "https://1.2.3.4:443"),
    ("https://1.2.3.4:-1", "https://1.2.3.4:443"),
    ("http://example.com:5000", "http://example.com:5000"),
    ("https://example.com/ollama", "https://example.com:443/ollama"),
    ("http://example.com:9/a/b/", "http://example.com:9/a/b"),
    ("example.com/ollama", "http://example.com:11434/ollama"),
    ("::1", "http://[::1]:11434"),
    ("[::1]", "http://[::1]:11434"),
    ("[::1]:1234", "http://[::1]:1234"),
    ("fe80::1", "http://[fe80::1]:11434"),
    ("http://[::1]", "http://[::1]:80"),
    ("0.0.0.0", "http://127.0.0.1:11434"),
    ("0.0.0.0:1234", "http://127.0.0.1:1234"),
    ("http://0.0.0.0:1234", "http://127.0.0.1:1234"),
    ("::", "http://[::1]:11434"),
    ("[::]:1234", "http://[::1]:1234"),
]


@pytest.mark.parametrize(("host", "url"), FORMS)
def test_every_form_of_ollama_host(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama_url() == url


def test_without_ollama_host_it_is_the_usual_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    assert ollama_url() == "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:11434", True),
        ("http://127.9.9.9:1", True),
        ("http://[::1]:11434", True),
        ("http://localhost:11434", True),
        (f"http://{socket.gethostname()}:11434", True),
        ("http://192.168.1.4:11434", False),
        ("https://ollama.example.com:443", False),
    ],
)
def test_local_is_this_machine_only(url: str, local: bool) -> None:
    assert is_local(url) is local


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> OllamaStatus:
    monkeypatch.setenv("OLLAMA_HOST", url)
    return read_ollama()


@contextmanager
def raw_server(answer: bytes, pause: float = 0.0) -> Iterator[str]:
    """Says the same bytes to everybody, one at a time when there is a pause."""
    closing = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                for piece in [answer[i : i + 1] for i in range(len(answer))] if pause else [answer]:
                    if closing.wait(pause):
                        return
                    try:
                        connection.sendall(piece)
                    except OSError:
                        break

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_a_server_is_found_with_its_version_and_loaded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble(version="0.35.1") as server:
        digest = f"sha256:{1:064d}"
        server.state.blob(digest).write_bytes(b"GGUF" + bytes(996))
        server.state.models["a:latest"] = Model(digest, {}, {})
        server.state.loaded.add("a:latest")
        status = ask(server.url, monkeypatch)
    assert (status.version, status.reachable, status.reason, status.local) == ("0.35.1", True, "", True)
    assert [(m.name, m.size, m.vram) for m in status.loaded] == [("a:latest", 1000, 500)]


def test_a_server_behind_a_key_is_asked_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble(faults=Faults(key="s3cret")) as server:
        status = ask(server.url, monkeypatch)
        assert not status.reachable
        assert "set OLLAMA_API_KEY" in status.reason
        monkeypatch.setenv("OLLAMA_API_KEY", "s3cret")
        assert ask(server.url, monkeypatch).reachable


def test_a_key_that_no_header_holds_is_a_sentence_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "s3c\x01ret")
    status = ask("127.0.0.1:9", monkeypatch)
    assert "OLLAMA_API_KEY" in status.reason
    assert "s3c" not in status.reason


def test_proxies_are_for_other_hosts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with OllamaDouble() as server:
        assert ask(server.url, monkeypatch).reachable
    assert not ask("nobody.invalid", monkeypatch).reachable


def test_nothing_there_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ask("127.0.0.1:9", monkeypatch)
    assert not status.reachable
    assert status.reason == "No Ollama answers at http://127.0.0.1:9; start it with `ollama serve`."


def test_a_server_that_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "LOCAL_PATIENCE", 0.3)
    with silent_port() as port:
        status = ask(f"127.0.0.1:{port}", monkeypatch)
    assert "in time" in status.reason


def test_a_server_that_trickles_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes comes within the patience, all of them together never do."""
    monkeypatch.setattr(ollama, "LOCAL_PATIENCE", 0.3)
    with raw_server(reply(b'{"version":"0.30.0"}'), pause=0.1) as host:
        status = ask(host, monkeypatch)
    assert "in time" in status.reason


def test_a_refused_address_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble(faults=Faults(forbidden=True)) as server:
        status = ask(server.url, monkeypatch)
    assert "refuses this address (403)" in status.reason
    assert "OLLAMA_HOST" in status.reason


def test_a_broken_server_is_told_from_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble(faults=Faults(broken=(500, "internal server error"))) as server:
        status = ask(server.url, monkeypatch)
    assert "answered 500" in status.reason


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"[]", b"{}", b'{"version": 3}', b"[" * 100_000, b"\xff\xfe", b'{"version":""}'],
)
def test_another_server_is_not_taken_for_ollama(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(reply(body)) as host:
        status = ask(host, monkeypatch)
    assert "is not Ollama" in status.reason


def test_an_answer_that_is_not_http_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(b"SSH-2.0-OpenSSH_9.6\r\n") as host:
        status = ask(host, monkeypatch)
    assert "cannot be asked" in status.reason
    assert "\n" not in status.reason


def test_control_characters_of_a_server_are_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(reply(json.dumps({"version": "0.3\x1b[2J"}).encode())) as host:
        status = ask(host, monkeypatch)
    assert status.version is not None
    assert "\x1b" not in status.version


@pytest.mark.parametrize(
    "host", ["ftp://example.com", "http://exa mple", "http://[::1", "http://exa\x7fmple"]
)
def test_an_impossible_address_is_a_sentence(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = ask(host, monkeypatch)
    assert not status.reachable
    assert status.reason.endswith(".")


def test_a_name_that_nobody_knows_is_remote_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ask("nobody.invalid", monkeypatch)
    assert not status.local
    assert not status.reachable
    assert "check OLLAMA_HOST" in status.reason
