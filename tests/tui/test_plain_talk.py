"""The plain conversation: what is said is safe and in words, and every question takes ?, b, q and the end."""

from __future__ import annotations

import pytest

from ollama_tune.tui.plain.help import explain
from ollama_tune.tui.plain.talk import Back, Ended, Quit, encodable, encoding_of, folded, spoken
from tests.tui.plain_talk import ESCAPE, output, said, talk


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("✓ It fits.", "OK: It fits."),
        ("  ✗ tokens  1 of 2", "  Error: tokens  1 of 2"),
        ("! Careful", "Warning: Careful"),
        ("– ollama", "Skipped: ollama"),
        ("rank 64 → 32, 2 × 3 …", "rank 64 to 32, 2 x 3 ..."),
        ("a\x1b[2Jb\x07", "a␛[2Jb␇"),
        ("It fits! Yes", "It fits! Yes"),
    ],
)
def test_signs_become_words_and_nothing_moves_the_cursor(line: str, words: str) -> None:
    assert spoken(line) == words


def test_lines_end_between_words_and_commands_stay_whole() -> None:
    assert folded("  one two three", 9) == ["  one two", "  three"]
    assert folded("  ollama run a-very-long-name", 9) == ["  ollama run a-very-long-name"]
    assert folded("a\nb c", 0) == ["a", "b c"]
    assert folded("", 9) == [""]


def test_other_encodings_get_the_letter_below_the_accent_or_a_question_mark() -> None:
    assert encodable("Café 東京 ½", "ascii") == "Cafe ?? 12"
    assert encodable("Café 東", "latin-1") == "Café ?"
    assert encodable("Café 東", "utf-8") == "Café 東"


def test_a_c_locale_is_a_terminal_that_knows_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "C")
    assert encoding_of(output()) == "ascii"
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert encoding_of(output()) == "utf-8"


def test_a_question_explains_itself_and_is_asked_again() -> None:
    asks, target = talk("?", "two")
    asks.hint("Type a number.")
    assert asks.ask("How many", "1", ("training", "epochs")) == "two"
    text = said(target)
    assert "How often the model sees every training row" in text and "q quits" in text
    assert text.count("How many [1]: ") == 2 and text.count("Type a number.") == 2
    assert "**" not in text and ESCAPE not in text


@pytest.mark.parametrize(("typed", "end"), [("b", Back), ("back", Back), ("q", Quit), ("QUIT", Quit)])
def test_b_goes_back_and_q_quits_at_every_question(typed: str, end: type[Exception]) -> None:
    asks, _ = talk(typed)
    with pytest.raises(end):
        asks.ask("What")


def test_a_blank_before_a_letter_makes_it_an_answer() -> None:
    asks, _ = talk(" b")
    assert asks.ask("What") == "b"


def test_the_end_of_piped_input_names_the_question_and_that_of_a_person_quits() -> None:
    asks, _ = talk()
    with pytest.raises(Ended, match="Name in Ollama"):
        asks.ask("Name in Ollama")
    person, _ = talk(person=True)
    with pytest.raises(Quit):
        person.ask("Name in Ollama")


def test_a_wrong_answer_is_told_what_is_allowed_until_the_input_ends() -> None:
    asks, target = talk("5", "x", "0")
    with pytest.raises(Ended):
        asks.choose("Type", ["one", "two"])
    assert said(target).count("Error: Type a number from 1 to 2.") == 3
    asks, target = talk("perhaps", "n")
    assert not asks.agrees("Really", True)
    assert "Error: Type yes or no." in said(target)


def test_piped_answers_stand_in_the_transcript_and_are_harmless() -> None:
    asks, target = talk("a\x1b[2J")
    asks.ask("What")
    assert said(target) == "What: a␛[2J\n"


def test_a_hint_is_said_once() -> None:
    asks, target = talk()
    asks.hint("Enter goes on.")
    asks.hint("Enter goes on.")
    asks.turn("Step 2.")
    asks.hint("Enter goes on.")
    assert said(target).count("Enter goes on.") == 2


QUESTIONS = ["machine", "model", "chat form", "data", "settings", "review", "training", "try it", "export"]


@pytest.mark.parametrize("heading", [*QUESTIONS, "done", "error"])
def test_every_plain_question_has_help(heading: str) -> None:
    lines = explain(("plain", heading))
    assert len(lines) > 2 and all(len(line) <= 78 for line in lines)
