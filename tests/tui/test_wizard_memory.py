"""Who holds memory, Ollama's models that give it back, and the last look before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ollama_tune.core.machine import unload
from ollama_tune.core.machine.ollama import read_ollama
from ollama_tune.core.machine.values import Machine, OtherGpu
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.widgets.confirm import TypedConfirmScreen
from ollama_tune.tui.widgets.errors import ErrorScreen
from tests.ollama_double import Faults, Model, OllamaDouble
from tests.tui.conftest import GIB, Corner, cpu_machine, gpu_machine, settled, shown


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaDouble]:
    """An Ollama on this box that holds two models and frees them after a while."""
    monkeypatch.setattr(unload, "POLL", 0.02)
    monkeypatch.setattr(unload, "CALM", 0.1)
    with OllamaDouble(faults=Faults(unload_seconds=1.5)) as double:
        monkeypatch.setenv("OLLAMA_HOST", double.url)
        for number, name in enumerate(("gemma:2b", "llama3:8b")):
            digest = f"sha256:{number + 1:064d}"
            double.state.blob(digest).write_bytes(b"GGUF" + bytes(996))
            double.state.models[name] = Model(digest, {}, {})
            double.state.loaded.add(name)
        yield double


def box() -> Machine:
    """A box without a GPU, with whatever Ollama answers now."""
    return replace(cpu_machine(), ollama=read_ollama())


def words(text: str) -> str:
    return " ".join(text.replace("│", "").split())


async def test_one_key_unloads_ollamas_models_and_the_box_is_looked_at_again(
    corner: Corner, server: OllamaDouble
) -> None:
    app = corner.app(machine=box)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
        assert "Ollama keeps llama3:8b loaded" in text
        assert "u lets it unload gemma:2b, llama3:8b." in text
        told: list[str] = []
        app.screen.watch(app, "facts", lambda facts: told.append(facts.busy.get("unload", "")))
        await pilot.press("u")
        await settled(pilot)
        assert "Ollama unloads its models … 1 s" in told
        text = words(shown(app))
        assert not server.state.running()
        assert "Ollama let gemma:2b, llama3:8b go." in text
        assert "keeps" not in text and "u lets it" not in text and "u Unload" not in text


async def test_a_server_that_does_not_answer_any_more_is_said(corner: Corner, server: OllamaDouble) -> None:
    machine = replace(box(), ollama=replace(read_ollama(), url="http://127.0.0.1:9"))
    app = corner.app(machine=lambda: machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("u")
        await settled(pilot)
        assert "does not answer, so its models stay loaded." in words(shown(app))


@pytest.mark.parametrize("far", [True, False])
async def test_there_is_nothing_to_unload_elsewhere_or_where_nothing_is_loaded(
    corner: Corner, far: bool
) -> None:
    status = gpu_machine().ollama
    status = replace(status, local=False) if far else replace(status, loaded=())
    app = corner.app(machine=lambda: replace(gpu_machine(), ollama=status))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert "unload" not in shown(app).lower()
        assert ("on another machine" in shown(app)) == far
        await pilot.press("u")
        await settled(pilot)
        assert not app.facts.unloaded


async def test_other_gpus_and_unusable_ones_are_named_with_the_reason(corner: Corner) -> None:
    report = replace(
        gpu_machine().gpu,
        usable=False,
        reason="The installed PyTorch is made for the CPU only.",
        others=(OtherGpu("AMD", "AMD GPU (gfx1100)", None, None, "An AMD GPU is here; it is not used."),),
        notes=("GPU 1 is left out: CUDA_VISIBLE_DEVICES hides it.",),
    )
    app = corner.app(machine=lambda: replace(gpu_machine(), gpu=report))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = words(shown(app))
    assert "! The installed PyTorch is made for the CPU only." in text
    assert "! An AMD GPU is here; it is not used." in text
    assert "GPU 1 is left out" in text
    assert "Training on the CPU is fine" in text


async def test_a_run_whose_memory_was_taken_meanwhile_is_not_started_unsaid(corner: Corner) -> None:
    free = [24 * GIB]
    app = corner.app(step=5, machine=lambda: cpu_machine(free[0]))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None and app.facts.plan.memory.fits
        free[0] = 64 << 20
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, ErrorScreen)
        text = words(shown(app))
        assert "only 64.0 MiB are free now. editor (process 99) holds 1.5 GiB of RAM." in text
        assert "The plan is made anew" in text
        assert list_runs() == []
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert not app.facts.plan.memory.fits
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, TypedConfirmScreen)
