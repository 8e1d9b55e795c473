"""Versions, what is looked at before any work, and the way to a name that never harms an older model."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import preflight as preflight_module
from ollama_tune.core.export import publish as publish_module
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.preflight import free_space, model_folder, preflight, require_room
from ollama_tune.core.export.publish import Recipe, publish
from ollama_tune.core.export.values import Check, ExportStopped
from ollama_tune.core.machine.generations import (
    CONVERTING,
    CURRENT,
    GO_TEMPLATES,
    TOO_OLD,
    Generation,
    generation,
    require_usable,
)
from tests.core.train_parts import wait_for
from tests.ollama_double import Faults, OllamaDouble, silent_port
from tests.ollama_engine import WordEngine
from tests.ollama_files import digest_of, write_gguf

TURNS = [{"role": "user", "content": "x"}]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", 300_000)


# versions


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.48", TOO_OLD),
        ("0.5.4", TOO_OLD),
        ("0.5.5", GO_TEMPLATES),
        ("0.24.0", GO_TEMPLATES),
        ("0.30.0", CONVERTING),
        ("0.30.0-rc2", CONVERTING),
        ("0.34.0", CONVERTING),
        ("0.34.1", CURRENT),
        ("0.34.1-rc0", CURRENT),
        ("v0.40.2", CURRENT),
        ("0.40.2+dirty", CURRENT),
        ("1.0.0", CURRENT),
        ("0.0.0", CURRENT),
        ("0.0.0-dev", CURRENT),
        ("made at home", CURRENT),
        ("9" * 5000, CURRENT),
    ],
)
def test_every_version_has_its_generation(version: str, expected: Generation) -> None:
    assert generation(version) is expected


def test_a_version_that_cannot_take_a_file_is_refused_by_name() -> None:
    with pytest.raises(TuneError, match=r"Ollama 0\.5\.4 is too old.*0\.30 or newer"):
        require_usable("0.5.4")
    assert require_usable("0.24.0").native_template is False
    assert require_usable("0.31.0").copies == 2


# before any work


def found(url: str, name: str = "mine", size: int = 1000) -> dict[str, Check]:
    checks = preflight(url, name, size)
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.text.endswith(".") for check in checks)
    return {check.name.removeprefix("ollama "): check for check in checks}


def test_a_good_server_passes_every_check() -> None:
    with OllamaDouble() as server:
        checks = found(server.url)
        assert not server.asked("POST", "/api/blobs")
    assert {name: check.verdict for name, check in checks.items()} == {
        "version": "pass",
        "name": "pass",
        "disk": checks["disk"].verdict,
    }


def test_a_name_that_exists_is_noted(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        client.push_blob(gguf, digest_of(gguf))
        client.create("mine", {"m.gguf": digest_of(gguf)})
        assert found(server.url, "MINE:latest")["name"].figure == "exists"
        assert found(server.url, "other")["name"].verdict == "pass"


@pytest.mark.parametrize("name", ["a b", "", "mine:cloud", "mine:7b-cloud", "x" * 81])
def test_a_name_that_ollama_refuses_is_a_reason_not_to_begin(name: str) -> None:
    with OllamaDouble() as server:
        assert found(server.url, name)["name"].verdict == "fail"
        assert server.state.requests == []


def test_an_old_server_is_a_reason_not_to_begin() -> None:
    with OllamaDouble(version="0.5.4") as server:
        check = found(server.url)["version"]
    assert (check.verdict, check.figure) == ("fail", "0.5.4")
    assert "0.30 or newer" in check.text


def test_a_development_version_is_noted() -> None:
    with OllamaDouble(version="0.0.0") as server:
        assert found(server.url)["version"].verdict == "warn"


def test_no_server_is_no_reason_not_to_begin() -> None:
    assert found("http://127.0.0.1:9")["version"].verdict == "skipped"
    assert found("nonsense")["version"].verdict == "fail"


@pytest.mark.parametrize(("version", "copies"), [("0.24.0", 1), ("0.33.0", 2), ("0.34.4", 1)])
def test_the_disk_of_a_local_server_needs_room_by_its_version(
    version: str, copies: int, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, digest = 10_000, digest_of(gguf)
    with OllamaDouble(version=version) as server, OllamaClient(server.url) as client:
        client.push_blob(gguf, digest)
        client.create("old", {"m.gguf": digest})
        asked: list[Path] = []

        def usage(place: Path) -> tuple[int, int, int]:
            asked.append(place)
            return shutil._ntuple_diskusage(0, 0, copies * size)  # type: ignore[attr-defined]

        monkeypatch.setattr(shutil, "disk_usage", usage)
        fits, not_quite = found(server.url, size=size), found(server.url, size=size + 1)
        assert asked[0] == server.state.folder
        require_room(client, generation(version), f"sha256:{0:064d}", size)
        with pytest.raises(TuneError, match="Make room"):
            require_room(client, generation(version), f"sha256:{0:064d}", size + 1)
        require_room(client, generation(version), digest, copies * size)
    assert (fits["disk"].verdict, not_quite["disk"].verdict) == ("pass", "fail")
    assert ("twice the file" in fits["disk"].text) == (copies == 2)


def test_the_disk_of_a_server_without_models_is_looked_for_in_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        assert free_space(client) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
        monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "gone"))
        monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
        monkeypatch.setattr(preflight_module, "SERVICE_MODELS", str(tmp_path / "no service"))
        assert free_space(client) is None
        assert found(server.url)["disk"].verdict == "skipped"


def test_the_disk_of_another_host_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "is_local", lambda url: False)
    with OllamaDouble() as server:
        check = found(server.url)["disk"]
        assert not server.asked("GET", "/api/tags")
    assert (check.verdict, check.figure) == ("skipped", "unknown")


def test_a_folder_that_only_the_server_sees_is_unknown(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("/in/a/container")
    monkeypatch.setattr(preflight_module, "model_folder", lambda shown: place)
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        client.push_blob(gguf, digest_of(gguf))
        client.create("mine", {"m.gguf": digest_of(gguf)})
        assert free_space(client) is None


@pytest.mark.parametrize(
    ("modelfile", "folder"),
    [
        ("# FROM a\n\nFROM /var/lib/ollama/blobs/sha256-00\nTEMPLATE x", Path("/var/lib/ollama")),
        ("FROM some-model", None),
        ("FROM /models/x.gguf", None),
        ("# FROM /a/blobs/sha256-00", None),
        (None, None),
    ],
)
def test_the_models_folder_is_read_from_a_modelfile(modelfile: str | None, folder: Path | None) -> None:
    assert model_folder({"modelfile": modelfile}) == folder


def test_a_server_that_is_silent_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "PATIENCE", 0.3)
    with silent_port() as port:
        assert found(f"http://127.0.0.1:{port}")["version"].verdict == "skipped"


# publish


def old_model(client: OllamaClient, tmp_path: Path) -> str:
    path = write_gguf(tmp_path / "old.gguf", 100_000)
    client.push_blob(path, digest_of(path))
    client.create("mine:v1", {"old.gguf": digest_of(path)})
    return digest_of(path)


@pytest.mark.parametrize("unload_seconds", [0.0, 0.4])
def test_publish_replaces_a_model_in_one_go_and_leaves_nothing_else(
    unload_seconds: float, gguf: Path, tmp_path: Path
) -> None:
    tried: list[str] = []
    faults = Faults(unload_seconds=unload_seconds)
    with OllamaDouble(engine=WordEngine(), faults=faults) as server, OllamaClient(server.url) as client:
        before = old_model(client, tmp_path)

        def check(name: str) -> None:
            tried.append(name)
            assert server.state.models["mine:v1"].digest == before
            assert client.chat(name, TURNS).done_reason == "stop"

        recipe = Recipe({"stop": ["x"], "num_ctx": 4096}, system="Be brief.")
        made = publish(client, " mine:v1 ", gguf, digest_of(gguf), recipe, check=check)
        assert (made.name, made.unloaded) == ("mine:v1", True)
        assert list(server.state.models) == ["mine:v1"]
        model = server.state.models["mine:v1"]
        assert (model.digest, model.parameters, model.system) == (
            digest_of(gguf),
            recipe.parameters,
            "Be brief.",
        )
        assert server.state.running() == set()
        (sent,) = [r.body for r in server.asked("POST", "/api/create") if r.body["model"] != "mine:v1"]
        assert set(sent) == {"model", "files", "parameters", "system", "stream"}
    assert tried == ["mine:v1-unfinished"]


def test_a_model_that_stays_in_memory_is_told(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "UNLOADING", 0.3)
    faults = Faults(unload_seconds=60.0)
    with OllamaDouble(engine=WordEngine(), faults=faults) as server, OllamaClient(server.url) as client:
        made = publish(
            client, "mine", gguf, digest_of(gguf), Recipe(), check=lambda name: client.chat(name, TURNS)
        )
    assert not made.unloaded


@pytest.mark.parametrize("where", ["create", "check", "stop"])
@pytest.mark.parametrize("version", ["0.33.0", "0.34.4"])
def test_a_failed_publish_leaves_the_old_model(version: str, where: str, gguf: Path, tmp_path: Path) -> None:
    with OllamaDouble(version=version) as server, OllamaClient(server.url) as client:
        old_model(client, tmp_path)
        before = server.state.models["mine:v1"]
        server.state.faults.create_error = "boom" if where == "create" else None
        server.state.faults.create_silence = 600.0 if where == "stop" else 0.0

        def check(name: str) -> None:
            raise TuneError("The answer is wrong.", "Look.")

        with pytest.raises(ExportStopped if where == "stop" else TuneError):
            publish(
                client,
                "mine:v1",
                gguf,
                digest_of(gguf),
                Recipe(),
                check=check,
                stopped=lambda: where == "stop" and len(server.asked("POST", "/api/create")) > 1,
            )
        assert server.state.models["mine:v1"] is before
        server.state.faults = Faults()
        server.state.speak.set()
        wait_for(lambda: not server.state.active)
        publish(client, "mine:v1", gguf, digest_of(gguf), Recipe())
        assert list(server.state.models) == ["mine:v1"]


def test_a_stop_does_not_wait_for_a_server_that_has_stalled(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        answered, waited = threading.Event(), list[bool]()
        monkeypatch.setattr(client, "unload", lambda *_: waited.append(answered.wait(60)))

        def check(name: str) -> None:
            raise ExportStopped

        with pytest.raises(ExportStopped):
            publish(client, "mine", gguf, digest_of(gguf), Recipe(), check=check)
        assert waited == []
        answered.set()


def test_a_model_that_is_not_listed_afterwards_is_a_failure(gguf: Path) -> None:
    with (
        OllamaDouble(faults=Faults(forgotten="mine:latest")) as server,
        OllamaClient(server.url) as client,
        pytest.raises(TuneError, match="does not list it"),
    ):
        publish(client, "mine", gguf, digest_of(gguf), Recipe())


def test_a_wrong_name_is_refused_before_anything_is_sent(gguf: Path) -> None:
    with OllamaDouble() as server, OllamaClient(server.url) as client:
        with pytest.raises(UsageError, match="a space"):
            publish(client, "my tune", gguf, digest_of(gguf), Recipe())
        assert server.state.requests == []
