"""A whole hand-over to a real Ollama server, under a name that is thrown away.

Run with `OLLAMA_TUNE_LIVE=1 pytest tests/core/test_ollama_live.py -s`; the server is the one at OLLAMA_HOST.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ollama import OllamaClient, same_name
from ollama_tune.core.export.preflight import preflight
from ollama_tune.core.machine.generations import DEVELOPMENT, generation, number_of
from ollama_tune.core.machine.ollama import ollama_url
from tests.core.handover_parts import Made
from tests.ollama_files import digest_of

LIVE = os.environ.get("OLLAMA_TUNE_LIVE") == "1"
HOST = os.environ.get("OLLAMA_HOST", "")
NAME = f"ollama-tune-live-test:run-{os.getpid()}"

pytestmark = pytest.mark.skipif(
    not LIVE, reason="asks a real Ollama; set OLLAMA_TUNE_LIVE=1 (and OLLAMA_HOST)"
)


def test_a_real_server_takes_proves_and_forgets_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", HOST)
    made = Made(tmp_path)
    path = made.folder.export / made.verification.file
    with OllamaClient(ollama_url()) as client:
        version = client.version()
        print(f"\nOllama {version} at {client.url}")
        for check in preflight(client.url, NAME, made.verification.bytes):
            print(f"  {check.verdict:8} {check.name}: {check.figure}. {check.text}")
            assert check.verdict != "fail"
        try:
            found, _ = made.give(name=NAME)
            for check in found.checks:
                print(f"  {check.verdict:8} {check.name}: {check.figure}. {check.text} {check.data}")
            assert found.ollama_name == NAME
            assert {"fail"}.isdisjoint(check.verdict for check in found.checks)
            shown = number_of(version) >= (0, 11, 5) or number_of(version) == DEVELOPMENT
            (prompt,) = [check for check in found.checks if check.name == "ollama prompt"]
            assert prompt.verdict == ("pass" if shown else prompt.verdict)
            assert [name for name in client.names() if "unfinished" in name and "live-test" in name] == []
            assert client.has_blob(digest_of(path)) or generation(version).copies == 2
        finally:
            if client.exists(NAME):
                client.delete(NAME)
        assert not any(same_name(name, NAME) for name in client.names())


def test_a_real_server_refuses_what_the_double_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", HOST)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(range(256)) * 100)
    with OllamaClient(ollama_url()) as client:
        assert not client.has_blob(f"sha256:{'0' * 64}")
        assert not client.exists("ollama-tune-is-not-there")
        client.push_blob(broken, digest_of(broken))
        for name, file in (
            ("a b", digest_of(broken)),
            (NAME, f"sha256:{'0' * 64}"),
            (NAME, digest_of(broken)),
        ):
            with pytest.raises(TuneError):
                client.create(name, {"x.gguf": file})
        assert not client.exists(NAME)
