"""The proof card on the export's screen: what it says, in which words, and what may follow."""

from __future__ import annotations

from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.widgets.card import card_content

from .run_logs import NASTY, Log, open_app, screen_text, until, until_text


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
        await until_text(pilot, "✗ The exported file failed its proof", "✗ Texts", "Do not use this file")
        shown = screen_text(app)
        assert shown.count("failed its proof") == shown.lower().count("do not use") == 1
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
        await until_text(pilot, "✗ The model in Ollama failed its proof.", "✗ The file is proved; the")
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
        await until_text(pilot, "✓ BOS", "KL 1.5e-05, first token 100%", "F2 shows plain words again.")
        await pilot.press("m")
        await until_text(pilot, "✓ Prompts")
