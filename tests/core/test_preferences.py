"""Preferences: read from a file made by hand, written without touching the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.preferences import Preferences, load_preferences, preferences_path, save_preference


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))


def test_without_a_file_nothing_is_preferred_and_nothing_is_said() -> None:
    assert load_preferences() == (Preferences(), ())


@pytest.mark.parametrize(
    ("text", "known", "said"),
    [
        ('theme = "light"\nmouse = false\n', Preferences("light", False), ""),
        ("theme = 3\nmouse = false\n", Preferences(None, False), "theme in"),
        ('mouse = "no"\n', Preferences(), "true or false"),
        ('them = "light"\n', Preferences(), "did you mean theme?"),
        ("colour = 1\n", Preferences(), "there are theme and mouse."),
        ("theme = [\n", Preferences(), "cannot be read and was ignored"),
        ("\x00", Preferences(), "cannot be read and was ignored"),
    ],
)
def test_what_is_wrong_in_the_file_is_a_sentence(text: str, known: Preferences, said: str) -> None:
    preferences_path().write_text(text)
    found, remarks = load_preferences()
    assert found == known
    assert len(remarks) == bool(said)
    assert all(said in remark and remark.endswith((".", "?")) for remark in remarks)


def test_bytes_that_are_no_text_and_a_folder_in_its_place_are_sentences() -> None:
    preferences_path().write_bytes(b"\xff\xfe\x00")
    assert "ignored" in load_preferences()[1][0]
    preferences_path().unlink()
    preferences_path().mkdir()
    assert "ignored" in load_preferences()[1][0]
    with pytest.raises(TuneError):
        save_preference("mouse", True)


def test_a_choice_replaces_its_line_and_leaves_comments_and_tables() -> None:
    preferences_path().write_text('# mine\ntheme="dark" # old\n\n[later]\ntheme = 1\n')
    save_preference("theme", "light")
    save_preference("mouse", False)
    text = '# mine\ntheme = "light"\n\nmouse = false\n[later]\ntheme = 1\n'
    assert preferences_path().read_text() == text
    found, remarks = load_preferences()
    assert found == Preferences("light", False)
    assert "'later'" in remarks[0]


def test_a_broken_file_is_not_written_over() -> None:
    preferences_path().write_text("theme = ")
    with pytest.raises(TuneError, match="could not be written"):
        save_preference("theme", "light")
    assert preferences_path().read_text() == "theme = "
