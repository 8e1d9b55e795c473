"""What is pasted: one line in a field, with nothing lost and nothing pressed, whatever it holds."""

from __future__ import annotations

import os
import sys

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.message import Message

from ollama_tune.tui.pasting import END, START, PasteParser
from ollama_tune.tui.widgets.form import TextField
from tests.terminal import Terminal
from tests.tui.conftest import Corner

NASTY = "my \x1bq da\x1b[Ata\x03 ü\x1b[200~ \x11\x1b[<0;3;3M\x1b[6~\x1b\x1b 中\x7f\x9b1m\x1b[I \x1bOP\x1a"
NASTY += " end\x1b["
LEFT = "my q da[Ata ü[200~ [<0;3;3M[6~ 中1m[I OP end["


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


def parsed(*packets: str) -> list[Message]:
    parser = PasteParser()
    found = [message for packet in packets for message in (*parser.feed(packet), *parser.tick())]
    list(parser.feed(""))
    return found


def told(messages: list[Message]) -> list[str]:
    """What was pasted, and the names of the keys."""
    return [
        message.text if isinstance(message, events.Paste) else f"<{message.key}>"
        for message in messages
        if isinstance(message, events.Paste | events.Key)
    ]


def test_a_paste_is_one_text_wherever_the_line_cuts_it() -> None:
    stream = f"a{START}{NASTY}{END}b{START}two{END}\r"
    wanted = ["<a>", LEFT, "<b>", "two", "<enter>"]
    for cut in range(1, len(stream)):
        messages = parsed(stream[:cut], stream[cut:])
        assert told(messages) == wanted, cut
        assert all(isinstance(message, events.Paste | events.Key) for message in messages)
    assert told(parsed(*stream)) == wanted


def test_a_paste_whose_beginning_came_late_presses_nothing_but_that_escape() -> None:
    parser = PasteParser()
    found = list(parser.feed("\x1b"))
    parser._timeout_time = 0.0
    found += parser.tick()
    found += [*parser.feed(START[1:] + "q\x03"), *parser.feed(END)]
    assert told(found) == ["<escape>", "q"]


@pytest.mark.parametrize("keys", ["\x1b[A", "\x1bOP", "é", "\x1b[<0;3;3M", "\x03", "\x1b[1;5C", "~[200~"])
def test_what_is_typed_is_read_as_ever(keys: str) -> None:
    from textual._xterm_parser import XTermParser

    usual = XTermParser()
    assert [repr(one) for one in parsed(keys)] == [repr(one) for one in usual.feed(keys)]


def test_nothing_that_is_pasted_into_the_wizard_is_a_key(corner: Corner) -> None:
    """Into a field, and where no field has the focus; the last packet of it comes late."""
    corner.answers(1).save()
    script = "import sys; from ollama_tune.tui.app import TuneApp; app = TuneApp(warm=False); app.run()"
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with Terminal(command, environment, cwd=str(corner.home)) as terminal:
        terminal.wait("This computer")
        terminal.press(START + "\x1bq\x11\x03\r" + END, "enter")
        terminal.wait("Step 2 of 9")
        terminal.press("enter")
        terminal.wait("40 rows")
        terminal.press("ctrl+u")
        terminal.press(START + "/no\x1bq\x1b[", "B\x11/da\x03ta" + END[:2], END[2:], pause=0.6)
        terminal.press("Z")
        terminal.wait("/noq[B/dataZ")
        assert "Step 3 of 9" in terminal.text
        terminal.press("ctrl+q")
        assert terminal.finish() == 0
