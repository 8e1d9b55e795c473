"""The plain wizard on a real terminal that knows nothing: from the first question to a proved export."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.fields import FIRST, MORE
from tests.terminal import Terminal

COMMAND = [sys.executable, "-m", "ollama_tune.tui"]
PLACES = {field.path: number for number, field in enumerate(FIRST + MORE, 1)}
QUICK = {"training.epochs": "0.1", "evaluation.rows": "2", "evaluation.max_new_tokens": "8"}


class Conversation:
    """Answers each question when it is asked; what was read already is not looked at again."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal, self._at = terminal, 0

    def heard(self, words: str, seconds: float = 300.0) -> str:
        """Wait for words; returns what was said since the last answer."""
        deadline = time.monotonic() + seconds
        while words not in (said := self._terminal.raw[self._at :].decode(errors="replace")):
            assert time.monotonic() < deadline and not self._terminal.ended, f"{words!r} not in\n{said}"
            self._terminal.pump(0.05)
        return said

    def press(self, keys: str) -> None:
        """Type; what was said before is done with."""
        self._at = len(self._terminal.raw)
        self._terminal.press(keys, pause=0.0)

    def answer(self, question: str, typed: str, seconds: float = 300.0) -> str:
        """Wait for a question, and type a line; returns what was said before it."""
        said = self.heard(question, seconds)
        self.press(typed + "\r")
        return said


def test_from_the_first_question_to_a_proved_export(tmp_path: Path) -> None:
    """TERM=dumb, the bundled model and rows, a real run that Ctrl+C does not stop; no control character."""
    with Terminal(COMMAND, {**os.environ, "TERM": "dumb"}, columns=400, cwd=str(tmp_path)) as terminal:
        talk = Conversation(terminal)
        talk.answer("Machine [go on]: ", "")
        talk.answer("Model [1, Bundled demo model]: ", "")
        talk.answer("Data [bundled]: ", "")
        assert "Answer, learned: " in talk.answer("Data is good [go on]: ", "")
        for path, value in QUICK.items():
            talk.answer("Settings [go on]: ", f"{PLACES[path]} {value}")
        talk.answer("Settings [go on]: ", "")
        assert "OK: It fits" in talk.answer("Start the run [yes]: ", "")
        talk.heard("Ctrl+C leaves the run to itself or stops it")
        talk.press("ctrl+c")
        assert "goes on without this window." in talk.answer("What now [leave it]: ", "w")
        trained = talk.answer("Question [go on]: ", "h")
        assert "step 12 of 12" in trained and "held-out questions" in trained
        answered = talk.answer("Question [go on]: ", "And three soups.")
        assert "Base model: " in answered and "Tuned model: " in answered and "Wanted: " in answered
        assert "Wanted: " not in talk.answer("Question [go on]: ", "e")
        assert "Tuned model so far: " in talk.answer("Question [go on]: ", "")
        talk.answer("Name in Ollama [demo-model-tickets]: ", "plain-test")
        talk.answer("Type [1]: ", "")
        talk.answer("Export [yes]: ", "")
        assert "Verdict: proved" in talk.answer("Done [end]: ", "")
        assert terminal.finish() == 0
        raw = terminal.raw
    assert not [byte for byte in raw if byte < 32 and byte not in b"\r\n"], "only words and line ends"
    assert b"\r" not in raw.replace(b"\r\n", b""), "no line is drawn over"
    assert "┃" not in raw.decode() and "⣿" not in raw.decode()
    (folder,) = list_runs()
    proof = json.loads((folder.export / "verification.json").read_text())
    assert proof["verdict"] in ("pass", "warn") and proof["file"].startswith("plain-test")
