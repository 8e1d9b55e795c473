"""The log of a run: its events as sentences, and what libraries printed in the worker."""

from __future__ import annotations

import datetime
from collections import deque
from pathlib import Path

from rich.text import Text
from textual import events
from textual.geometry import Size
from textual.widgets import RichLog

from ollama_tune.core.text import one_line
from ollama_tune.tui.run_view import RunView

FIRST_READ = 16_384
MOST = 65_536
WIDEST = 400
MOST_LINES = 50
"""So many of the newest lines are kept; all of them are in the window of the log."""


class LogTail:
    """Follows `stdout.log` by a byte offset; the first call gives the last `lines` of the last `first` bytes.

    `left_out` is how many bytes before these were not read.
    """

    def __init__(self, path: Path, lines: int = 20, first: int = FIRST_READ) -> None:
        self._path = path
        self._lines = lines
        self._first = first
        self._offset = -1
        self.left_out = 0

    def poll(self) -> list[str]:
        """The whole lines written since the last call; of a line drawn over itself, the last state."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return []
        first = self._offset < 0
        start = max(size - self._first, 0) if first else max(self._offset, size - MOST)
        if size <= start:
            self._offset = min(max(self._offset, 0), size)
            return []
        with self._path.open("rb") as file:
            file.seek(start)
            block = file.read(size - start)
        end = block.rfind(b"\n") + 1
        self._offset = start + end
        lines = [_last_state(line) for line in block[:end].split(b"\n")[:-1]]
        self.left_out = start if first else self.left_out
        return lines[-self._lines :] if first else lines


def _last_state(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]


class RunLog(RichLog):
    """Takes over new log lines of a view; text from outside is shown harmless and never as markup."""

    DEFAULT_CSS = """
    RunLog { height: 1fr; scrollbar-size: 0 0; background: transparent; }
    RunLog:focus { background: transparent; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(max_lines=MOST_LINES, wrap=True, min_width=20, markup=False, highlight=False, id=id)
        self._seen = 0
        self._texts: deque[Text] = deque(maxlen=MOST_LINES)
        self._fitted = Size(0, 0)

    def show_events(self, view: RunView, *, since: float = 0.0) -> None:
        """Add the sentences that the view gained since the last call; none from before the time `since`."""
        fresh = view.logged - self._seen
        self._seen = view.logged
        for line in list(view.log)[-min(fresh, MOST_LINES) :] if fresh else []:
            if line.t >= since:
                when = datetime.datetime.fromtimestamp(line.t).strftime("%H:%M:%S")
                sign = f"{line.sign} " if line.sign else ""
                self._add(Text.assemble((f"{when} ", "dim"), f"{sign}{line.text}"))

    def show_output(self, lines: list[str]) -> None:
        """Add what libraries printed."""
        for line in lines:
            if line.strip():
                self._add(Text(f"· {one_line(line, WIDEST)}", style="dim"))

    def _add(self, text: Text) -> None:
        self._texts.append(text)
        self._write(text)

    def _write(self, text: Text) -> None:
        """Where there is room for a line or two the beginning of each says most."""
        if 0 < self.size.height <= 2:
            text = text.copy()
            text.truncate(self.size.width, overflow="ellipsis")
        self.write(text)

    def on_resize(self, event: events.Resize) -> None:
        """Break the lines anew for another size."""
        if event.size.width and event.size != self._fitted:
            self._fitted = event.size
            self.clear()
            for text in self._texts:
                self._write(text)
