"""A window to choose a file: folders first, one folder at a time."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.modal import BoxScreen
from ollama_tune.tui.widgets.options import Options

SUFFIXES = frozenset(
    {".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst"}
)
MOST = 1000


class FilePicker(BoxScreen[Path]):
    """Enter opens a folder or takes a file, Backspace or left goes up, F2 takes the whole folder."""

    DEFAULT_CSS = """
    FilePicker #entries { height: 14; border: none; padding: 0; background: $surface; }
    FilePicker #entries:focus { border: none; background: $surface; }
    FilePicker #folder { color: $text-muted; }
    """
    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Files")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", priority=True),
        Binding("backspace,left", "up", "Folder above"),
        Binding("f2", "take_folder", "Take this folder"),
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__("Choose a file or a folder")
        self._folder = folder.absolute()
        self._entries: list[Path] = []

    def content(self) -> ComposeResult:
        """Where we are, and what is there."""
        yield Static(id="folder", markup=False)
        yield Options(id="entries", markup=False, compact=True)

    def on_mount(self) -> None:
        """Show the first folder."""
        self._show(self._folder)
        self.query_one("#entries").focus()

    def _show(self, folder: Path) -> None:
        label, entries = self.query_one("#folder", Static), self.query_one("#entries", OptionList)
        try:
            found = sorted(folder.iterdir(), key=lambda path: (not path.is_dir(), path.name.lower()))
        except OSError as error:
            label.update(f"{tilde(folder)} cannot be read: {error.strerror}")
            return
        came_from, self._folder = self._folder, folder
        self._entries = [path for path in found if _wanted(path)][:MOST]
        label.update(tilde(folder))
        entries.clear_options()
        entries.add_options(
            [Option(_line(path)) for path in self._entries] or [Option("no data file here", disabled=True)]
        )
        if self._entries:
            entries.highlighted = self._entries.index(came_from) if came_from in self._entries else 0

    def action_up(self) -> None:
        """The folder above."""
        self._show(self._folder.parent)

    def action_take_folder(self) -> None:
        """All files of this folder."""
        self.dismiss(self._folder)

    @on(OptionList.OptionSelected)
    def action_open(self) -> None:
        """Open the folder or take the file under the cursor."""
        index = self.query_one("#entries", OptionList).highlighted
        if index is None or index >= len(self._entries):
            return
        path = self._entries[index]
        if path.is_dir():
            self._show(path)
        else:
            self.dismiss(path)


def _wanted(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in SUFFIXES)


def _line(path: Path) -> Content:
    if path.is_dir():
        return Content.styled(f"{one_line(path.name, 60)}/", "bold")
    try:
        size = human_bytes(path.stat().st_size)
    except OSError:
        size = "cannot be read"
    return Content.assemble(one_line(path.name, 60), (f"  {size}", "dim"))
