"""What is pasted into a field: one line of it, with nothing lost and nothing pressed."""

from __future__ import annotations

from textual import events
from textual.app import App, ComposeResult

from ollama_tune.tui.widgets.form import TextField


class OneField(App[None]):
    """A field with a text."""

    def compose(self) -> ComposeResult:
        yield TextField("ab")


async def test_all_lines_of_a_paste_come_into_the_field_as_one() -> None:
    app = OneField()
    async with app.run_test() as pilot:
        field = app.query_one(TextField)
        field.cursor_position = 1
        for text, value in (
            ("\n\n~/my data\r\n", "a~/my datab"),
            ("You take orders.\n  Be [/brief]  now.\n", "aYou take orders. Be [/brief]  now.b"),
            ("\n", "ab"),
        ):
            field.value, field.cursor_position = "ab", 1
            app.post_message(events.Paste(text))
            await pilot.pause()
            assert field.value == value
        field.select_all()
        app.post_message(events.Paste("new"))
        await pilot.pause()
        assert field.value == "new"
