"""Answers that are each marked good or bad (KTO): a good and a bad one to the same question are a pair."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import BinaryIO

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.keys import keys_of
from ollama_tune.core.data.rows.store import packed, unpacked
from ollama_tune.core.data.schemas.cells import Unusable
from ollama_tune.core.data.schemas.preferences import LEFT_OUT, other_side
from ollama_tune.core.data.schemas.turns import Conversation
from ollama_tune.core.data.values import Row

LONE_BAD = "An answer marked as bad has no good one to the same question beside it; it is not learned."
UNPAIRED = ("rejected-answer", LONE_BAD)
LONE_GOOD = f"A good answer has no bad one to the same question beside it, so it is no pair. {LEFT_OUT}"


class BadAnswer(Unusable):
    """A row whose answer is marked as bad."""

    def __init__(self, row: Row) -> None:
        super().__init__(*UNPAIRED)
        self.row = row


class Rated:
    """The rated rows of a data set, which is read twice: once to find the pairs, and once to write them.

    The first reading keeps a number for each question and, in a file that nobody sees, the bad rows; the
    good answers to a question get the bad ones to it in the order of both.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """The first reading begins, perhaps anew."""
        self._file.seek(0)
        self._file.truncate()
        self._places, self._good, self._bad = array("Q", [0]), array("Q"), array("Q")
        self._partners: dict[int, int] | None = None
        self._taken: set[int] = set()
        self._met = [0, 0]

    def good(self, row: Row, log: ProblemLog) -> Row:
        """A row whose answer is marked as good, with the bad answer where it has one."""
        at = self._number(0)
        if self._partners is None:
            self._good.append(_question(row))
        elif at in self._partners:
            return self._pair(row, self._partners[at], log)
        log.warn("lone-good", LONE_GOOD, row.line)
        return row

    def bad(self, found: BadAnswer) -> None:
        """A row whose answer is marked as bad; raises `found` where it stays alone."""
        at = self._number(1)
        if self._partners is None:
            line = packed(found.row)
            self._file.write(line)
            self._places.append(self._places[-1] + len(line))
            self._bad.append(_question(found.row))
        if at not in self._taken:
            raise found

    def _number(self, kind: int) -> int:
        self._met[kind] += 1
        return self._met[kind] - 1

    def _pair(self, row: Row, place: int, log: ProblemLog) -> Row:
        start, end = self._places[place], self._places[place + 1]
        self._file.seek(start)
        other = unpacked(self._file.read(end - start))[0]
        found = Conversation(row.messages, rejected=other)
        return replace(row, rejected=other_side(row.messages, found, row.line, log))

    def match(self) -> bool:
        """Find the pairs after the first reading; True where there are some, and a second one is needed."""
        if self._partners is not None or not self._bad:
            return False
        waiting: dict[int, list[int]] = {question: [] for question in {*self._good} & {*self._bad}}
        for at in reversed(range(len(self._bad))):
            waiting.get(self._bad[at], []).append(at)
        found = {at: waiting[q].pop() for at, q in enumerate(self._good) if waiting.get(q)}
        if found:
            self._partners, self._taken, self._met = found, set(found.values()), [0, 0]
        return bool(found)


def _question(row: Row) -> int:
    """What must be the same of two answers: all that stands before them, and the split that they are in."""
    return keys_of(row.messages, row.tools).prompt ^ int(row.held_out)
