"""The export's screen: the form, the request to the worker, its progress, and failures."""

from __future__ import annotations

import pytest
from textual.widgets import Input

from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan import gguf_types
from ollama_tune.core.plan.gguf_types import export_bytes
from ollama_tune.core.plan.settings import ExportSettings
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.widgets.choice import GgufTypes
from ollama_tune.tui.widgets.export_form import ExportForm

from .conftest import cpu_machine
from .run_logs import NASTY, Log, alive, make_run, open_app, screen_text, until, until_text


async def test_the_form_comes_with_name_types_and_what_happens_without_ollama(
    trained: tuple[RunFolder, Log],
) -> None:
    """The recommended type stands first and is chosen; it says what each type costs, and why this one."""
    app = open_app(trained[0], 8, cpu_machine)
    spec = read_spec("bundled")
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "(•) f16", "( ) q4_k_m", "– No Ollama answers")
        text = screen_text(app)
        first = next(line for line in text.split("\n") if "✓ fits" in line)
        assert "(•) f16" in first and "recommended" in first
        for name in ("f16", "q8_0", "q4_k_m"):
            line = next(line for line in text.split("\n") if f") {name} " in line)
            assert human_bytes(export_bytes(spec, name)) in line  # type: ignore[arg-type]
        assert "why: the model is tiny" in text and "KL" not in text
        assert "left in the run's folder" in " ".join(text.split())
        await pilot.press("tab", "down")
        assert app.screen.query_one(GgufTypes).value == "q8_0"
        await until_text(pilot, "(•) q8_0", "to run; recommended: f16, the model is tiny")


async def test_a_type_that_was_asked_for_stays_and_the_recommended_one_is_marked() -> None:
    folder = make_run(name="mine", type="q4_k_s")
    Log(folder).trained()
    app = open_app(folder, 8, cpu_machine)
    async with app.run_test() as pilot:
        await until_text(pilot, "(•) q4_k_s", "( ) f16", "recommended: f16")
        assert app.screen.query_one("#name", Input).value == "mine"


async def test_a_type_too_large_for_the_box_is_marked(trained: tuple[RunFolder, Log]) -> None:
    app = open_app(trained[0], 8, lambda: cpu_machine(free=1 << 20))
    async with app.run_test() as pilot:
        await until_text(pilot, "! too large")
        assert "✓ fits" not in screen_text(app)


async def test_a_type_that_cannot_be_written_here_is_not_started(
    trained: tuple[RunFolder, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_types, "k_types_available", lambda: False)
    folder = trained[0]
    app = open_app(folder, 8, cpu_machine)
    async with app.run_test() as pilot:
        await until_text(pilot, "(•) f16", "✗ not here")
        await pilot.press("tab", "down", "down", "enter")
        await until_text(pilot, "(•) q6_k", "q6_k needs llama.cpp's quantizer")
        assert not folder.export_request_path.exists() and not app.screen.query_one("#log").display


async def test_more_shows_every_type_and_what_few_need(trained: tuple[RunFolder, Log]) -> None:
    """All of it goes into the request; a second F2 hides it and keeps the answers."""
    app = open_app(trained[0], 8, cpu_machine)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "(•) f16", "F2 shows more")
        assert "Importance" not in screen_text(app)
        await pilot.press("f2")
        await until_text(pilot, "( ) f32", "( ) q4_0", "KL 0.0719", "Importance", "[ ] merged model")
        await pilot.press(
            "space", "tab", *"Be kind.", "tab", "space", "tab", "space", "down", "down", "space"
        )
        await until_text(pilot, "[x] merged", "[ ] adapter: ", "[x] adapter as GGUF", "Nothing is sent")
        asked = app.screen.query_one(ExportForm).asked
        assert (asked.importance, asked.system, asked.push) == (False, "Be kind.", False)
        assert asked.also == ["merged", "adapter_gguf"]
        await pilot.press("f2")
        await until_text(pilot, "F2 shows more")
        assert "Importance" not in screen_text(app)
        assert app.screen.query_one(ExportForm).asked == asked and app.focused is not None


async def test_help_belongs_to_the_focused_field(trained: tuple[RunFolder, Log]) -> None:
    app = open_app(trained[0], 8, cpu_machine)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "(•) f16")
        await pilot.press("tab", "f1")
        await until_text(pilot, "Help: File for Ollama", "Q4_K_M.")
        await pilot.press("escape", "f2", "f1")
        await until_text(pilot, "Help: Importance")


@pytest.mark.parametrize("topic", ["name", "type", *ExportSettings.model_fields])
def test_every_field_of_the_export_has_help(topic: str) -> None:
    assert len(help_text("export", topic)) > 100


@pytest.mark.parametrize("name", ["my model", "-lead", "a/b/c/d", NASTY, ""])
async def test_a_name_that_ollama_refuses_is_told_below_the_field(
    name: str, trained: tuple[RunFolder, Log]
) -> None:
    app = open_app(trained[0], 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "MiB")
        field = app.screen.query_one("#name", Input)
        field.value = name
        await pilot.pause()
        assert "✗" not in screen_text(app), "nobody is corrected while typing for the first time"
        await pilot.press("enter")
        await until_text(pilot, "✗ The ")
        assert isinstance(app.screen, ExportScreen) and app.focused is field
        assert not trained[0].export_request_path.exists()
        field.value = "fine-name"
        await until(pilot, lambda: "✗" not in screen_text(app))
        await until_text(pilot, "ollama run fine-name")


async def test_the_progress_of_the_worker_is_shown_and_next_waits(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.start(stage="export").phase("Writing the GGUF file.")
    log("progress", name="writing", done=3 << 20, total=4 << 20, unit="B")
    with alive(folder):
        app = open_app(folder, 8)
        async with app.run_test() as pilot:
            await until_text(
                pilot, "Writing the GGUF file", "3.0 MiB of 4.0 MiB", "Export started.", "s Stop"
            )
            assert "Training started" not in screen_text(app)
            await pilot.press("enter")
            await until_text(pilot, "The export is still going")
            await pilot.press("s", "enter")
            await pilot.pause()
            assert not folder.stop_path.exists()
            await pilot.press("s", "y")
            await until(pilot, folder.stop_path.exists)


async def test_a_failure_says_what_to_do_and_allows_another_try(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.start(stage="export").phase("Sending.")
    log("error", what="The disk is full [/foo].", fix="Free 5 MiB.", details="errno 28")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✗ The disk is full [/foo].", "Free 5 MiB.", "Name in Ollama", "Enter Export")


async def test_a_worker_that_ended_without_a_word_is_told(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.start(stage="export").phase("Writing.")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✗ The export ended without a word.", "Enter Export")


async def test_the_request_is_written_and_a_worker_is_started(trained: tuple[RunFolder, Log]) -> None:
    """There is no adapter, so the real worker ends soon; its words are on the screen."""
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "MiB")
        app.screen.query_one("#name", Input).value = "mine"
        await pilot.press("tab", "down", "enter")
        await until(pilot, folder.export_request_path.exists)
        assert (folder.export_settings().name, folder.export_settings().type) == ("mine", "q8_0")
        await until_text(pilot, "has no tuned model yet", "Enter Export")
    assert folder.settings().export.name is None, "run.yaml is never written again"
