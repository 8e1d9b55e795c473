from __future__ import annotations

import pytest

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.machine import MachineScreen
from ollama_tune.tui.screens.runs import RunsScreen

from .run_logs import NASTY, Log, make_run, open_app, screen_text, until, until_text


@pytest.fixture
def folder() -> RunFolder:
    return make_run()


async def test_the_end_is_the_command_with_what_was_learned_and_where_it_is(folder: RunFolder) -> None:
    Log(folder).trained().exported("kitchen")
    app = open_app(folder, 9)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "✓ kitchen is in Ollama", "ollama run kitchen", "2.0% of 48", "95.8% of 48")
        await until_text(pilot, "✗ I am happy to help", "✓ T2 B1", "export/kitchen-q8_0.gguf", "adapter/")
        assert "Next" not in screen_text(app)


async def test_without_ollama_the_exact_commands_are_left(folder: RunFolder) -> None:
    Log(folder).trained().exported(None)
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "Where Ollama runs, type:", "ollama create kitchen -f export/Modelfile")


async def test_copy_sends_the_commands_to_the_terminal_and_writes_them(folder: RunFolder) -> None:
    Log(folder).trained().exported(None)
    folder.export.mkdir()
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "c Copy the command")
        await pilot.press("c")
        await until_text(pilot, "Sent to your terminal's clipboard; also in")
        assert app.clipboard == "ollama create kitchen -f export/Modelfile\nollama run kitchen"
    assert (folder.export / "commands.txt").read_text() == app.clipboard + "\n"


async def test_a_run_without_an_export_has_nothing_to_copy(folder: RunFolder) -> None:
    Log(folder).trained()
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "there is no file for Ollama yet")
        assert "Copy" not in screen_text(app)


async def test_where_no_export_is_possible_the_commands_that_answer_are_shown_and_copied(
    folder: RunFolder,
) -> None:
    Log(folder).trained()
    settings = folder.settings().with_values({"training.method": "prompt", "export.name": None})
    settings.save(folder.settings_path)
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "Ollama's files have no place for a soft prompt")
        await until_text(pilot, f"ollama-tune chat {folder.name}")
        await pilot.press("c")
        await until(pilot, lambda: app.clipboard.endswith(f"ollama-tune evaluate {folder.name}"))


async def test_the_figure_that_decided_is_among_what_it_learned(folder: RunFolder) -> None:
    log = Log(folder).trained()
    log("evaluation", step=200, model="tuned", loss=0.5, metric="token_f1", score=0.8, best_score=0.9,
        best_step=100)  # fmt: skip
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "90.0 % at step 100, which is kept")


async def test_n_begins_a_new_run_and_l_lists_all(folder: RunFolder) -> None:
    Log(folder).trained().exported()
    app = open_app(folder, 9)
    async with app.run_test() as pilot:
        await until_text(pilot, "l All runs")
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DoneScreen))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, MachineScreen))


async def test_text_of_samples_and_commands_does_nothing(folder: RunFolder) -> None:
    log = Log(folder).trained()
    log("sample", prompt=NASTY, reference=NASTY, base=NASTY, tuned=NASTY)
    log.start(stage="export")
    log("done", stage="export", ollama_name=NASTY, commands=[f"ollama run {NASTY}"])
    app = open_app(folder, 9)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "ollama run [/foo] [bold]x␛[2J")
        assert not any(c in screen_text(app) for c in "\x1b\x07\u202e")
