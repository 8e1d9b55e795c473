"""The step Data: rows, problems, questions, columns, and the exact text, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.content import Content
from textual.widgets import Input

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import (
    Column,
    Message,
    Option,
    Problem,
    Question,
    Reading,
    Row,
)
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.text import visible
from ollama_tune.tui import data_tasks
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.data_tasks import render_row
from ollama_tune.tui.messages import DatasetChecked, RowsMeasured
from ollama_tune.tui.review_words import reading_words
from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.data_columns import MOST_LABELS, ReadingScreen
from ollama_tune.tui.screens.data_rows import GoToScreen, QuestionScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.state import WizardState
from ollama_tune.tui.tasks import whole_path
from ollama_tune.tui.text import where_text
from ollama_tune.tui.widgets.problems import ProblemList
from ollama_tune.tui.widgets.rendered import marked, with_ids
from ollama_tune.tui.widgets.rows import RowList
from ollama_tune.tui.widgets.textview import TextView
from tests.tui.conftest import Corner, settled, shown


def words(text: str) -> str:
    return " ".join(text.split())


def chat_lines(count: int) -> list[str]:
    return [
        json.dumps({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}, I think."})
        for n in range(count)
    ]


def table(app: TuneApp) -> RowList:
    return app.screen.query_one(RowList)


async def test_enter_on_a_problem_shows_its_rows_x_uses_them_and_a_shows_all(corner: Corner) -> None:
    lines = [*chat_lines(20), "{broken", chat_lines(1)[0], chat_lines(1)[0]]
    corner.rows.write_text("\n".join(lines) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "20 rows of 23" in shown(app)
        problems = app.screen.query_one(ProblemList)
        await pilot.press("tab")
        assert problems.has_focus
        while problems.problem and problems.problem.kind != "duplicate":
            await pilot.press("down")
        assert "x changes that" in words(shown(app))
        await pilot.press("enter")
        await settled(pilot)
        assert table(app).has_focus
        assert [row.line for row in table(app).rows] == [22, 23]
        assert "Only these" in shown(app)
        await pilot.press("a")
        assert len(table(app).rows) == 20
        await pilot.press("shift+tab", "x")
        await settled(pilot)
        assert dict(app.answers.changed) == {"data.include": ["duplicate"]}
        assert "22 rows of 23" in shown(app)
        assert problems.has_focus
        assert app.facts.plan is not None
        assert app.facts.plan.settings.data.include == ["duplicate"]
        assert "used, as you said" in words(shown(app))
        await pilot.press("x")
        await settled(pilot)
        assert dict(app.answers.changed) == {}


async def test_g_goes_to_a_row_and_i_shows_token_ids(corner: Corner) -> None:
    corner.rows.write_text("\n".join(chat_lines(1200)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("g")
        assert isinstance(app.screen, DataScreen), "a letter in the path is a letter"
        await pilot.press("backspace", "tab", "tab", "g", "9", "9", "9", "9", "enter")
        assert isinstance(app.screen, GoToScreen)
        assert "1 to 1,200" in shown(app)
        app.screen.query_one(Input).value = "1,150"
        await pilot.press("enter")
        await settled(pilot)
        assert table(app).cursor == 1149
        assert "It is 1150, I think." in shown(app)
        await pilot.press("i")
        assert "<|im_end|>·2" in shown(app)


async def test_unknown_columns_are_mapped_with_samples_and_kept_for_the_run(corner: Corner) -> None:
    path = corner.home / "odd.csv"
    rows = [f"{n},frag {n}?,wort {n} und mehr" for n in range(12)]
    path.write_text("\n".join(["nr,qq,zz", *rows]) + "\n")
    app = corner.app(step=3, data=str(path))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, QuestionScreen)
        await pilot.press("f2")
        await pilot.pause()
        assert isinstance(app.screen, ReadingScreen)
        assert "frag 0?" in shown(app)
        for row, part in zip(app.screen._rows(), ("", "question", "answer"), strict=False):
            assert app.screen._edited[row.field.path] == part, "the likeliest is chosen already"
        for row, part in zip(app.screen._rows(), ("", "answer", "question"), strict=False):
            while app.screen._edited[row.field.path] != part:
                row.editor.focus()
                await pilot.press("right")
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
        assert "12 rows" in shown(app)
        assert app.facts.plan is not None
        data = app.facts.plan.settings.data
        assert data.columns == {"question": "zz", "answer": "qq"}
        assert reading_words(data) == ["columns: question = zz, answer = qq"]
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen)
        app.choose_data("bundled")
        assert app.answers.reading_values() == {}, "another file is read in its own way"


async def test_classes_that_are_numbers_are_named_and_kept_for_the_run(corner: Corner) -> None:
    path = corner.home / "numbers.csv"
    path.write_text("text,label\n" + "".join(f"some text {n},{n % 3}\n" for n in range(60)))
    app = corner.app(step=3, data=str(path))
    async with app.run_test(size=(80, 30)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, QuestionScreen)
        await pilot.press("f2")
        await pilot.pause()
        assert isinstance(app.screen, ReadingScreen)
        for index, name in enumerate(("bad", "good")):
            app.screen._row(f"label.{index}").editor.focus()
            await pilot.press(*name)
        assert "empty: it stays 1" in words(shown(app))
        await pilot.press("f1")
        assert "Help: Labels" in shown(app)
        await pilot.press("escape", "enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
        assert "3 labels: 2 (20), bad (20), good (20)" in words(shown(app))
        assert app.facts.plan is not None
        data = app.facts.plan.settings.data
        assert data.labels == {"0": "bad", "1": "good"}
        assert "labels: 0 = bad, 1 = good" in reading_words(data)
        await pilot.press("f2")
        await pilot.pause()
        rows = [app.screen._row(f"label.{index}") for index in range(3)]  # type: ignore[attr-defined]
        assert [str(row.editor.value) for row in rows] == ["bad", "good", ""]
        rows[1].editor.focus()
        await pilot.press(*["backspace"] * 4, "enter")
        await settled(pilot)
        assert app.answers.reading_values()["data.labels"] == {"0": "bad"}


async def test_very_many_classes_are_named_in_a_file(corner: Corner) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        given = {"data.labels": {"0": "none"}}
        taken: list[object] = []
        screen = ReadingScreen((), given, False, labels=tuple(map(str, range(MOST_LABELS + 1))))
        app.push_screen(screen, taken.append)
        await pilot.pause()
        assert "The 21 labels are too many to name here" in words(shown(app))
        await pilot.press("enter")
        assert taken == [given]


async def test_what_a_file_leaves_open_is_asked_once_and_enter_takes_the_likeliest(corner: Corner) -> None:
    options = (Option("its first line", Reading(form="chat")), Option("[/x] a text", Reading(form="text")))
    question = Question("kind", "What is [bold] this\x1b[2J?", options)
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        screen = app.screen
        assert isinstance(screen, DataScreen)
        taken: list[int | None] = []
        for keys in (["enter"], ["down", "enter"], ["escape"]):
            app.push_screen(QuestionScreen(question, (Column("c[/]", ("sample\x07",)),)), taken.append)
            await pilot.pause()
            assert "What is [bold] this␛[2J?" in shown(app)
            assert "sample␇" in shown(app)
            await pilot.press(*keys)
        assert taken == [0, 1, None]
        screen._answered(question, 1)
        assert app.answers.reading_values() == {"data.form": "text"}


async def test_the_first_page_of_a_large_file_comes_before_the_exact_figures(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_tasks, "SMALL", 0)
    seen: list[DatasetChecked | RowsMeasured] = []

    def hear(message: object) -> None:
        if isinstance(message, DatasetChecked | RowsMeasured):
            seen.append(message)

    corner.rows.write_text("\n".join(chat_lines(1500)) + "\n")
    app = corner.app(step=3)
    async with app.run_test(size=(60, 18), message_hook=hear) as pilot:
        await settled(pilot)
        text = words(shown(app))
    profiles = [m.profile for m in seen if isinstance(m, DatasetChecked) and m.profile]
    assert [(len(profile.rows), profile.exact) for profile in profiles] == [(50, False), (1500, True)]
    assert abs(profiles[0].total - 1500) < 30
    measured = [m.lengths for m in seen if isinstance(m, RowsMeasured) and m.lengths]
    assert not measured[0].exact
    assert measured[-1].exact
    assert abs(measured[0].tokens - measured[-1].tokens) < 0.05 * measured[-1].tokens
    assert "✓ 1,500 rows" in text


async def test_labels_are_counted_and_rows_over_the_sequence_length_told(corner: Corner) -> None:
    path = corner.home / "labels.csv"
    names = ["good", "[bad]", "[bad]"] * 20
    texts = [f"text {n} about {'skies ' * (60 if n < 6 else n % 7)}" for n in range(60)]
    rows = [f"{text},{label}" for text, label in zip(texts, names, strict=True)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    app = corner.app(step=3, data=str(path), changed={"training.sequence_length": 128})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(*["escape"] * isinstance(app.screen, QuestionScreen))
        text = words(shown(app))
        assert "2 labels: [bad] (40), good (20)" in text
        assert "10.00% are longer than 128" in text
        table(app).focus()
        await settled(pilot)
        assert "128 tokens end here" in str(app.screen.query_one("#text", TextView).content)
        assert "longer than 128 tokens, and so is its last question with the answer" in words(shown(app))


def example_parts(content: Content) -> str:
    return "".join(
        content.plain[span.start : span.end] for span in content.spans if "underline" in str(span.style)
    )


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> ChatFormat:
    return ChatFormat.from_folder(tiny_model)


def test_the_cut_stands_where_the_allowed_tokens_end(chat: ChatFormat) -> None:
    row = Row((Message("user", "What is it?"), Message("assistant", "blue " * 40)), 3)
    (example,) = render_row(chat, row).examples
    text = marked(example, 30).plain
    before, _, after = text.partition("✂")
    assert len(chat.encode(before.rstrip())[0]) in (29, 30)
    assert f"30 tokens end here, {len(example.ids) - 30} more follow" in after
    assert "✂" not in marked(example, len(example.ids)).plain
    assert example_parts(marked(example, 30)) == example_parts(marked(example)) == "blue " * 40 + "<|im_end|>"


def test_a_row_that_is_too_long_says_which_turns_are_left_out(chat: ChatFormat) -> None:
    turns = [Message(role, f"{role} {n} " + "blue " * 10) for n in range(4) for role in ("user", "assistant")]
    long = Row((Message("system", "Be short."), *turns), 1)
    whole = render_row(chat, long)
    (note,) = render_row(chat, long, sum(len(example.ids) for example in whole.examples) - 5).notes
    assert "its messages 2 to 3 of 9 are left out" in note
    assert whole.notes == ()


def test_every_token_has_its_id_and_split_letters_are_marked(chat: ChatFormat) -> None:
    row = Row((Message("user", "漢"), Message("assistant", "b")), 1)
    (example,) = render_row(chat, row).examples
    text = with_ids(example).plain
    assert all(f"·{number} " in text for number in example.ids)
    assert text.count("漢") == 1
    assert text.count("⋯") == 2


def test_a_record_that_is_no_row_is_shown_as_it_is(chat: ChatFormat) -> None:
    rendered = render_row(chat, Row((Message("user", "{broken"),), 5))
    assert (rendered.examples, rendered.error) == ((), None)


def test_lines_are_named_once() -> None:
    assert where_text(Problem("k", "t", 9, (1, 1, 1))) == "line 1"
    assert where_text(Problem("k", "t", 9, (1, 3, 4, 7, 9))) == "lines 1, 3, 4, 7, …"
    assert where_text(Problem("k", "t", 2, (1000, 2000))) == "lines 1,000, 2,000"


def test_a_reading_and_its_settings_are_one() -> None:
    reading = Reading((("answer", "b"),), split="train", exclude=("secret",), labels=(("0", "no"),))
    values = reading.settings()
    told = {"data.columns": {"answer": "b"}, "data.split": "train", "data.exclude": ["secret"]}
    assert values == told | {"data.labels": {"0": "no"}}
    assert Settings().with_values(values).data.reading() == reading
    state = WizardState(changed={"training.rank": 4, "data.form": "text"}).read_as(values)
    assert state.reading_values() == values
    assert dict(state.changed) == {"training.rank": 4} | values


def test_a_typed_path_is_a_file_a_hub_id_or_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert whole_path("") == whole_path("bundled") == "bundled"
    assert whole_path("org/name") == "org/name"
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("")
    assert whole_path("org/name") == str(tmp_path / "org" / "name")
    assert whole_path("a.jsonl") == str(tmp_path / "a.jsonl")


def test_no_character_can_turn_the_reading_direction_of_the_screen() -> None:
    turning = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert not set(visible(f"a{turning}b", keep_newlines=True)) & set(turning)
