"""Follows the log of a run: what is known of it, and its state. No widget, so that commands can too."""

from __future__ import annotations

from ollama_tune.core.runs.events import EventReader
from ollama_tune.core.runs.folder import ALIVE, RunFolder, State
from ollama_tune.tui.run_view import RunView


class RunFollower:
    """A run's log folded into a view, and its state, read anew at each `poll`."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.view = RunView()
        self.state = State.NEW
        self._reader = EventReader(folder.events_path)

    def poll(self, most: int | None = None) -> bool:
        """Take in what is new; True when events came or the state changed.

        With `most` a long log is taken in by so many bytes a call; `behind` says that there is more.
        """
        fresh, old = self._read(most), self.state
        self.state = self.folder.state(self.view.last, paused=self.view.paused)
        if self.behind:
            return fresh
        if not self.alive and self._read():
            fresh, self.state = True, self.folder.state(self.view.last)
        return fresh or old is not self.state

    def _read(self, most: int | None = None) -> bool:
        return self.view.fold(self._reader.poll(most))

    @property
    def behind(self) -> bool:
        """True while a long log is only read in part."""
        return self._reader.behind

    @property
    def alive(self) -> bool:
        """True while a worker holds the run."""
        return self.state in ALIVE
