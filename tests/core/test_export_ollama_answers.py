"""What a model in Ollama is asked over HTTP, keys, and names, against the strict double."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.export.ollama import OllamaClient, same_name
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.export.wire import Refused
from tests.core.test_export_ollama import push_and_create, refused
from tests.ollama_double import Faults, OllamaDouble, silent_port
from tests.ollama_engine import WordEngine
from tests.ollama_files import digest_of, write_gguf


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", 100_000)


TURNS = [{"role": "user", "content": "Which colour?"}]


def test_a_test_question_is_answered_at_temperature_0(gguf: Path) -> None:
    with OllamaDouble(engine=WordEngine("Blue.")) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        got = client.chat("my-tune", TURNS, max_new_tokens=9)
        (asked,) = server.asked("POST", "/api/chat")
        assert server.state.loaded == {"my-tune:latest"}
    assert (got.text, got.done_reason, got.prompt_tokens, got.tokens) == ("Blue.", "stop", 3, 4)
    options = {"temperature": 0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0, "num_predict": 9}
    assert asked.body["options"] == options


def test_a_prompt_is_completed_without_a_template_and_counted(gguf: Path) -> None:
    with OllamaDouble(engine=WordEngine()) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        assert client.complete("my-tune", "one two three four").prompt_tokens == 4
        (asked,) = server.asked("POST", "/api/generate")
        assert (asked.body["raw"], asked.body["options"]["num_predict"]) == (True, 1)
        server.state.faults.uncounted = True
        assert client.complete("my-tune", "one two").prompt_tokens == 0


@pytest.mark.parametrize(("version", "shows"), [("0.11.4", False), ("0.11.5", True), ("0.34.4", True)])
def test_the_rendered_prompt_is_shown_by_servers_that_can(version: str, shows: bool, gguf: Path) -> None:
    with OllamaDouble(version=version, engine=WordEngine()) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        rendered = client.rendered("my-tune", TURNS)
    assert (rendered is not None) is shows
    assert rendered is None or "Which colour?" in rendered


def test_a_loaded_model_is_unloaded_and_seen_to_be(gguf: Path) -> None:
    faults = Faults(unload_seconds=0.5)
    with OllamaDouble(engine=WordEngine(), faults=faults) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        client.chat("my-tune", TURNS)
        assert not client.unload("my-tune")
        assert client.unload("MY-TUNE:latest", patience=60.0)
        assert server.state.running() == set()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("llama-server process has terminated: unknown model architecture: 'qwen9'", "Update Ollama"),
        ("unable to load model: unsupported architecture", "Update Ollama"),
        ("llama-server binary not found (checked: /usr/lib/ollama)", "Install Ollama again"),
        ("model requires more system memory (9.1 GiB) than is available (4.0 GiB)", "smaller type"),
        ("llama-server process has terminated: cudaMalloc failed: out of memory", "smaller type"),
        ("llama runner process has terminated: exit status 2", "restart it"),
    ],
)
def test_a_model_that_does_not_load_is_quoted_with_what_helps(words: str, advice: str, gguf: Path) -> None:
    with OllamaDouble(faults=Faults(chat_error=words)) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        error = refused(lambda: client.chat("my-tune", TURNS))
    assert isinstance(error, Refused)
    assert words in error.what
    assert advice in error.fix


def test_an_answer_can_be_stopped() -> None:
    with (
        silent_port() as port,
        OllamaClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(ExportStopped),
    ):
        client.chat("x", TURNS, stopped=lambda: True)


# keys and names


def test_a_key_is_sent_where_one_is_set(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble(faults=Faults(key="s3cret")) as server:
        with OllamaClient(server.url) as client:
            error = refused(client.version)
        assert "unauthorized" in error.what
        assert "OLLAMA_API_KEY" in error.fix
        monkeypatch.setenv("OLLAMA_API_KEY", " s3cret ")
        with OllamaClient(server.url) as client:
            assert client.version()
            assert client.push_blob(gguf, digest_of(gguf))


def test_a_key_that_is_none_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "s3c\nret")
    with pytest.raises(UsageError, match="OLLAMA_API_KEY") as caught:
        OllamaClient("http://127.0.0.1:9")
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a", "a:latest", True),
        ("A:V1", "a:v1", True),
        ("registry.ollama.ai/library/a", "a:latest", True),
        ("me/a", "registry.ollama.ai/me/a:latest", True),
        ("localhost:5000/me/a", "localhost:5000/me/a:latest", True),
        ("a:v1", "a:v2", False),
        ("me/a", "a", False),
    ],
)
def test_names_of_the_same_model_are_recognised(one: str, other: str, same: bool) -> None:
    assert same_name(one, other) is same
