"""The way into Ollama against the strict double, and against a real server when OLLAMA_TUNE_LIVE=1."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.publish import Generation, generation, publish, require_supported
from ollama_tune.core.export.values import ExportStopped
from tests.ollama_double import Faults, OllamaDouble, silent_port

MIB = 1 << 20


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 12_000)
    return path


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def refused(call: Any) -> TuneError:
    with pytest.raises(TuneError) as caught:
        call()
    error = caught.value
    assert error.what.endswith(".")
    assert error.fix.endswith(".")
    assert "\n" not in str(error)
    return error


# versions


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.5.4", Generation.TOO_OLD),
        ("0.5.5", Generation.GO_TEMPLATES),
        ("0.24.0", Generation.GO_TEMPLATES),
        ("0.30.0", Generation.CONVERTING),
        ("0.30.0-rc2", Generation.CONVERTING),
        ("0.34.0", Generation.CONVERTING),
        ("0.34.1", Generation.CURRENT),
        ("v0.40.2", Generation.CURRENT),
        ("1.0.0", Generation.CURRENT),
        ("0.0.0", Generation.CURRENT),
        ("made at home", Generation.CURRENT),
    ],
)
def test_every_version_has_its_generation(version: str, expected: Generation) -> None:
    assert generation(version) is expected


def test_the_version_is_read() -> None:
    with OllamaDouble(version="0.31.2") as server, OllamaClient(server.url) as client:
        assert client.version() == "0.31.2"


@pytest.mark.parametrize("version", ["0.5.4", "0.24.0"])
def test_an_old_server_is_refused_before_anything_is_sent(version: str, gguf: Path) -> None:
    with OllamaDouble(version=version) as server, OllamaClient(server.url) as client:
        error = refused(lambda: publish(client, "x", gguf, digest_of(gguf)))
        assert version in error.what
        assert "0.30 or newer" in error.fix
        assert not server.asked("POST", "/")


# blobs


def test_a_file_is_sent_whole_with_byte_progress(gguf: Path) -> None:
    seen: list[tuple[int, int]] = []
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        assert client.push_blob(gguf, digest_of(gguf), lambda done, total: seen.append((done, total)))
        assert server.state.blob(digest_of(gguf)).read_bytes() == gguf.read_bytes()
    size = gguf.stat().st_size
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_a_blob_that_exists_is_not_sent_again(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        assert not client.has_blob(digest_of(gguf))
        assert client.push_blob(gguf, digest_of(gguf))
        assert client.has_blob(digest_of(gguf))
        assert not client.push_blob(gguf, digest_of(gguf))
        assert [r.method for r in server.asked("POST", "/api/blobs/")] == ["POST"]


def test_other_bytes_than_promised_are_refused_in_the_servers_words(gguf: Path) -> None:
    wrong = f"sha256:{'ab' * 32}"
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.push_blob(gguf, wrong))
        assert "digest mismatch" in error.what
        assert "check the disk" in error.fix
        assert list(server.state.folder.glob("sha256-*")) == []


def test_a_dropped_connection_is_tried_once_more_from_the_start(gguf: Path) -> None:
    seen: list[int] = []
    with OllamaDouble(faults=Faults(die_mid_upload=1)) as server, OllamaClient(server.url) as client:
        assert client.push_blob(gguf, digest_of(gguf), lambda done, total: seen.append(done))
        assert server.state.blob(digest_of(gguf)).exists()
        assert len(server.asked("POST", "/api/blobs/")) == 2
    assert seen.count(0) >= 2


def test_two_dropped_connections_are_an_error_that_says_where_to_look(gguf: Path) -> None:
    with OllamaDouble(faults=Faults(die_mid_upload=9)) as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.push_blob(gguf, digest_of(gguf)))
        assert "closed the connection twice" in error.what
        assert "disk space" in error.fix
        assert len(server.asked("POST", "/api/blobs/")) == 2


def test_a_connection_lost_after_the_last_byte_is_no_failure(gguf: Path) -> None:
    with (
        OllamaDouble(faults=Faults(blob_gone_after_upload=True)) as server,
        OllamaClient(server.url) as client,
    ):
        assert client.push_blob(gguf, digest_of(gguf))
        assert len(server.asked("POST", "/api/blobs/")) == 1


@pytest.mark.parametrize("stall", [True, False])
def test_an_upload_stops_within_a_second(stall: bool, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    big.write_bytes(b"GGUF" + bytes(96 * MIB))
    wish = threading.Event()
    with (
        OllamaDouble(faults=Faults(stall_mid_upload=stall)) as server,
        OllamaClient(server.url) as client,
    ):

        def progress(done: int, total: int) -> None:
            if done:
                wish.set()

        digest = digest_of(big)
        start = time.monotonic()
        with pytest.raises(ExportStopped):
            client.push_blob(big, digest, progress, wish.is_set)
        assert time.monotonic() - start < 1.5
        assert not server.state.blob(digest).exists()


def test_an_error_in_a_callback_ends_the_upload_and_is_the_callers(gguf: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with (
        OllamaDouble() as server,
        OllamaClient(server.url) as client,
        pytest.raises(ZeroDivisionError),
    ):
        client.push_blob(gguf, digest_of(gguf), progress)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.push_blob(tmp_path / "gone.gguf", f"sha256:{'0' * 64}"))
    assert "gone.gguf cannot be read" in error.what


def test_a_wrong_digest_is_a_mistake_of_the_program(gguf: Path) -> None:
    with (
        OllamaDouble() as server,
        OllamaClient(server.url) as client,
        pytest.raises(ValueError, match="digest"),
    ):
        client.push_blob(gguf, "sha256:" + "AB" * 32)


# servers in trouble


def test_nobody_there_says_how_to_start_it() -> None:
    with OllamaClient("http://127.0.0.1:9") as client:
        error = refused(client.version)
    assert error.what == "No Ollama answers at http://127.0.0.1:9."
    assert "ollama serve" in error.fix


def test_a_server_gone_before_the_upload_is_named(gguf: Path) -> None:
    with OllamaDouble() as server:
        client = OllamaClient(server.url)
    with client:
        assert "No Ollama answers" in refused(lambda: client.push_blob(gguf, digest_of(gguf))).what


def test_a_refused_address_is_explained(gguf: Path) -> None:
    with OllamaDouble(faults=Faults(forbidden=True)) as server, OllamaClient(server.url) as client:
        for call in (client.version, lambda: client.push_blob(gguf, digest_of(gguf))):
            error = refused(call)
            assert "refuses this address (403)" in error.what
            assert "OLLAMA_HOST" in error.fix


def test_a_failing_server_is_quoted_with_visible_characters(gguf: Path) -> None:
    words = "no space left on device \x1b[31m\u202e" + "x" * 5000
    with OllamaDouble(faults=Faults(broken=(500, words))) as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.delete("x"))
        assert "no space left on device" in error.what
        assert "Make room" in error.fix
        assert "\x1b" not in error.what
        assert "\u202e" not in error.what
        assert len(error.what) < 400
        assert "status 500" in refused(lambda: client.push_blob(gguf, digest_of(gguf))).what


def test_an_address_that_is_none_is_named() -> None:
    for url in ("ftp://x", "http://[::1", "nonsense"):
        with pytest.raises(UsageError, match="OLLAMA_HOST"):
            OllamaClient(url)


def test_another_server_is_not_taken_for_ollama() -> None:
    with OllamaDouble(version="") as server, OllamaClient(server.url) as client:
        assert "is not Ollama" in refused(client.version).what


# create


def push_and_create(client: OllamaClient, gguf: Path, name: str = "my-tune", **more: Any) -> list[str]:
    client.push_blob(gguf, digest_of(gguf))
    seen: list[str] = []
    client.create(
        name, {"my-tune.gguf": digest_of(gguf)}, on_status=lambda text, done, total: seen.append(text), **more
    )
    return seen


def test_a_model_is_made_with_its_parameters(gguf: Path) -> None:
    parameters = {"stop": ["<|im_end|>"], "num_ctx": 512, "temperature": 0.7}
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        seen = push_and_create(client, gguf, parameters=parameters)
        made = server.state.models["my-tune:latest"]
        assert (made.digest, made.parameters) == (digest_of(gguf), parameters)
        (request,) = server.asked("POST", "/api/create")
        assert set(request.body) == {"model", "files", "parameters", "stream"}
        assert client.exists("my-tune")
        assert not client.exists("other")
    assert seen[0] == "parsing GGUF"
    assert seen[-1] == "success"


def test_an_unknown_status_is_shown_and_harmless(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        seen = push_and_create(client, gguf)
    (odd,) = [text for text in seen if "tomorrow" in text]
    assert "\x85" not in odd
    assert "\u2028" not in odd
    assert "with separators" in odd


def test_a_converting_server_is_followed_too(gguf: Path) -> None:
    with OllamaDouble(version="0.30.0-rc2") as server, OllamaClient(server.url) as client:
        seen = push_and_create(client, gguf)
    assert "validating GGUF model" in seen


def test_an_error_in_the_middle_of_the_stream_is_a_failure(gguf: Path) -> None:
    faults = Faults(create_error='unsupported architecture "NewForCausalLM"')
    with OllamaDouble(faults=faults) as server, OllamaClient(server.url) as client:
        error = refused(lambda: push_and_create(client, gguf))
        assert "NewForCausalLM" in error.what
        assert "Update Ollama" in error.fix
        assert server.state.models == {}


def test_a_stream_that_ends_without_success_is_a_failure(gguf: Path) -> None:
    faults = Faults(create_without_success=True)
    with OllamaDouble(faults=faults) as server, OllamaClient(server.url) as client:
        error = refused(lambda: push_and_create(client, gguf))
    assert "last: writing manifest" in error.what


@pytest.mark.parametrize("name", ["", "a b", "-x", "a/b/c/d", "ü", "x" * 81])
def test_a_name_the_server_refuses_is_refused(name: str, gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: push_and_create(client, gguf, name))
    assert "invalid model name" in error.what
    assert "letters" in error.fix


def test_a_blob_the_server_lacks_is_refused() -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.create("x", {"x.gguf": f"sha256:{'1' * 64}"}))
    assert "not found" in error.what


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04 zip")
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: push_and_create(client, path))
    assert "not in GGUF format" in error.what


@pytest.mark.parametrize(
    "parameters", [{"stop": "<end>"}, {"num_ctx": "512"}, {"num_ctx": True}, {"surprise": 1}]
)
def test_a_parameter_of_the_wrong_type_never_leaves(parameters: dict[str, Any], gguf: Path) -> None:
    with (
        OllamaDouble() as server,
        OllamaClient(server.url) as client,
        pytest.raises(ValueError, match="not a parameter"),
    ):
        client.create("x", {"x.gguf": digest_of(gguf)}, parameters)
    assert not server.asked("POST", "/api/create")


def test_a_silent_create_can_be_stopped(gguf: Path) -> None:
    with (
        OllamaDouble(faults=Faults(create_silence=3.0)) as server,
        OllamaClient(server.url) as client,
    ):
        client.push_blob(gguf, digest_of(gguf))
        start = time.monotonic()
        with pytest.raises(ExportStopped):
            client.create("x", {"x.gguf": digest_of(gguf)}, stopped=lambda: time.monotonic() - start > 0.3)
        assert time.monotonic() - start < 1.3


# answers


def test_a_test_question_is_answered_at_temperature_0(gguf: Path) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def answer(path: Path, body: dict[str, Any]) -> tuple[str, str]:
        asked.append((path, body))
        return "Blue.", "stop"

    with OllamaDouble(answer=answer) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        got = client.chat("my-tune", [{"role": "user", "content": "Colour?"}], max_new_tokens=9)
        assert server.state.loaded == {"my-tune:latest"}
        client.unload("my-tune")
        assert server.state.loaded == set()
    assert (got.text, got.done_reason, got.prompt_tokens, got.tokens) == ("Blue.", "stop", 9, 4)
    (path, body) = asked[0]
    assert path.name == digest_of(gguf).replace(":", "-")
    assert body["options"]["temperature"] == 0
    assert body["options"]["num_predict"] == 9


def test_a_model_that_does_not_load_is_quoted(gguf: Path) -> None:
    faults = Faults(chat_error="llama runner process has terminated")
    with OllamaDouble(faults=faults) as server, OllamaClient(server.url) as client:
        push_and_create(client, gguf)
        error = refused(lambda: client.chat("my-tune", [{"role": "user", "content": "x"}]))
    assert "runner process has terminated" in error.what
    assert "restart it" in error.fix


def test_an_answer_can_be_stopped() -> None:
    with silent_port() as port, OllamaClient(f"http://127.0.0.1:{port}") as client:
        start = time.monotonic()
        with pytest.raises(ExportStopped):
            client.chat("x", [{"role": "user", "content": "x"}], stopped=lambda: True)
        assert time.monotonic() - start < 1.0


# publish


def old_model(server: OllamaDouble, client: OllamaClient, tmp_path: Path) -> str:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF old")
    push_and_create(client, path, "mine:v1")
    return digest_of(path)


def test_publish_replaces_a_model_in_one_go_and_leaves_nothing_else(gguf: Path, tmp_path: Path) -> None:
    tried: list[str] = []
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        before = old_model(server, client, tmp_path)

        def check(name: str) -> None:
            tried.append(name)
            assert server.state.models["mine:v1"].digest == before
            assert client.chat(name, [{"role": "user", "content": "x"}]).done_reason == "stop"

        name = publish(client, " mine:v1 ", gguf, digest_of(gguf), parameters={"stop": ["x"]}, check=check)
        assert name == "mine:v1"
        assert {k: m.digest for k, m in server.state.models.items()} == {"mine:v1": digest_of(gguf)}
        assert server.state.loaded == set()
    assert tried == ["mine:v1-unfinished"]


@pytest.mark.parametrize("where", ["create", "check", "stop"])
def test_a_failed_publish_leaves_the_old_model(where: str, gguf: Path, tmp_path: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        before = old_model(server, client, tmp_path)
        server.state.faults.create_error = "boom" if where == "create" else None
        server.state.faults.create_silence = 1.0 if where == "stop" else 0.0

        def check(name: str) -> None:
            raise TuneError("The answer is wrong.", "Look.")

        started = time.monotonic()
        with pytest.raises(TuneError):
            publish(
                client,
                "mine:v1",
                gguf,
                digest_of(gguf),
                check=check,
                stopped=lambda: where == "stop" and time.monotonic() - started > 0.5,
            )
        assert server.state.models["mine:v1"].digest == before
        server.state.faults = Faults()
        publish(client, "mine:v1", gguf, digest_of(gguf))
        assert list(server.state.models) == ["mine:v1"]


def test_a_wrong_name_is_refused_before_anything_is_sent(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        with pytest.raises(UsageError, match="a space"):
            publish(client, "my tune", gguf, digest_of(gguf))
        assert server.state.requests == []


# the double itself refuses what a real server refuses


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"adapters": {"a": "x"}}, "LoRA adapters are no longer supported"),
        ({"quantize": "q4_K_M"}, "create-time quantization"),
        ({"files": {"../x.gguf": "D"}}, "invalid file name"),
        ({"files": {"/x.gguf": "D"}}, "invalid file name"),
        ({"files": {"a:b.gguf": "D"}}, "invalid file name"),
        ({"files": {"x.safetensors": "D"}}, "unsupported MLX architecture"),
        ({"files": {}}, "neither 'from' or 'files'"),
    ],
)
def test_the_double_is_strict(body: dict[str, Any], words: str, gguf: Path) -> None:
    import httpx

    digest = digest_of(gguf)
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        client.push_blob(gguf, digest)
        files = dict.fromkeys(body.get("files", {"x.gguf": ""}), digest)
        answer = httpx.post(f"{server.url}/api/create", json={"model": "x", **body, "files": files})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_the_double_refuses_a_foreign_host_with_an_empty_403() -> None:
    import httpx

    with OllamaDouble() as server:
        answer = httpx.get(f"{server.url}/api/version", headers={"Host": "evil.example.com"})
    assert (answer.status_code, answer.content) == (403, b"")


LIVE = os.environ.get("OLLAMA_TUNE_LIVE") == "1"


@pytest.mark.skipif(not LIVE, reason="OLLAMA_TUNE_LIVE=1 asks a real Ollama; it is not set")
def test_a_real_server_speaks_as_the_double_does(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ollama_tune.core.machine.ollama import ollama_url

    monkeypatch.setenv("OLLAMA_HOST", os.environ.get("OLLAMA_TUNE_LIVE_HOST", ""))
    with OllamaClient(ollama_url()) as client:
        require_supported(client)
        assert not client.has_blob(f"sha256:{'0' * 64}")
        assert not client.exists("ollama-tune-is-not-there")
        client.push_blob(gguf, digest_of(gguf))
        assert client.has_blob(digest_of(gguf))
        refused(lambda: client.create("ollama-tune-test", {"x.gguf": digest_of(gguf)}))
        assert not client.exists("ollama-tune-test")
