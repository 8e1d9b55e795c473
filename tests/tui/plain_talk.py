"""Conversations with the plain wizard, in this process: answers go in, what it says comes out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

from ollama_tune.core.machine.values import Machine
from ollama_tune.tui.plain.talk import Talk
from ollama_tune.tui.plain.wizard import run_plain
from tests.tui.conftest import cpu_machine

ESCAPE = "\x1b"
INTERRUPT = object()
"""In place of a line: Ctrl+C."""


class Answers(io.StringIO):
    """Lines that are typed or piped; `INTERRUPT` among them is Ctrl+C."""

    def __init__(self, lines: Iterable[object], *, person: bool = False) -> None:
        super().__init__()
        self._lines = list(lines)
        self._person = person

    def isatty(self) -> bool:
        return self._person

    def readline(self, _limit: int | None = -1, /) -> str:
        line = self._lines.pop(0) if self._lines else ""
        if line is INTERRUPT:
            raise KeyboardInterrupt
        return str(line)


def output(encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def said(target: io.TextIOWrapper) -> str:
    assert isinstance(target.buffer, io.BytesIO)
    return target.buffer.getvalue().decode(target.encoding)


def lines(*typed: str) -> list[str]:
    return [f"{line}\n" for line in typed]


def converse(
    *typed: object, probe: Callable[[], Machine] = cpu_machine, person: bool = False, encoding: str = "utf-8"
) -> tuple[int, str]:
    """The exit status and everything that was said; each answer is a line, then the input ends."""
    target = output(encoding)
    answers = Answers([line if line is INTERRUPT else f"{line}\n" for line in typed], person=person)
    status = run_plain(answers, target, probe=probe, warm=False)
    return status, said(target)


def talk(*typed: str, person: bool = False, encoding: str = "utf-8") -> tuple[Talk, io.TextIOWrapper]:
    target = output(encoding)
    return Talk(Answers(lines(*typed), person=person), target), target
