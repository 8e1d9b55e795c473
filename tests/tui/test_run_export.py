from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from textual.widgets import Input

from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.widgets.card import card_content
from ollama_tune.tui.widgets.choice import ChoiceList
from ollama_tune.tui.widgets.confirm import ConfirmScreen

from .run_logs import NASTY, Log, alive, make_run, open_app, screen_text, until, until_text


@pytest.fixture
def trained() -> tuple[RunFolder, Log]:
    folder = make_run()
    return folder, Log(folder).trained()


class Server(BaseHTTPRequestHandler):
    """As much of Ollama as is asked before an export: version, loaded models, whether a name is taken."""

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(200, {"version": "0.34.4"} if self.path == "/api/version" else {"models": []})

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        known = name.removesuffix(":latest") == "taken"
        self._answer(200, {"details": {}}) if known else self._answer(404, {"error": "model not found"})

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


async def test_the_form_comes_with_a_name_sizes_and_what_happens_without_ollama(
    trained: tuple[RunFolder, Log],
) -> None:
    app = open_app(trained[0], 8)
    parameters = read_spec("bundled").parameters
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "(•) q8_0", "( ) bf16", "– No Ollama answers")
        assert human_bytes(parameters * 34 / 32) in screen_text(app)
        assert screen_text(app).count(human_bytes(parameters * 2)) == 2
        assert "left in the run's folder" in " ".join(screen_text(app).split())
        await pilot.press("tab", "down")
        assert app.screen.query_one(ChoiceList).value == "f16"
        assert "(•) f16" in screen_text(app)


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


async def test_the_card_is_shown_and_enter_goes_on(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.exported("kitchen")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(
            pilot,
            "✓ Exported. It is in Ollama as kitchen.",
            "! Proved with remarks",
            "✓ Token ids",
            "– Ollama",
        )
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DoneScreen))
        await pilot.press("escape")
        await until_text(pilot, "a Export again")
        await pilot.press("a")
        await until_text(pilot, "Name in Ollama", "Enter Export")


async def test_a_refuted_file_is_shown_with_its_card_and_leads_only_to_another_try(
    trained: tuple[RunFolder, Log],
) -> None:
    folder, log = trained
    log.start(stage="export")
    log(
        "verification",
        **Verification(
            "fail", (Check("tokens", "fail", "3 of 9", "They differ."),), "x.failed.gguf", "0" * 64, 9, "q8_0"
        ).to_dict(),
    )
    log("error", what="The exported file failed its proof (tokens).", fix="Do not use it.", details="")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(
            pilot, "✗ The exported file failed its proof", "✗ tokens", "Not proved", "Do not use it."
        )
        await pilot.press("enter")
        await until_text(pilot, "press a to export again")
        assert isinstance(app.screen, ExportScreen)


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


async def test_a_model_that_ollama_has_is_replaced_only_after_a_yes(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✓ Ollama 0.34.4 answers", "MiB")
        app.screen.query_one("#name", Input).value = "taken"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await until_text(pilot, "Replace taken in Ollama?")
        await pilot.press("enter")
        await until_text(pilot, "Name in Ollama", "Enter Export")
        assert not folder.export_request_path.exists() and not folder.alive()


async def test_the_request_is_written_and_a_worker_is_started(trained: tuple[RunFolder, Log]) -> None:
    """There is no adapter, so the real worker ends soon; its words are on the screen."""
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "MiB")
        app.screen.query_one("#name", Input).value = "mine"
        await pilot.press("tab", "down", "enter")
        await until(pilot, folder.export_request_path.exists)
        assert (folder.export_settings().name, folder.export_settings().type) == ("mine", "f16")
        await until_text(pilot, "has no finished adapter", "Enter Export", seconds=60)
    assert folder.settings().export.name is None, "run.yaml is never written again"


def test_text_of_a_check_is_shown_harmless_and_within_the_width() -> None:
    checks = (Check(NASTY, "warn", NASTY, NASTY * 5), Check("short", "pass", "1", "Fine."))
    card = card_content(Verification("warn", checks, NASTY, "0" * 64, 5, "f16"), 60)
    assert "[/foo]" in card.plain and not any(c in card.plain for c in "\x1b\x07\u202e")
    assert max(len(line) for line in card.plain.split("\n")) <= 60
