from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from textual.app import App
from textual.widgets import Input

from ollama_tune.core.evaluate.asking import Asking, Sampling, save_asking
from ollama_tune.core.evaluate.conversation import Conversation, HeldOut
from ollama_tune.core.evaluate.held_out import read_held_out
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.tui import wrapping
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.screens.try_it import TryItScreen
from ollama_tune.tui.screens.try_it_options import FIELDS, REASONS, meant, written
from ollama_tune.tui.widgets.answer import AnswerPane
from ollama_tune.tui.widgets.talk import HINTS, TalkView

from .conftest import write_rows
from .run_logs import NASTY, Log, make_run, open_app, screen_text, until, until_text


def try_it(app: App[int]) -> TryItScreen:
    screen = app.screen
    assert isinstance(screen, TryItScreen)
    return screen


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with an adapter, without the time a training takes."""
    from ollama_tune.core.train.checkpoint import publish
    from ollama_tune.core.train.general import make_general

    place = tmp_path_factory.mktemp("try")
    model = place / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20_000}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(place))
        run = make_run()
        values = {
            "model.source": str(model),
            "data.path": str(write_rows(place / "rows.jsonl")),
            "evaluation.max_new_tokens": 8192,  # so that no answer ends before it is stopped
        }
        folder = create_run(run.settings().with_values(values), "tuned")
    training = folder.settings().training
    publish(folder, make_general(model, training, str(model), ""))
    Log(folder).trained()
    return folder


async def test_esc_first_stops_the_answer_and_then_goes_back(
    tuned: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tuned.path.parents[2]))
    app = open_app(tuned, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "Loading the base and the tuned model …", "F5 Held-out")
        await until_text(pilot, "Ask both models the same")
        await pilot.press(*"hi", "enter")
        await until_text(pilot, "› hi", "Esc Stop the answer")
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
        await until_text(pilot, "✗ The run", "has no tuned model yet.")


async def test_held_out_questions_go_round_and_bring_their_reference() -> None:
    folder = make_run()
    Log(folder).trained()
    expected = read_held_out(folder)
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        screen = try_it(app)
        await until(pilot, lambda: len(screen._several.questions) == len(expected) > 3)
        field = screen.query_one("#prompt", Input)
        for question in expected[:2]:
            await pilot.press("ctrl+n")
            assert field.value == question.shown
            screen._begin_turn(field.value)
            assert screen._talk.turns[-1].reference == question.reference
            assert screen._talk.messages("base") == list(question.messages)


async def test_where_the_data_is_gone_the_samples_of_the_log_are_asked() -> None:
    folder = make_run()
    folder.settings().with_value("data.path", "/nowhere/rows.jsonl").save(folder.settings_path)
    Log(folder).trained()
    assert read_held_out(folder) == ()
    app = open_app(folder, 7)
    async with app.run_test() as pilot:
        await until_text(pilot, "F5 Held-out")
        await pilot.press("f5")
        await until_text(pilot, "Two teas and a bun.")


async def test_an_answer_is_text_whatever_is_in_it_and_is_judged_by_the_reference() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "F5")
        screen = try_it(app)
        screen._begin(Conversation.of(HeldOut(({"role": "user", "content": NASTY},), NASTY, NASTY)))
        screen._asked = 1
        view = screen.query_one(TalkView)
        view.ask(screen._talk.turns[-1])
        end = {"id": 1, "model": "tuned", "end": "length", "tokens": 9, "seconds": 0.5}
        pieces = [NASTY[:9], NASTY[9:] + "\n"]
        screen._take_answers([*({"id": 1, "model": "tuned", "text": piece} for piece in pieces), end])
        await until_text(pilot, "[/foo] [bold]x␛[2J", "✓ as wanted · 9 tokens, 0.5 s, cut off")
        assert screen._asked is None
        screen._asked = 1
        screen._take_answers([end | {"model": "base", "text": NASTY + " and more"}])
        await until_text(pilot, "✗ not as wanted, similarity 0.")
        assert not any(c in screen_text(app) for c in "\x1b\x07\u202e")


async def test_a_long_answer_without_a_line_break_is_broken_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "F5")
        pane = app.screen.query_one("#tuned", AnswerPane)
        wrapped: list[int] = []
        broken = wrapping.broken
        monkeypatch.setattr(
            wrapping, "broken", lambda text, width: wrapped.append(len(text)) or broken(text, width)
        )
        for _ in range(100):
            pane.add("[/b]\x1b天" * 200)
        assert max(wrapped) < 200 * 6 + 80, "a new piece breaks only the last line anew"
        await pilot.pause()
        assert len(pane.text) == 100 * 200 * 6
        assert pane.virtual_size.height <= 5000 and pane.scroll_offset.y == pane.max_scroll_y > 100
        pane.scroll_to(y=3, animate=False, immediate=True)
        pane.add("more")
        await pilot.pause()
        assert pane.scroll_offset.y == 3


async def test_answers_stand_below_each_other_in_a_narrow_window_and_beside_in_a_wide_one() -> None:
    folder = make_run()
    Log(folder).trained()
    for size, beside in (((80, 24), False), ((60, 18), False), ((100, 30), True), ((120, 40), True)):
        app = open_app(folder, 7)
        async with app.run_test(size=size) as pilot:
            await until_text(pilot, "Base model", "Tuned model", "Type a question")
            base, tuned = (app.screen.query_one(f"#{name}").region for name in ("base", "tuned"))
            assert (base.y == tuned.y) is beside
            assert tuned.right <= size[0] and tuned.height >= 3
            pane = app.screen.query_one("#base", AnswerPane)
            shown = " ".join(pane.render_line(y).text.strip() for y in range(2)).strip()
            assert shown == HINTS["base"], "the hint is broken where the box is narrow"


async def test_a_conversation_goes_on_until_a_new_one_is_begun_and_is_written_to_a_file(
    tuned: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tuned.path.parents[2]))
    save_asking(tuned, Asking(max_new_tokens=4))
    app = open_app(tuned, 7)
    async with app.run_test(size=(100, 30)) as pilot:
        screen = try_it(app)
        await until_text(pilot, "Ask both models the same", "no system prompt")
        for number, text in enumerate(("sky?", "and?"), start=1):
            await pilot.press(*text, "enter")
            await until_text(pilot, f"› {text}", "The conversation goes on", "tokens")
            assert len(screen._talk.turns) == number
        await pilot.press("f8")
        await until_text(pilot, "Written to")
        (file,) = tuned.path.glob("conversation-*.md")
        first, second = (turn.answers["tuned"].text for turn in screen._talk.turns)
        written = file.read_text()
        assert first in written and second in written and "## 2. Question\n\nand?" in written
        assert screen._talk.messages("tuned")[1] == {"role": "assistant", "content": first}
        await pilot.press("f7")
        await until_text(pilot, "Ask both models the same")
        assert "sky?" not in screen_text(app) and not screen._talk.turns


async def test_eight_held_out_questions_are_asked_at_once_and_counted(
    tuned: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tuned.path.parents[2]))
    save_asking(tuned, Asking(max_new_tokens=4))
    app = open_app(tuned, 7)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = try_it(app)
        await until_text(pilot, "Ask both models the same", "F6 Ask eight")
        screen._several.questions = screen._several.questions * 9  # 40 rows hold out few
        await pilot.press("f6")
        await until_text(pilot, "Exact 0 of 8 before, 0 of 8 after · mean similarity 0.", "are left; F6 asks")
        await pilot.press("f6")
        await until_text(pilot, "0 of 16 before, 0 of 16 after")
        await pilot.press("down", "enter")
        await until_text(pilot, "Question 2 of 16", "wanted", "is blue.", "Tuned model: ✗ not as wanted")
        await pilot.press("right")
        await until_text(pilot, "Question 3 of 16")
        await pilot.press("escape", "f8")
        await until_text(pilot, "Written to")
        (file,) = tuned.path.glob("held-out-*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == 16 and all(row["base"]["exact"] is False for row in rows)
        await pilot.press("escape")
        await until_text(pilot, "Ask both models the same")


async def test_esc_stops_the_eight_with_what_there_is(
    tuned: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tuned.path.parents[2]))
    save_asking(tuned, Asking(max_new_tokens=8192))
    app = open_app(tuned, 7)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "Ask both models the same", "F6 Ask eight")
        await pilot.press("f6")
        await until_text(pilot, "Esc Stop", "Base model: 0 of")
        await pilot.press("escape")
        await until_text(pilot, "Esc Back", "Nothing is answered yet.")
        await pilot.press("escape")
        await until_text(pilot, "Ask both models the same")


async def test_how_to_ask_is_judged_field_by_field_kept_and_explained() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = try_it(app)
        await until_text(pilot, "F2 Options")
        await pilot.press("f2")
        await until_text(pilot, "System prompt", "Temperature", "Longest answer")
        await pilot.press(*"Be brief.", "down", "backspace", *"9x", "enter")
        await until_text(pilot, "✗ This must be a number from 0 to 5, for example 0.8.")
        await pilot.press("backspace", *".7")
        await until(pilot, lambda: "This must be" not in screen_text(app))
        await pilot.press("down")
        await until_text(pilot, "changed, recommended: 0")
        await pilot.press("f1")
        await until_text(pilot, "Help: Top-p", "likeliest tokens")
        await pilot.press("escape", "enter")
        await until(pilot, lambda: app.screen is screen)
        assert screen._asking.sampling == Sampling(0.7) and screen._asking.system == "Be brief."
        await until(pilot, lambda: (folder.path / "try-it.json").exists())
        assert TryItScreen(folder)._asking == screen._asking
        screen._begin_turn("x")
        assert screen._talk.messages("base")[0] == {"role": "system", "content": "Be brief."}
        await pilot.press("f2", "down", "ctrl+r", "enter")
        await until(pilot, lambda: screen._asking.sampling == Sampling())
        await pilot.press("f2", "down", *"999", "escape")
        await until(pilot, lambda: app.screen is screen)
        assert screen._asking.sampling == Sampling()


def test_every_field_of_how_to_ask_has_help_and_a_short_reason() -> None:
    assert all(help_text("try_it", field.label) for field in FIELDS)
    assert all(len(REASONS[field.path]) <= 80 for field in FIELDS)
    assert help_text("try_it", "Try it") and help_text("try_it", "Held-out questions")


@pytest.mark.parametrize("text", ["", "one", "a\nb", "a\\nb", "\\", "a\\\n\\\\n"])
def test_a_system_prompt_of_several_lines_survives_a_field_of_one_line(text: str) -> None:
    assert meant(written(text)) == text.strip() and "\n" not in written(text)


async def test_a_question_that_cannot_be_asked_is_no_part_of_the_conversation() -> None:
    folder = make_run()
    Log(folder).trained()
    app = open_app(folder, 7)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = try_it(app)
        await until_text(pilot, "F2 Options")
        screen._begin_turn("far too long")
        screen._asked = 5
        screen._take({"id": 5, "error": {"what": "The question is too long.", "fix": "Ask a shorter one."}})
        await until_text(pilot, "✗ The question is too long. Ask a shorter one.")
        assert not screen._talk.turns and screen._asked is None
