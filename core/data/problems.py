"""Counts the problems met while reading, with the first few places of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_tune.core.data.values import Problem

SHOWN = 5
"""Line numbers kept for each kind of problem."""


@dataclass
class _Entry:
    severity: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class ProblemLog:
    """Collects problems by kind and text; a file with a million bad lines costs five line numbers."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Entry] = {}

    def warn(self, kind: str, text: str, line: int | None = None, count: int = 1) -> None:
        """A row kept, or something about the whole file (no line)."""
        self._add(kind, text, "warning", line, count)

    def set_aside(self, kind: str, text: str, line: int | None, count: int = 1) -> None:
        """A row that is not used."""
        self._add(kind, text, "error", line, count)

    def _add(self, kind: str, text: str, severity: str, line: int | None, count: int) -> None:
        entry = self._entries.setdefault((kind, text), _Entry(severity))
        entry.count += count
        if line is not None and len(entry.lines) < SHOWN:
            entry.lines.append(line)

    def problems(self) -> tuple[Problem, ...]:
        """All kinds, rows set aside first, the most frequent first."""
        found = [
            Problem(kind, text, entry.count, tuple(entry.lines), entry.severity)
            for (kind, text), entry in self._entries.items()
        ]
        return tuple(sorted(found, key=lambda problem: (problem.severity != "error", -problem.count)))
