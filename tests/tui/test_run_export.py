from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from textual.widgets import Input

from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.machine.ollama import read_ollama
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan import gguf_types
from ollama_tune.core.plan.gguf_types import export_bytes
from ollama_tune.core.plan.settings import ExportSettings
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes
from ollama_tune.tui.exporting import remarks
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.screens import export as export_screen
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.widgets.card import card_content
from ollama_tune.tui.widgets.choice import GgufTypes
from ollama_tune.tui.widgets.confirm import ConfirmScreen
from ollama_tune.tui.widgets.export_form import ExportForm

from .conftest import cpu_machine
from .run_logs import NASTY, Log, alive, make_run, open_app, screen_text, until, until_text


@pytest.fixture
def trained() -> tuple[RunFolder, Log]:
    folder = make_run()
    return folder, Log(folder).trained()


class Server(BaseHTTPRequestHandler):
    """As much of Ollama as is asked before an export: version, models, whether a name is taken."""

    version = "0.34.4"

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(200, {"version": self.version} if self.path == "/api/version" else {"models": []})

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        known = name.removesuffix(":latest") == "taken"
        self._answer(200, {"details": {}}) if known else self._answer(404, {"error": "model not found"})

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def version() -> str:
    return "0.34.4"


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch, version: str) -> Iterator[None]:
    monkeypatch.setattr(Server, "version", version)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


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


async def test_the_card_is_shown_and_enter_goes_on(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.exported("kitchen")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(
            pilot,
            "✓ Exported. It is in Ollama as kitchen.",
            "! Proved with remarks",
            "✓ Pieces of words",
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
            pilot, "✗ The exported file failed its proof", "✗ Texts", "Not proved", "Do not use it."
        )
        await pilot.press("enter")
        await until_text(pilot, "press a to export again")
        assert isinstance(app.screen, ExportScreen)


async def test_a_proved_file_that_failed_in_ollama_is_told_apart(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    log.start(stage="export")
    checks = (
        Check("tokens", "pass", "9 of 9", "Equal."),
        Check("ollama answer", "fail", "no end", "Endless."),
    )
    log("verification", **Verification("fail", checks, "x.gguf", "0" * 64, 9, "q8_0").to_dict())
    log("error", what="The model in Ollama failed its proof.", fix="Update Ollama.", details="")
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "✗ The model in Ollama failed its proof.", "✗ The file is proved, but")
        assert "do not use" not in screen_text(app)
        await pilot.press("enter")
        await until_text(pilot, "press a to export again")
        await pilot.press("f1")
        await until_text(pilot, "Help: Proof", "llama.cpp")


async def test_the_card_tells_what_to_type_and_trouble_first(trained: tuple[RunFolder, Log]) -> None:
    folder, log = trained
    checks = (
        Check("tokens", "pass", "9 of 9", "Equal."),
        Check("answers", "warn", "7 of 8", "Compare some."),
    )
    commands = (
        "ollama run kitchen",
        "ollama signin",
        "ollama cp kitchen USER/kitchen",
        "ollama push USER/kitchen",
    )
    proof = Verification("warn", checks, "x.gguf", "0" * 64, 9, "q8_0", "kitchen:latest", {}, commands)
    log.start(stage="export")
    log("verification", **proof.to_dict())
    log("done", stage="export", files={}, ollama_name="kitchen:latest", commands=commands)
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(
            pilot, "It is in Ollama as kitchen.", "ollama run kitchen", "To share it: ollama signin;"
        )
        text = screen_text(app)
        assert text.index("! Answers") < text.index("✓ Texts")
        await pilot.press("enter")
        await until_text(
            pilot, "✓ kitchen is in Ollama", "█ ollama run kitchen", "To share it: ollama signin"
        )
        assert app.screen.commands() == ["ollama run kitchen"]  # type: ignore[attr-defined]


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
        await until(pilot, folder.export_request_path.exists, 30)
        assert folder.export_settings().push is False
        await until_text(pilot, "has no tuned model yet", seconds=60)


@pytest.mark.parametrize("version", ["0.34.0"])
async def test_another_host_and_a_version_that_writes_twice_are_named(
    trained: tuple[RunFolder, Log], ollama: None
) -> None:
    def remote() -> Machine:
        return replace(cpu_machine(), ollama=replace(read_ollama(), local=False))

    app = open_app(trained[0], 8, remote)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "(another host) gets the model", "rewrites the file", "– unknown")


async def test_the_request_is_written_and_a_worker_is_started(trained: tuple[RunFolder, Log]) -> None:
    """There is no adapter, so the real worker ends soon; its words are on the screen."""
    folder = trained[0]
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(pilot, "demo-model-tickets", "MiB")
        app.screen.query_one("#name", Input).value = "mine"
        await pilot.press("tab", "down", "enter")
        await until(pilot, folder.export_request_path.exists, 30)
        assert (folder.export_settings().name, folder.export_settings().type) == ("mine", "q8_0")
        await until_text(pilot, "has no tuned model yet", "Enter Export", seconds=60)
    assert folder.settings().export.name is None, "run.yaml is never written again"


def test_text_of_a_check_is_shown_harmless_and_within_the_width() -> None:
    checks = (Check(NASTY, "warn", NASTY, NASTY * 5), Check("short", "pass", "1", "Fine."))
    for figures in (False, True):
        card = card_content(Verification("warn", checks, NASTY, "0" * 64, 5, "f16"), 60, figures)
        assert "[/foo]" in card.plain and not any(c in card.plain for c in "\x1b\x07\u202e")
        assert max(len(line) for line in card.plain.split("\n")) <= 60


async def test_the_card_speaks_plain_words_and_has_its_figures_at_a_key(
    trained: tuple[RunFolder, Log],
) -> None:
    folder, log = trained
    checks = (
        Check("BOS", "pass", "0", "Every prompt begins with no BOS token, as in the training."),
        Check("probabilities", "pass", "KL 1.5e-05, first token 100%", "At 48 places they are equal."),
        Check("chat", "pass", "23 of 23", "Conversations become the text of the training."),
    )
    log.start(stage="export")
    log("verification", **Verification("pass", checks, "x.gguf", "0" * 64, 9, "q8_0").to_dict())
    log("done", stage="export", files={}, ollama_name=None, commands=())
    app = open_app(folder, 8)
    async with app.run_test() as pilot:
        await until_text(
            pilot, "✓ Prompts", "begin as in training", "✓ Conversations    23 of 23 have", "F2 More"
        )
        assert "KL" not in screen_text(app) and "BOS" not in screen_text(app)
        await pilot.press("m")
        await until_text(pilot, "✓ BOS", "KL 1.5e-05, first token 100%", "m shows plain words again.")
        await pilot.press("m")
        await until_text(pilot, "✓ Prompts")
