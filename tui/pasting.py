"""What is pasted stays text: nothing in it is ever a key that was pressed."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from textual._xterm_parser import XTermParser
from textual.app import App
from textual.driver import Driver
from textual.message import Message

START, END = "\x1b[200~", "\x1b[201~"
"""What a terminal puts around a paste (bracketed paste of xterm)."""
CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r"}


class PasteParser(XTermParser):
    """Takes the control characters out of a paste before Textual looks for keys.

    Inside a paste Textual 8.2.8 takes up to 32 characters after an escape for keys, and so does it with the
    end of a paste that comes in two packets.
    """

    def __init__(self, debug: bool = False) -> None:
        self._inside = False
        self._last = ""
        """Outside of a paste the last characters, which may begin one; inside those that wait for its end."""
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        """As the parent; an empty text is the end of all."""
        if not data:
            yield from super().feed(data)
        while data:
            piece, data = self._paste(data) if self._inside else self._typed(data)
            if piece:
                yield from super().feed(piece)

    def _typed(self, data: str) -> tuple[str, str]:
        """What goes to the parent, and what is left: all after the beginning of a paste.

        One that came in packets so late that the parent took it for keys is begun anew.
        """
        before = len(self._last)
        text = self._last + data
        at = text.find(START)
        if at < 0:
            self._last = text[1 - len(START) :]
            return data, ""
        self._inside, self._last, end = True, "", at + len(START)
        given_up = at < before and self._timeout_time is None
        return START if given_up else text[before:end], text[end:]

    def _paste(self, data: str) -> tuple[str, str]:
        """The same inside a paste, without its control characters."""
        pasted, end, rest = (self._last + data).partition(END)
        self._inside = not end
        waits = 0 if end else next(n for n in range(len(END) - 1, -1, -1) if pasted.endswith(END[:n]))
        self._last = END[:waits]
        return pasted[: len(pasted) - waits].translate(CONTROLS) + end, rest


class PasteApp(App[int]):
    """Reads the terminal by `PasteParser`."""

    def get_driver_class(self) -> type[Driver]:
        """The usual one; its module makes the parser by this name."""
        driver = super().get_driver_class()
        vars(sys.modules[driver.__module__])["XTermParser"] = PasteParser
        return driver
