"""Ollama's models are let go, and their memory is waited for, on a server that frees it later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.machine import unload
from ollama_tune.core.machine.unload import settled, unload_loaded
from tests.nvml_double import GIB
from tests.ollama_double import Faults, Model, OllamaDouble
from tests.ports import free_port


class Clock:
    """It only moves by sleeping, so that a busy box changes nothing; the server has the real time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(unload, "time", made)
    return made


@pytest.fixture
def server() -> Iterator[OllamaDouble]:
    with OllamaDouble(faults=Faults(unload_seconds=0.2)) as double:
        hold(double, "llama3:8b", "gemma:2b")
        yield double


def hold(double: OllamaDouble, *names: str) -> None:
    """Models that are loaded."""
    for number, name in enumerate(names):
        digest = f"sha256:{number + 1:064d}"
        double.state.blob(digest).write_bytes(b"GGUF" + bytes(996))
        double.state.models[name] = Model(digest, {}, {})
        double.state.loaded.add(name)


def memory_of(double: OllamaDouble, late: int = 3) -> Callable[[], dict[str, int]]:
    """A driver that gives memory back some looks after the server let it go."""
    looks = 0

    def free() -> dict[str, int]:
        nonlocal looks
        looks += not double.state.running()
        return {"GPU-1": 20 * GIB if looks > late else 8 * GIB}

    return free


def test_all_models_go_and_the_memory_is_waited_for(server: OllamaDouble) -> None:
    found = unload_loaded(server.url, free_now=memory_of(server))
    assert found.complete
    assert [(model.name, model.vram) for model in found.gone] == [("gemma:2b", 500), ("llama3:8b", 500)]
    assert (found.free, found.gained) == ({"GPU-1": 20 * GIB}, 12 * GIB)
    bodies = [request.body for request in server.asked("POST", "/api/generate")]
    assert bodies == [{"model": name, "keep_alive": 0, "stream": False} for name in ("gemma:2b", "llama3:8b")]


def test_a_model_that_stays_is_named(server: OllamaDouble) -> None:
    server.state.faults.unload_seconds = 60
    found = unload_loaded(server.url, patience=1.0, free_now=lambda: {"GPU-1": 8 * GIB})
    assert not found.complete
    assert [model.name for model in found.left] == ["gemma:2b", "llama3:8b"]
    assert (found.gone, found.gained) == ((), 0)


def test_a_model_that_somebody_loads_meanwhile_is_left(server: OllamaDouble) -> None:
    def meanwhile() -> bool:
        if "new:1b" not in server.state.models:
            hold(server, "new:1b")
        return False

    found = unload_loaded(server.url, free_now=memory_of(server), stopped=meanwhile)
    assert [model.name for model in found.left] == ["new:1b"]
    assert {model.name for model in found.gone} == {"gemma:2b", "llama3:8b"}


def test_a_person_can_stop_the_waiting(server: OllamaDouble) -> None:
    server.state.faults.unload_seconds = 60
    asked: list[bool] = []
    found = unload_loaded(server.url, free_now=dict, stopped=lambda: asked.append(True) or True)
    assert len(found.left) == 2 and len(asked) == 1


def test_nothing_loaded_is_nothing_asked() -> None:
    with OllamaDouble() as server:
        found = unload_loaded(server.url, free_now=lambda: {"GPU-1": GIB})
        assert (found.complete, found.gone, found.free, found.gained) == (True, (), {"GPU-1": GIB}, 0)
        assert server.asked("POST", "/api/generate") == []


def test_the_server_of_another_host_is_left_alone() -> None:
    with pytest.raises(UsageError, match="another machine"):
        unload_loaded("http://192.0.2.1:11434")


def test_no_server_and_a_refusing_server_are_told() -> None:
    with pytest.raises(TuneError, match="does not answer"):
        unload_loaded(f"http://127.0.0.1:{free_port()}", free_now=dict)
    locked = OllamaDouble(faults=Faults(key="s3cret"))
    with locked as server, pytest.raises(TuneError, match="does not tell which models") as caught:
        unload_loaded(server.url, free_now=dict)
    assert "OLLAMA_API_KEY" in caught.value.details


def test_the_server_is_found_by_ollama_host(server: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    assert unload_loaded(free_now=dict).complete


def test_free_memory_is_the_least_once_it_rises_no_more() -> None:
    values = iter([1 * GIB, 5 * GIB, 9 * GIB, 8 * GIB, 9 * GIB, *[9 * GIB] * 1000])
    assert settled(lambda: {"GPU-1": next(values)}) == {"GPU-1": 8 * GIB}


def test_memory_that_never_comes_to_rest_is_not_waited_for_without_end(clock: Clock) -> None:
    seen: list[int] = []

    def rising() -> dict[str, int]:
        seen.append(1)
        return {"GPU-1": len(seen) * GIB}

    assert settled(rising)["GPU-1"] == len(seen) * GIB
    assert clock.now == unload.LONGEST_WATCH


def test_without_a_gpu_nothing_is_waited_for(clock: Clock) -> None:
    assert settled(dict, calm=60) == {}
    assert clock.now == 0
