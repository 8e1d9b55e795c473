from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input, Static

from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.screens.try_it import Prompt, TryItScreen, common_system, read_held_out
from ollama_tune.tui.widgets.answer import AnswerPane

from .conftest import write_rows
from .run_logs import NASTY, Log, make_run, open_app, screen_text, until, until_text

SYSTEM = {"role": "system", "content": "Answer in tickets."}


def asked(text: str, *before: dict[str, str]) -> Prompt:
    return Prompt((*before, {"role": "user", "content": text}), text, "T1")


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with an adapter, without the time a training takes."""
    from ollama_tune.core.train.checkpoint import publish_adapter
    from ollama_tune.core.train.general import make_general

    place = tmp_path_factory.mktemp("try")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(place))
        run = make_run()
        values = {
            "model.source": str(tiny_model),
            "data.path": str(write_rows(place / "rows.jsonl")),
            "evaluation.max_new_tokens": 8192,  # so that no answer ends before it is stopped
        }
        folder = create_run(run.settings().with_values(values), "tuned")
    training = folder.settings().training
    publish_adapter(folder, make_general(tiny_model, training, str(tiny_model), ""))
    Log(folder).trained()
    return folder


async def test_esc_first_stops_the_answer_and_then_goes_back(
    tuned: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tuned.path.parents[2]))
    app = open_app(tuned, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "Loading the base and the tuned model …", "F5 A held-out question")
        await until_text(pilot, "Ask both models the same", seconds=60)
        await pilot.press(*"hi", "enter")
        await until_text(pilot, "Question   hi", "Esc Stop the answer")
        base = app.screen.query_one("#base", AnswerPane)
        await until(pilot, lambda: base.text)
        await pilot.press("escape")
        await until_text(pilot, "Esc Back")
        screen = app.screen
        assert isinstance(screen, TryItScreen) and screen._chat is not None
        chat = screen._chat
        await pilot.press(*"and now?", "enter")
        await until(pilot, lambda: base.text)
        await pilot.press("escape")
        await until_text(pilot, "Esc Back")  # the answer ended by itself where the screen is gone already
        if isinstance(app.screen, TryItScreen):
            await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
        await until(pilot, lambda: not chat.alive)


async def test_enter_goes_on_only_where_nothing_is_typed() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "Enter Next")
        await pilot.press("q", "?")
        await until_text(pilot, "Enter Ask")
        assert app.screen.query_one("#prompt", Input).value == "q?"
        await pilot.press("backspace", "backspace")
        await until_text(pilot, "Enter Next")


async def test_a_run_without_an_adapter_says_so() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "✗ The run", "has no tuned model yet.", seconds=60)


async def test_held_out_questions_go_round_and_bring_their_reference() -> None:
    folder = make_run()
    Log(folder).trained()
    expected = read_held_out(folder)
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(app.screen._prompts) == len(expected) > 3)  # type: ignore[attr-defined]
        field = app.screen.query_one("#prompt", Input)
        for prompt in expected[:2]:
            await pilot.press("ctrl+n")
            assert field.value == prompt.shown
            assert app.screen._prompt_for(field.value) == prompt  # type: ignore[attr-defined]


async def test_where_the_data_is_gone_the_samples_of_the_log_are_asked() -> None:
    folder = make_run()
    folder.settings().with_value("data.path", "/nowhere/rows.jsonl").save(folder.settings_path)
    Log(folder).trained()
    assert read_held_out(folder) == ()
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "F5 A held-out question")
        await pilot.press("f5")
        await until_text(pilot, "Two teas and a bun.")


async def test_an_answer_is_text_whatever_is_in_it_and_is_judged_by_the_reference() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "F5")
        screen = app.screen
        assert isinstance(screen, TryItScreen)
        screen._reference, screen._asked = NASTY, 1
        pane = screen.query_one("#tuned", AnswerPane)
        pane.add(NASTY[:9])
        pane.add(NASTY[9:] + "\n")
        screen._ended({"id": 1, "model": "tuned", "end": "length", "tokens": 9, "seconds": 0.5})
        await until_text(pilot, "[/foo] [bold]x␛[2J", "✓ as wanted · 9 tokens, 0.5 s, cut off")
        assert not any(c in screen_text(app) for c in "\x1b\x07\u202e")
        screen._ended({"id": 1, "model": "base", "end": "stop", "tokens": 0, "seconds": 0.1})
        await until_text(pilot, "✗ not as wanted")
        assert isinstance(screen.query_one("#question"), Static)


async def test_answers_stand_below_each_other_in_a_narrow_window_and_beside_in_a_wide_one() -> None:
    folder = make_run()
    Log(folder).trained()
    for size, beside in (((80, 24), False), ((60, 18), False), ((120, 40), True)):
        app = open_app(folder, 7)
        async with app.run_test(size=size) as pilot:
            await until_text(pilot, "Base model", "Tuned model", "Type a question")
            base, tuned = (app.screen.query_one(f"#{name}").region for name in ("base", "tuned"))
            assert (base.y == tuned.y) is beside
            assert tuned.right <= size[0] and tuned.height >= 3


def test_a_question_of_ones_own_gets_the_system_message_that_the_model_learned_with() -> None:
    assert common_system([asked("a", SYSTEM), asked("b", SYSTEM)]) == (SYSTEM,)
    assert common_system([asked("a", SYSTEM), asked("b")]) == ()
    assert common_system([]) == ()
