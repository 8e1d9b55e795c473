"""`ollama-tune doctor`: the whole of it on this box, what breaks it, and how it looks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ollama_tune.core.machine.doctor import Check, fail, ok, warn
from ollama_tune.tui import doctor_cli, doctor_terminal
from ollama_tune.tui.doctor_cli import doctor, doctor_lines, lines
from tests import told as outputs

COMMAND = [sys.executable, "-m", "ollama_tune.tui", "doctor"]
CRASHING = "import ctypes\nctypes.string_at(0)\n"


def test_the_whole_doctor_on_this_box_with_a_library_that_crashes_and_one_that_raises(tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes.py").write_text(CRASHING)
    (tmp_path / "peft.py").write_text("raise ImportError('half an installation')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*COMMAND, "--json"], env=environment, capture_output=True, text=True, check=False)
    answer = outputs.told("doctor", done.stdout)
    found = {(check["group"], check["name"]): check for check in answer["checks"]}
    assert (done.returncode, answer["ok"]) == (1, False)
    broken = found["Computing", "bitsandbytes"]
    assert (broken["state"], broken["found"]) == ("fail", "crashed with SIGSEGV")
    assert "quantization none" in broken["fix"]
    assert found["Computing", "8-bit AdamW"]["state"] == "warn"
    assert found["Computing", "general path"]["found"] == "ImportError: half an installation"
    works = ("torch", "AdamW", "attention", "fast path", "quantizer", "llama.cpp")
    assert {found["Computing", name]["state"] for name in works} == {"ok"}, found
    assert {found["Folders", name]["state"] for name in ("runs", "models", "answers")} <= {"ok", "warn"}
    groups = list(dict.fromkeys(check["group"] for check in answer["checks"]))
    assert groups == [
        "Versions",
        "GPU",
        "This box",
        "Folders",
        "Runs",
        "Terminal",
        "Ollama",
        "Hub",
        "Computing",
    ]
    assert all(check["fix"] for check in answer["checks"] if check["state"] == "fail")


def test_the_quick_one_leaves_out_what_takes_seconds() -> None:
    done = subprocess.run([*COMMAND, "--quick"], capture_output=True, text=True, check=True)
    shown = done.stdout
    assert "Computing" not in shown and "reach" not in shown
    assert "✓ ollama-tune" in shown and "✓ letters" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "Everything works" in shown.splitlines()[-1]


def test_an_output_without_our_signs_is_written_all_the_same() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"}
    done = subprocess.run([*COMMAND, "--quick"], env=environment, capture_output=True, check=True)
    shown = done.stdout.decode("ascii")
    assert "+ ollama-tune" in shown and "! letters" in shown and "> Type `export LC_ALL=C.UTF-8`" in shown


def test_a_home_without_room_for_writing_is_a_fault_in_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"OLLAMA_TUNE_HOME": str(tmp_path / "file")}
    done = subprocess.run([*COMMAND, "--quick"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == ""
    assert "✗ runs" in done.stdout and "to mend (✗)" in done.stdout
    assert "Set OLLAMA_TUNE_HOME to a folder" in done.stdout


def some(*checks: Check) -> Iterator[Check]:
    return iter([Check(c.state, c.found, c.fix, c.name or "thing", c.group or "Group") for c in checks])


def test_lines_are_marked_aligned_and_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    shown = list(
        lines(
            some(
                ok("well"), warn("a limit " * 12, "do " * 30), Check("fail", "/home/ada/x", "mend", "n", "B")
            ),
            80,
        )
    )
    assert shown[:2] == ["Group", "  ✓ thing         well"]
    assert shown[2].startswith("  ! thing         a limit")
    assert shown[3].startswith(" " * 18 + "limit") and shown[4].startswith(" " * 18 + "→ do do")
    assert shown[5].startswith(" " * 20 + "do")
    assert shown[-4:-1] == ["\nB", "  ✗ n             ~/x", " " * 18 + "→ mend"]
    assert shown[-1] == "\n1 to mend (✗), 1 to know (!)."
    assert max(map(len, shown)) <= 80


def test_a_screen_gets_the_same_lines_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    shown = list(doctor_lines(quick=True, width=60, tell=told.append))
    assert shown[0] == "Versions" and max(map(len, shown)) <= 60
    assert "clock" in told or "versions" in told


def test_the_json_has_the_keys_of_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cli, "all_checks", lambda quick, tell=None: some(ok("a"), fail("b", "c")))
    result = CliRunner().invoke(doctor, ["--json"])
    answer = json.loads(result.output)
    assert result.exit_code == 1 and answer["ok"] is False
    assert [list(check) for check in answer["checks"]] == [["group", "name", "state", "found", "fix"]] * 2
    text = CliRunner().invoke(doctor, ["--help"]).output
    assert all(key in text for key in (*answer, *answer["checks"][0]))


def test_the_help_and_a_look_load_no_heavy_library() -> None:
    code = (
        "import sys\nfrom ollama_tune.tui.doctor_cli import all_checks\nlist(all_checks(True))\n"
        "print({'torch', 'transformers', 'textual', 'peft', 'httpx', 'pydantic'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


# The terminal


def terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, Check]:
    kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLUMNS": "80", "LINES": "24"}
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**kept, **environment}.items():
        monkeypatch.setenv(name, value)
    return {check.name: check for check in doctor_terminal.terminal()}


@pytest.mark.parametrize(
    ("environment", "word", "state"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "16.7 million colours", "ok"),
        ({"TERM": "xterm-256color"}, "256 colours", "ok"),
        ({"TERM": "screen"}, "16 colours", "warn"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "NO_COLOR", "ok"),
        ({"TERM": "xterm", "TEXTUAL_COLOR_SYSTEM": "truecolor"}, "16.7 million colours", "ok"),
    ],
)
def test_the_colours_are_those_in_use(
    environment: dict[str, str], word: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = terminal(monkeypatch, **environment)["colours"]
    assert word in found.found and found.state == state


def test_a_dumb_small_or_old_terminal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch, TERM="dumb", COLUMNS="50", LINES="10", LANG="de_DE.ISO-8859-1")
    assert "--plain" in found["kind"].fix
    assert "50x10 is too small" in found["size"].found
    assert "promises no UTF-8" in found["letters"].found
    assert "connection" not in found and "clipboard" not in found


def test_a_line_over_ssh_and_a_screen_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch, TERM="screen", SSH_CONNECTION="1.2.3.4 5 6.7.8.9 22", STY="1.pts")
    assert found["connection"].state == "ok"
    assert found["clipboard"].state == "warn"


def test_what_tmux_does_with_the_clipboard_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    monkeypatch.setattr(doctor_terminal, "LIMIT", 60.0)
    socket = tmp_path / "tmux"
    tmux = ["tmux", "-f", "/dev/null", "-S", str(socket)]
    subprocess.run([*tmux, "new-session", "-d", "sleep 60"], check=True, env=os.environ | {"TERM": "xterm"})
    try:
        inside = {"TERM": "tmux-256color", "TMUX": f"{socket},1,0"}
        default = terminal(monkeypatch, **inside)["clipboard"]
        assert default.state == "warn" and "set-clipboard external" in default.found
        assert "tmux set -s set-clipboard on" in default.fix
        subprocess.run([*tmux, "set", "-s", "set-clipboard", "on"], check=True)
        assert terminal(monkeypatch, **inside)["clipboard"].state == "ok"
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    assert "unknown" in terminal(monkeypatch, **inside)["clipboard"].found


def test_a_tmux_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmux").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "tmux").chmod(0o755)
    monkeypatch.setattr(doctor_terminal, "LIMIT", 0.2)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert terminal(monkeypatch, TERM="tmux", TMUX="x", PATH=path)["clipboard"].state == "warn"
