"""Counts the problems met while reading, with the first few places of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ollama_tune.core.data.values import Problem
from ollama_tune.core.text import one_line

SHOWN = 5
"""Line numbers kept for each kind of problem."""
SAMPLE = 200
"""Characters kept of a record that cannot be used."""


@dataclass
class _Entry:
    severity: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class ProblemLog:
    """Collects problems by kind and text; a file with a million bad lines costs five line numbers."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._samples: dict[str, list[tuple[int, str]]] = {}
        self.set_aside_count = 0
        """Records set aside, without what concerns a whole file (no line)."""

    def warn(self, kind: str, text: str, line: int | None = None, count: int = 1) -> None:
        """A row kept, or something about the whole file (no line)."""
        self.add(kind, text, count, () if line is None else (line,))

    def set_aside(self, kind: str, text: str, line: int | None, count: int = 1, sample: str = "") -> None:
        """A row that is not used; a short visible piece of its raw text is kept of the first few."""
        self.set_aside_count += count if line is not None else 0
        self.add(kind, text, count, () if line is None else (line,), "error")
        kept = self._samples.setdefault(kind, [])
        if sample and line is not None and len(kept) < SHOWN:
            kept.append((line, one_line(sample, SAMPLE)))

    def add(
        self, kind: str, text: str, count: int, lines: Iterable[int] = (), severity: str = "warning"
    ) -> None:
        """So many cases at once, with the lines of the first ones."""
        entry = self._entries.setdefault((kind, text), _Entry(severity))
        entry.count += count
        for line in lines:
            if len(entry.lines) >= SHOWN:
                return
            entry.lines.append(line)

    def remove(self, kind: str) -> None:
        """Forget a kind that turned out to be no problem."""
        self._entries = {key: entry for key, entry in self._entries.items() if key[0] != kind}

    def samples(self) -> dict[str, list[tuple[int, str]]]:
        """Of each kind set aside, a few records as (line, piece of the raw text)."""
        return {kind: kept for kind, kept in self._samples.items() if kept}

    def problems(self, row_kinds: Iterable[str] = ()) -> tuple[Problem, ...]:
        """All kinds, rows set aside first, the most frequent first; those of `row_kinds` are switchable."""
        switchable = frozenset(row_kinds)
        found = [
            Problem(kind, text, entry.count, tuple(entry.lines), entry.severity, kind in switchable)
            for (kind, text), entry in self._entries.items()
        ]
        return tuple(sorted(found, key=lambda problem: (problem.severity != "error", -problem.count)))


class RowLog(ProblemLog):
    """A log that also tells which row a warning belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: list[tuple[str, int]] = []

    def warn(self, kind: str, text: str, line: int | None = None, count: int = 1) -> None:
        """A row kept, or something about the whole file (no line)."""
        super().warn(kind, text, line, count)
        if line is not None:
            self._recent.append((kind, line))

    def take(self, line: int) -> set[str]:
        """The kinds warned about at that line since the last call."""
        if not self._recent:
            return set()
        found = {kind for kind, at in self._recent if at == line}
        self._recent.clear()
        return found
