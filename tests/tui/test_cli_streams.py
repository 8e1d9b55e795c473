"""The command line as a pipe, a supervisor and a full disk meet it: streams, signals, exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.tui import chat_cli
from ollama_tune.tui.cli import cli, main
from ollama_tune.tui.commands import GROUPS
from ollama_tune.tui.shell import Terminated, orderly
from tests import told as outputs

TUNE = [sys.executable, "-m", "ollama_tune.tui"]
NAME = "_OLLAMA_TUNE_COMPLETE"
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def environment(home: Path) -> dict[str, str]:
    offline = {"OLLAMA_HOST": "127.0.0.1:9", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "OLLAMA_TUNE_HOME": str(home)}


def shell(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which $TUNE is the program."""
    return subprocess.run(
        ["bash", "-c", line.replace("$TUNE", " ".join(TUNE))],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


def crashes(home: Path) -> list[Path]:
    return [*home.rglob("crash-*")]


def test_a_closed_standard_input_is_an_empty_one(tmp_path: Path) -> None:
    done = shell(tmp_path, "$TUNE ask RUN - --json <&-")
    assert (done.returncode, outputs.told("ask", done.stdout)["code"]) == (2, "usage")
    done = shell(tmp_path, "$TUNE <&-")
    assert done.returncode == 2 and "needs a terminal" in done.stderr
    assert not crashes(tmp_path)


def test_closed_output_is_no_error_and_no_file_gets_it(tmp_path: Path) -> None:
    done = shell(tmp_path, "$TUNE paths >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(b"runs" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("arguments", ["paths --json", "--version"])
def test_a_full_output_is_told_and_a_reader_that_is_gone_is_not(tmp_path: Path, arguments: str) -> None:
    done = shell(tmp_path, f"$TUNE {arguments} > /dev/full")
    assert done.returncode == 1 and "cannot be written: No space left" in done.stderr
    assert done.stderr.count("\n") == 1
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(
        [*TUNE, *arguments.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        check=False,
    )
    os.close(writing)
    assert (gone.returncode, gone.stderr) == (141, b"")
    assert not crashes(tmp_path)


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), orderly():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def hears_sigint() -> None:
    """Tests that run in the background (`make test &`) have it ignored, and hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(home: Path, seen: Callable[[str], bool], *arguments: str) -> subprocess.Popen[str]:
    """A command that has come so far that a line of its output tells it."""
    process = subprocess.Popen(
        [*TUNE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(home),
        preexec_fn=hears_sigint,
    )
    assert process.stdout is not None
    while not seen(process.stdout.readline()):
        assert process.poll() is None
    return process


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Path]:
    """Settings of a run that ends long after the test; what is left of it is stopped."""
    values = {"training": {"epochs": 900, "early_stopping": 0}, "evaluation": {"rows": 0}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    yield tmp_path / "run.yaml"
    for path in tmp_path.glob("home/data/runs/*"):
        (path / "stop").touch()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_run_with_a_last_line_that_says_so(
    tmp_path: Path, long_run: Path, number: signal.Signals
) -> None:
    home = tmp_path / "home"
    process = started(home, lambda line: '"step"' in line, "run", str(long_run), "--json")
    process.send_signal(number)
    rest, _ = process.communicate()
    assert process.returncode == SIGNALS[number]
    last = outputs.told("run", rest)[-1]
    run = RunFolder(next((home / "data" / "runs").iterdir()))
    if number == signal.SIGINT:
        assert last["kind"] == "stopped" and last["resumable"]
        assert run.status().state is State.STOPPED
        return
    assert (last["code"], "goes on" in last["what"]) == ("interrupted", True)
    assert run.alive()
    stopped = shell(home, f"$TUNE stop {run.name} --json")
    assert json.loads(stopped.stdout)["state"] == "stopped"


@pytest.mark.parametrize(("typed", "found"), [("ev", "plain,evaluate"), ("run --det", "plain,--detach")])
def test_a_shell_completes_commands_and_options(tmp_path: Path, typed: str, found: str) -> None:
    words = f"ollama-tune {typed}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), NAME: "bash_complete"}
    start = "import sys; from ollama_tune.tui.cli import main; sys.argv = ['ollama-tune']; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=environment(tmp_path) | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [found]


@pytest.mark.parametrize(("kind", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("evaluate_cli._evaluated", "evaluate RUN --json"),
        ("sweep_cli._carry_out", "sweep run.yaml --over training.rank=2,4 --json"),
        ("demo.follow", "demo --json"),
    ],
)
def test_an_interruption_is_an_object_with_a_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    line: str,
    kind: type[KeyboardInterrupt],
    status: int,
) -> None:
    def interrupted(*_: object, **_named: object) -> None:
        raise kind

    left: list[bool] = []

    def leave(_folder: RunFolder, stop_run: bool) -> tuple[str, str]:
        left.append(stop_run)
        return "It is stopped.", "Go on."

    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("model: {source: bundled}\n")
    monkeypatch.setattr(f"ollama_tune.tui.{place}", interrupted)
    monkeypatch.setattr("ollama_tune.core.runs.launch.start", lambda *_: None)
    monkeypatch.setattr("ollama_tune.tui.demo.leave", leave)
    monkeypatch.setattr(sys, "argv", ["ollama-tune", *line.split()])
    assert main() == status
    assert outputs.told(line.split()[0], capsys.readouterr().out)["code"] == "interrupted"
    assert left == ([True] if line.startswith("demo") else [])


def test_a_chat_that_waits_for_a_question_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(_prompt: str) -> str:
        raise Terminated

    monkeypatch.setattr("builtins.input", terminated)
    with pytest.raises(Terminated):
        chat_cli._typed()


def test_the_list_of_commands_is_in_groups_with_whole_sentences() -> None:
    told = CliRunner().invoke(cli, ["--help"]).output
    assert all(f"\n{title}:\n" in told for title in GROUPS)
    names = re.findall(r"^  ([a-z]+)  +[A-Z]", told, re.MULTILINE)
    assert names == [name for names in GROUPS.values() for name in names]
    assert "..." not in told.partition("Before a run:")[2] and "schema --agents" in " ".join(told.split())
