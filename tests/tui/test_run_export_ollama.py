"""The export's screen beside an Ollama: whether it can take the model, and names it has already."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.widgets import Input

from ollama_tune.core.export.values import Check
from ollama_tune.core.machine.ollama import read_ollama
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.plan.settings import ExportSettings
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.exporting import remarks
from ollama_tune.tui.screens import export as export_screen
from ollama_tune.tui.widgets.confirm import ConfirmScreen

from .conftest import cpu_machine
from .run_logs import Log, open_app, screen_text, until, until_text


async def test_a_model_that_ollama_has_is_replaced_only_after_a_yes(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✓ Ollama 0.34.4 at", "keeps the file as it is", "MiB")
        app.screen.query_one("#name", Input).value = "taken"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await until_text(pilot, "Replace taken in Ollama?")
        await pilot.press("enter")
        await until_text(pilot, "Name in Ollama", "Enter Export")
        assert not folder.export_request_path.exists() and not folder.alive()


async def test_an_ollama_that_is_started_meanwhile_is_found(
    trained: tuple[RunFolder, Log], ollama: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_screen, "KNOCK", 0.2)
    app = open_app(trained[0], 8, cpu_machine)
    async with app.run_test() as pilot:
        await until_text(pilot, "(•) f16", "✓ Ollama 0.34.4 at", "keeps the file as it is")


async def test_an_answer_about_another_name_comes_too_late(trained: tuple[RunFolder, Log]) -> None:
    app = open_app(trained[0], 8, cpu_machine)
    async with app.run_test() as pilot:
        await until_text(pilot, "(•) f16", "– No Ollama answers")
        status = replace(cpu_machine().ollama, version="0.34.4")
        late = [Check("ollama name", "warn", "exists", "an-older-name exists.")]
        app.screen.post_message(export_screen.Asked(status, ("an-older-name", 1), late))
        await pilot.pause(0.2)
        assert "older-name" not in screen_text(app) and "– No Ollama answers" in screen_text(app)


async def test_the_name_of_a_model_that_ollama_has_is_told_before_enter(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    app = open_app(trained[0], 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✓ Ollama 0.34.4 at", "MiB")
        app.screen.query_one("#name", Input).value = "taken"
        await pilot.press("tab")
        await until_text(pilot, "! taken:latest exists and is replaced once")


def test_a_run_without_questions_remarks_on_a_model_that_will_be_replaced(ollama: None) -> None:
    (remark,) = remarks(ExportSettings(name="taken"))
    assert "taken:latest exists and is replaced" in remark
    assert remarks(ExportSettings(name="free")) == remarks(ExportSettings(name="taken", push=False)) == []
    assert remarks(ExportSettings()) == []


@pytest.mark.parametrize("version", ["0.5.1"])
async def test_an_ollama_that_cannot_take_it_is_named_and_the_file_alone_is_possible(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "✗ Ollama 0.5.1 at", "✗ This Ollama makes no models", "MiB")
        await pilot.press("enter")
        await until_text(pilot, "press F2 and say no to Send to Ollama", "Enter Export")
        assert not folder.export_request_path.exists()
        await pilot.press("f2", "tab", "tab", "space", "enter")
        await until(pilot, folder.export_request_path.exists)
        assert folder.export_settings().push is False
        await until_text(pilot, "has no tuned model yet")


@pytest.mark.parametrize("version", ["0.34.0"])
async def test_another_host_and_a_version_that_writes_twice_are_named(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    def remote() -> Machine:
        return replace(cpu_machine(), ollama=replace(read_ollama(), local=False))

    app = open_app(trained[0], 8, remote)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "(another host) gets the model", "rewrites the file", "– unknown")
