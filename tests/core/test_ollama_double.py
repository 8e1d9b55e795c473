"""The stand-in for an Ollama server itself: it refuses and does what a server of its version would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ollama import OllamaClient
from tests.ollama_double import OllamaDouble
from tests.ollama_engine import WordEngine
from tests.ollama_files import TEMPLATE, digest_of, write_gguf
from tests.ollama_models import REGISTRY, distance

TURNS = [{"role": "user", "content": "x"}]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", 100_000)


def create(server: OllamaDouble, gguf: Path, body: dict[str, Any]) -> httpx.Response:
    digest = digest_of(gguf)
    with OllamaClient(server.url) as client:
        client.push_blob(gguf, digest)
    files = dict.fromkeys(body.get("files", {"x.gguf": ""}), digest)
    return httpx.post(f"{server.url}/api/create", json={"model": "x", **body, "files": files})


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
        ({"from": "llama3"}, "a careful client does not send"),
        ({"renderer": "x"}, "a careful client does not send"),
        ({"template": "{{ .Prompt"}, "template error"),
        ({"parameters": {"typical_p": 0.5}}, "typical_p"),
        ({"parameters": {"surprise": 1}}, "does not send ['surprise']"),
        ({"model": "a b"}, "invalid model name"),
    ],
)
def test_the_double_is_strict(body: dict[str, Any], words: str, gguf: Path) -> None:
    with OllamaDouble() as server:
        answer = create(server, gguf, body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_versions_before_0_5_5_know_no_files(gguf: Path) -> None:
    with OllamaDouble(version="0.5.4") as server:
        assert "path or Modelfile" in create(server, gguf, {}).text


def test_the_double_refuses_a_foreign_host_with_an_empty_403() -> None:
    with OllamaDouble() as server:
        answer = httpx.get(f"{server.url}/api/version", headers={"Host": "evil.example.com"})
    assert (answer.status_code, answer.content) == (403, b"")


def test_a_post_of_a_blob_without_a_question_first_fails_the_test(gguf: Path) -> None:
    server = OllamaDouble()
    with pytest.raises(AssertionError, match="the double failed"), server, pytest.raises(httpx.HTTPError):
        httpx.post(f"{server.url}/api/blobs/{digest_of(gguf)}", content=gguf.read_bytes())


@pytest.mark.parametrize(("version", "same"), [("0.24.0", True), ("0.33.1", False), ("0.34.1", True)])
def test_one_generation_stores_other_bytes_and_needs_twice_the_room(
    version: str, same: bool, gguf: Path
) -> None:
    room = int(gguf.stat().st_size * 1.5)
    with OllamaDouble(version=version, disk=4 * room) as server:
        assert create(server, gguf, {}).text.endswith('{"status": "success"}\n')
        assert (server.state.models["x:latest"].digest == digest_of(gguf)) is same
    with OllamaDouble(version=version, disk=room) as server:
        assert ("no space left" not in create(server, gguf, {}).text) is same


def test_a_file_too_large_for_the_disk_is_refused(gguf: Path) -> None:
    with (
        OllamaDouble(disk=1000) as server,
        OllamaClient(server.url) as client,
        pytest.raises(TuneError, match="Make room"),
    ):
        client.push_blob(gguf, digest_of(gguf))


def test_a_template_close_to_a_known_one_is_replaced(tmp_path: Path) -> None:
    """The very thing the comment before an exported template prevents."""
    for number, (name, known) in enumerate(REGISTRY.items()):
        path = write_gguf(tmp_path / f"{number}.gguf", 1000, template=known.jinja + " " * 40)
        with OllamaDouble() as server, OllamaClient(server.url) as client:
            assert f"using autodetected template {name}" in create(server, path, {}).text
            assert client.show("x")["template"] == known.go
            assert known.stop[0] in client.show("x")["parameters"]
    far = write_gguf(tmp_path / "far.gguf", 1000, template=TEMPLATE)
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        assert "autodetected" not in create(server, far, {}).text
        assert client.show("x")["template"] == "{{ .Prompt }}"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", 0),
        ("kitten", "sitting", 3),
        ("abc", "abc", 0),
        ("a" * 150, "", 100),
        ("ab" * 90, "ba" * 90, 2),
    ],
)
def test_the_distance_of_two_templates(one: str, other: str, expected: int) -> None:
    assert distance(one, other) == expected


def test_a_family_with_a_renderer_gets_it_and_its_stop(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "g.gguf", 1000, architecture="gemma4")
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        create(server, path, {})
        shown = client.show("x")
    assert (shown["renderer"], shown["parser"]) == ("gemma4", "gemma4")
    assert "<turn|>" in shown["parameters"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"stop": "<end>"}, '"stop" must be of type array'), ({"num_ctx": "512"}, '"num_ctx" must be of type')],
)
def test_a_stored_parameter_of_the_wrong_type_breaks_every_request(
    parameters: dict[str, Any], words: str, gguf: Path
) -> None:
    with OllamaDouble(engine=WordEngine()) as server, OllamaClient(server.url) as client:
        assert create(server, gguf, {"parameters": parameters}).text.endswith('{"status": "success"}\n')
        with pytest.raises(TuneError, match="must be of type"):
            client.chat("x", TURNS)
        with pytest.raises(TuneError) as caught:
            client.complete("x", "x")
    assert words in caught.value.what


def test_before_0_30_a_file_without_a_go_template_gets_bare_texts(gguf: Path) -> None:
    with (
        OllamaDouble(version="0.24.0", engine=WordEngine()) as server,
        OllamaClient(server.url) as client,
    ):
        create(server, gguf, {})
        assert client.rendered("x", [{"role": "system", "content": "S"}, *TURNS]) == "x"


def test_what_a_model_requires_is_shown(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        create(server, gguf, {"requires": "0.30.0"})
        assert client.show("x")["requires"] == "0.30.0"


def test_an_unloaded_model_leaves_the_list_of_loaded_ones_a_little_later(gguf: Path) -> None:
    with OllamaDouble(engine=WordEngine()) as server, OllamaClient(server.url) as client:
        create(server, gguf, {})
        server.state.faults.unload_seconds = 0.3
        client.chat("x", TURNS)
        loaded = httpx.get(f"{server.url}/api/ps").json()["models"]
        assert loaded[0]["name"] == "x:latest"
        assert loaded[0]["size_vram"] > 0
        assert not client.unload("x")
        assert httpx.get(f"{server.url}/api/ps").json()["models"]
        assert client.unload("x", patience=2.0)
