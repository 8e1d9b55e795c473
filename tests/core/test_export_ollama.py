"""The way into Ollama against the strict double, and against a real server when OLLAMA_TUNE_LIVE=1."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import upload
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.export.wire import Unreachable
from tests.ollama_double import Faults, OllamaDouble
from tests.ollama_files import digest_of, write_gguf

MIB = 1 << 20


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0.01, 0.01, 0.01))


def refused(call: Any) -> TuneError:
    with pytest.raises(TuneError) as caught:
        call()
    error = caught.value
    assert error.what.endswith(".")
    assert error.fix.endswith(".")
    assert "\n" not in str(error)
    return error


def test_the_version_is_read() -> None:
    with OllamaDouble(version="0.31.2") as server, OllamaClient(server.url) as client:
        assert client.version() == "0.31.2"


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


def test_both_answers_to_a_file_are_fine(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """201 for a new file; 200 where another client was quicker, between the question and the sending."""
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        assert client.push_blob(gguf, digest_of(gguf))
        monkeypatch.setattr(client, "has_blob", lambda digest: False)
        assert client.push_blob(gguf, digest_of(gguf))
        assert len(server.asked("POST", "/api/blobs/")) == 2


def test_other_bytes_than_promised_are_refused_in_the_servers_words(gguf: Path) -> None:
    wrong = f"sha256:{'ab' * 32}"
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.push_blob(gguf, wrong))
        assert "digest mismatch" in error.what
        assert "check the disk" in error.fix
        assert list((server.state.folder / "blobs").iterdir()) == []


@pytest.mark.parametrize("times", [1, 3])
def test_a_dropped_connection_is_tried_again_from_the_start(times: int, gguf: Path) -> None:
    seen: list[int] = []
    with OllamaDouble(faults=Faults(die_mid_upload=times)) as server, OllamaClient(server.url) as client:
        assert client.push_blob(gguf, digest_of(gguf), lambda done, total: seen.append(done))
        assert server.state.blob(digest_of(gguf)).read_bytes() == gguf.read_bytes()
        assert len(server.asked("POST", "/api/blobs/")) == times + 1
    assert seen.count(0) >= times + 1


def test_a_connection_dropped_every_time_is_an_error_that_says_where_to_look(gguf: Path) -> None:
    with OllamaDouble(faults=Faults(die_mid_upload=9)) as server, OllamaClient(server.url) as client:
        error = refused(lambda: client.push_blob(gguf, digest_of(gguf)))
        assert "closed the connection 4 times" in error.what
        assert "disk space" in error.fix
        assert len(server.asked("POST", "/api/blobs/")) == 4
        assert list((server.state.folder / "blobs").iterdir()) == []


def test_a_stop_between_two_tries_is_heard(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PAUSES", (600.0,))
    with OllamaDouble(faults=Faults(die_mid_upload=9)) as server, OllamaClient(server.url) as client:
        with pytest.raises(ExportStopped):
            client.push_blob(gguf, digest_of(gguf), stopped=lambda: bool(server.asked("POST", "/api/blobs/")))
        assert len(server.asked("POST", "/api/blobs/")) == 1


def test_a_connection_lost_after_the_last_byte_is_no_failure(gguf: Path) -> None:
    with (
        OllamaDouble(faults=Faults(blob_gone_after_upload=True)) as server,
        OllamaClient(server.url) as client,
    ):
        assert client.push_blob(gguf, digest_of(gguf))
        assert len(server.asked("POST", "/api/blobs/")) == 1


@pytest.mark.parametrize("stall", [True, False])
def test_an_upload_can_be_stopped(stall: bool, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    big.write_bytes(b"GGUF" + bytes(16 * MIB))
    wish = threading.Event()
    with (
        OllamaDouble(faults=Faults(stall_mid_upload=stall, slow_upload=0.01)) as server,
        OllamaClient(server.url) as client,
    ):

        def progress(done: int, total: int) -> None:
            if done:
                wish.set()

        digest = digest_of(big)
        with pytest.raises(ExportStopped):
            client.push_blob(big, digest, progress, wish.is_set)
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
    assert isinstance(error, Unreachable)
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
        OllamaDouble(faults=Faults(create_silence=600.0)) as server,
        OllamaClient(server.url) as client,
    ):
        client.push_blob(gguf, digest_of(gguf))
        with pytest.raises(ExportStopped):
            asked = server.asked
            client.create(
                "x", {"x.gguf": digest_of(gguf)}, stopped=lambda: bool(asked("POST", "/api/create"))
            )
