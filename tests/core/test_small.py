"""Errors, files, paths and text."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core import paths
from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.files import atomic_file, write_atomic
from ollama_tune.core.text import human_bytes, human_count, human_estimate, human_seconds, one_line, visible


def test_an_error_says_what_happened_and_what_to_do() -> None:
    error = TuneError("The file is empty.", "Choose another.", details="0 bytes")
    assert str(error) == "The file is empty. Choose another."
    assert (TuneError.exit_code, UsageError.exit_code, BusyError.exit_code) == (1, 2, 75)


def test_an_atomic_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "run.yaml"
    write_atomic(target, "old")
    with pytest.raises(RuntimeError), atomic_file(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_every_folder_lies_below_the_home_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    made = [paths.config_dir(), paths.data_dir(), paths.state_dir(), paths.cache_dir(), paths.runs_dir()]
    for folder in [*made, paths.models_dir()]:
        assert folder.is_relative_to(tmp_path / "home")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_xdg_folders_are_used_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_TUNE_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert paths.runs_dir() == tmp_path / "share" / "ollama-tune" / "runs"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    with pytest.raises(TuneError, match="OLLAMA_TUNE_HOME"):
        paths.runs_dir()


NOBODY = """
import os, pwd, sys

def unknown(uid):
    raise KeyError(uid)

os.environ.pop("HOME", None)
pwd.getpwuid = unknown
from ollama_tune.tui.cli import main
sys.argv = ["ollama-tune", "doctor", "--quick"]
sys.exit(main())
"""


def test_an_account_without_a_home_folder_or_a_name_can_work(tmp_path: Path) -> None:
    """As in a container that was started with any number for a user."""
    there = {**os.environ, "OLLAMA_TUNE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NOBODY], env=there, capture_output=True, text=True)
    assert "Folders" in done.stdout and not done.stderr, done.stderr


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    with pytest.raises(TuneError, match="OLLAMA_TUNE_HOME"):
        paths.runs_dir()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [/foo] text", "plain [/foo] text"),
        ("\x1b[31mred", "␛[31mred"),
        ("a\nb\tc\x7f", "a␊b␉c␡"),
        ("right\u202eleft", "right<U+202E>left"),
        ("\ud800", "<U+D800>"),
        ("\x9b31m", "<U+009B>31m"),
        ("日本 é 👍", "日本 é 👍"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_newlines_can_be_kept() -> None:
    assert visible("a\nb\r", keep_newlines=True) == "a\nb␍"


def test_one_line_cuts_with_an_ellipsis() -> None:
    assert one_line("a\nb   c", 20) == "a b c"
    assert one_line("x" * 30, 10) == "x" * 9 + "…"
    assert len(one_line("y" * 10_000_000, 80)) == 80


@pytest.mark.parametrize(
    ("value", "text"), [(812, "812 B"), (6_081_741, "5.8 MiB"), (3 * 2**40, "3.0 TiB"), (1536, "1.5 KiB")]
)
def test_sizes(value: int, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.2, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (-1, "0 s"), (613200, "7 days 2 h")],
)
def test_durations(value: float, text: str) -> None:
    assert human_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8, "8 s"),
        (599, "10 min"),
        (3353, "56 min"),
        (3580, "1 h 00 min"),
        (7300, "2 h 02 min"),
        (95, "1 min 35 s"),
    ],
)
def test_an_estimate_claims_no_seconds_from_ten_minutes_on(value: float, text: str) -> None:
    assert human_estimate(value) == text


def test_counts() -> None:
    assert [human_count(n) for n in (1234, 2_900_000, 8.03e9)] == ["1,234", "2.9 M", "8.0 B"]
