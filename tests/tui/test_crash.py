"""A crash report holds where, never what; the person is told that training goes on, and how to return."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui import crash
from ollama_tune.tui.crash import crash_text, report_crash
from tests.terminal import Terminal
from tests.tui.conftest import Corner
from tests.tui.run_logs import alive, make_run

ROW = "my private question [bold]"
TOKEN = "hf_abcdefghijklmnop"
LEFT = b"\x1b[?1049l"
BREAKS = {
    "a widget that draws": """
from ollama_tune.tui.widgets.keybar import KeyBar
def render(self): row = SECRET; raise ValueError(f"cannot draw {row}")
KeyBar.render = render
""",
    "a key": """
from ollama_tune.tui.screens.machine import MachineScreen
def action_probe(self): token = SECRET; raise RuntimeError(token) from KeyError(SECRET)
MachineScreen.action_probe = action_probe
""",
    "an error that can draw itself": """
from ollama_tune.tui.screens.machine import MachineScreen
class Drawn(Exception):
    def __rich__(self): return SECRET
def action_probe(self): raise Drawn(SECRET)
MachineScreen.action_probe = action_probe
""",
    "a worker thread that ends the app": """
from textual import work
from ollama_tune.tui.screens.machine import MachineScreen
@work(thread=True)
def slow(self): row = SECRET; raise OSError(row)
def action_probe(self): slow(self)
MachineScreen.action_probe = action_probe
""",
    "the thread that reads the keys": """
import ollama_tune.tui.app
from textual.drivers import linux_driver
def feed(self, *_): raise ValueError(SECRET)
linux_driver.XTermParser.feed = feed
""",
    "the start": """
import ollama_tune.tui.app as app
def __init__(self, *_, **__): row = SECRET; raise LookupError(row)
app.TuneApp.__init__ = __init__
""",
}


def broken(corner: Corner, name: str) -> Terminal:
    """The wizard with an error in one place; its message and its values are a row and a token."""
    secret = f"{ROW} {TOKEN}"
    start = "from ollama_tune.tui.cli import main\nraise SystemExit(main())"
    code = f"SECRET = {secret!r}\n{BREAKS[name]}\n{start}"
    env = {**os.environ, "OLLAMA_TUNE_HOME": str(corner.home / "tune-home"), "OLLAMA_HOST": "127.0.0.1:9"}
    return Terminal([sys.executable, "-c", code], env, cwd=str(corner.home), columns=120)


def reports(corner: Corner) -> list[Path]:
    return list((corner.home / "tune-home" / "state").glob("crash-*.txt"))


@pytest.mark.parametrize("name", BREAKS)
def test_a_real_crash_shows_three_lines_and_no_secret(name: str, corner: Corner) -> None:
    with broken(corner, name) as terminal:
        if name not in ("the start", "a widget that draws"):
            terminal.wait("This computer")
            terminal.press("r", pause=0.3)
        assert terminal.finish() == 1
        shown = terminal.raw.rpartition(LEFT)[2].decode()
    assert "ollama-tune met an error of its own" in shown
    assert "goes on where you were" in " ".join(shown.split())
    (report,) = reports(corner)
    assert report.name in shown.replace("\r\n", "")
    text = report.read_text()
    for secret in (ROW, "private", TOKEN):
        assert secret not in text
        assert secret not in shown
    assert "Traceback" not in shown
    assert name == "the thread that reads the keys" or " in " in text


def test_a_crash_while_a_run_lives_says_how_to_return_to_it(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run("kitchen")
    with alive(folder):
        told = report_crash(ValueError(ROW))
    assert f"{folder.name} goes on without this window" in told
    assert f"ollama-tune attach {folder.name}" in told
    assert "attach" not in report_crash(ValueError(ROW))


def test_a_report_names_every_error_of_the_chain_and_where_it_was(corner: Corner) -> None:
    def inner() -> None:
        raise KeyError(ROW)

    try:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError(TOKEN) from error
    except RuntimeError as error:
        text = crash_text(error)
    assert "RuntimeError" in text and "which came from KeyError" in text and "in inner" in text
    assert ROW not in text and TOKEN not in text


def test_a_hostile_name_and_terminal_cannot_break_the_lines(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "x\x1b[2J\nfake line")
    kind = type("Bad\x1b[31m" + "x" * 500, (Exception,), {})
    text, shown = crash_text(kind("")), report_crash(kind(""))
    assert "\x1b" not in text + shown
    assert "\nfake line" not in text
    assert len(shown.splitlines()) == 3


def test_where_nothing_can_be_written_the_lines_still_come(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crash, "write_atomic", full)
    assert "could not be written" in report_crash(ValueError(ROW))


def test_an_error_in_a_loop_of_causes_ends(corner: Corner) -> None:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert crash_text(one).count("ValueError:") == 2


def test_a_command_that_crashes_tells_it_in_the_same_way(corner: Corner) -> None:
    code = (
        "import ollama_tune.core.paths as p\n"
        f"def runs_dir(): raise ZeroDivisionError({ROW!r})\n"
        "p.runs_dir = runs_dir\n"
        "from ollama_tune.tui.cli import main\nimport sys\nsys.argv = ['ollama-tune', 'paths']\n"
        "raise SystemExit(main())"
    )
    env = {**os.environ, "OLLAMA_TUNE_HOME": str(corner.home / "tune-home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "private" not in done.stderr and "Traceback" not in done.stderr


def test_a_signal_number_is_the_exit_status_of_the_command(corner: Corner) -> None:
    env = {**os.environ, "OLLAMA_TUNE_HOME": str(corner.home / "tune-home"), "OLLAMA_HOST": "127.0.0.1:9"}
    with Terminal([sys.executable, "-m", "ollama_tune.tui"], env, cwd=str(corner.home)) as terminal:
        terminal.wait("This computer")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.finish() == 128 + signal.SIGTERM


def test_leaving_while_another_run_lives_says_that_it_goes_on(corner: Corner) -> None:
    folder = RunFolder(make_run("kitchen").path)
    env = {**os.environ, "OLLAMA_TUNE_HOME": str(corner.home / "tune-home"), "OLLAMA_HOST": "127.0.0.1:9"}
    with Terminal([sys.executable, "-m", "ollama_tune.tui"], env, cwd=str(corner.home)) as terminal:
        terminal.wait("This computer")
        with alive(folder):
            terminal.press("q")
            assert terminal.finish() == 0
        assert f"ollama-tune attach {folder.name}" in terminal.raw.decode().replace("\r\n", "")
