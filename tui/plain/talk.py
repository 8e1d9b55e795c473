"""A conversation in plain lines: one question, one answer; no colours, no moving cursor, nothing drawn."""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import visible
from ollama_tune.tui.plain.help import explain

Topic = tuple[str, str]
"""A file of `assets/help` and a heading in it."""
WORDS = {"✓": "OK:", "✗": "Error:", "!": "Warning:", "–": "Skipped:", "‖": "Waiting:", "=>": "Verdict:"}
LETTERS = str.maketrans(
    {"…": "...", "→": "to", "×": "x", "–": "-", "—": "-", "·": "-"}
    | dict.fromkeys("“”„«»", '"')
    | dict.fromkeys("‘’‚", "'")
)
_SIGN = re.compile(rf"^(\s*)({'|'.join(map(re.escape, WORDS))}) +")
LONGEST = 1 << 16
"""Characters that are read as one answer."""
NEWS_EVERY = 5.0
"""Seconds between two lines about the same work."""
USUAL_WIDTH = 80
COMMAND = "  ollama"
"""How a line with a command begins."""
COMMANDS = {"?": "?", "help": "?", "b": "b", "back": "b", "q": "q", "quit": "q"}


class Back(Exception):
    """The person wants to go back."""


class Quit(Exception):
    """The person wants to leave; everything is kept."""


class Ended(Exception):
    """There is no more input; `question` is the one that nobody answered."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


class Talk:
    """Says lines and asks questions on two text streams.

    Whatever is said is safe for a terminal and for the encoding of the output: signs become words, control
    characters visible symbols. At every question `?` explains, `b` raises `Back` and `q` raises `Quit`; the
    end of the input raises `Quit` where a person types it, else `Ended`.
    """

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self._source, self._target = source, target
        self._encoding = encoding_of(target)
        self._hint = ""
        self._hinted: set[str] = set()
        self.person = source.isatty()

    def say(self, *lines: str) -> None:
        """Write lines; on a terminal they end between words."""
        width = width_of(self._target)
        for line in lines:
            self._write("\n".join(folded(spoken(line), width)) + "\n")

    def hint(self, text: str) -> None:
        """Say what can be typed at the next question; again only in another part, or when `?` asks for it."""
        if text not in self._hinted:
            self.say(text)
        self._hinted.add(text)
        self._hint = text

    def offer(self, text: str) -> None:
        """Say what can be chosen at the next question; `?` says it again."""
        self.say(text)
        self._hint = text

    def turn(self, heading: str) -> None:
        """Begin another part of the conversation."""
        self._hinted.clear()
        self.say("", heading)

    def error(self, error: TuneError) -> None:
        """Say what went wrong and what to do."""
        self.say(f"✗ {error}")

    def ask(self, question: str, default: str = "", topic: Topic | None = None) -> str:
        """The answer to a question without the blanks around it; empty where the default is taken.

        A line that begins with a blank is never a command: so a single letter can be an answer.
        """
        hint, self._hint = self._hint, ""
        while True:
            self._write(spoken(f"{question} [{default}]: " if default else f"{question}: "))
            line = self._read(question)
            command = COMMANDS.get(line.lower()) if line == line.strip() else None
            if command is None:
                return line.strip()
            if command == "b":
                raise Back
            if command == "q":
                raise Quit
            self.say(*explain(topic), *filter(None, [hint]))

    def choose(
        self, question: str, options: Sequence[str], default: int = 0, topic: Topic | None = None
    ) -> int:
        """The place of the chosen option, from 0; the options are numbered from 1."""
        numbered = "\n".join(f"{number}. {option}" for number, option in enumerate(options, 1))
        self.offer(numbered)
        while True:
            self._hint = numbered
            answer = self.ask(question, str(default + 1), topic)
            if not answer:
                return default
            if answer.isdecimal() and 1 <= int(answer) <= len(options):
                return int(answer) - 1
            self.say(f"✗ Type a number from 1 to {len(options)}.")

    def agrees(self, question: str, default: bool, topic: Topic | None = None) -> bool:
        """Whether the answer is yes."""
        while True:
            answer = self.ask(question, "yes" if default else "no", topic).lower()
            if answer in ("", "y", "yes", "n", "no"):
                return answer.startswith("y") if answer else default
            self.say("✗ Type yes or no.")

    def news(self, words: str) -> Callable[[int, int], None]:
        """Says how far a long piece of work is, now and then; `words` has a place for the share."""
        from time import monotonic

        told = [monotonic()]

        def progress(done: int, total: int) -> None:
            if monotonic() - told[0] > NEWS_EVERY:
                told[0] = monotonic()
                self.say(words.format(min(done / total, 1.0) if total else 0.0))

        return progress

    def _read(self, question: str) -> str:
        line = self._source.readline(LONGEST)
        if not self.person:
            self._write(visible(line.rstrip("\r\n")) + "\n")
        if line:
            return line.rstrip("\r\n")
        if self.person:
            self._write("\n")
            raise Quit
        raise Ended(question)

    def _write(self, text: str) -> None:
        self._target.write(encodable(text, self._encoding))
        self._target.flush()


def spoken(line: str) -> str:
    """A line for ears as well as eyes: the sign at its beginning as a word, nothing that could do harm."""
    line = visible(line, keep_newlines=True)
    return _SIGN.sub(lambda match: f"{match[1]}{WORDS[match[2]]} ", line).translate(LETTERS)


def width_of(target: TextIO) -> int:
    """How many characters a line may have; 0 where it is no terminal."""
    if not target.isatty():
        return 0
    try:
        return (os.get_terminal_size(target.fileno()).columns or USUAL_WIDTH) - 1
    except OSError:
        return USUAL_WIDTH - 1


def folded(text: str, width: int) -> list[str]:
    """The text in lines of that width; a command to copy stays whole."""
    found: list[str] = []
    for line in text.split("\n"):
        if not width or len(line) <= width or line.startswith(COMMAND):
            found.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        wrapper = textwrap.TextWrapper(width, indent, indent, break_long_words=False, break_on_hyphens=False)
        found += wrapper.wrap(line.lstrip())
    return found


def encoding_of(target: TextIO) -> str:
    """How the output is encoded; Python says UTF-8 also where the locale is C, whose terminals know ASCII."""
    said = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return "ascii" if said in ("C", "POSIX") else target.encoding or "ascii"


def encodable(text: str, encoding: str) -> str:
    """The text with letters that the encoding has; the letter below an accent, else a question mark."""
    if text.isascii():
        return text
    return "".join(character if _fits(character, encoding) else _like(character) for character in text)


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeError:
        return False
    return True


def _like(character: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
    return plain if plain.strip() else "?"
