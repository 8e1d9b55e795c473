"""Stand-ins for systemd's `busctl`, `loginctl` and `systemd-run`: small programs that take just the words
which those of systemd 252 to 257 take for the same question, and print what those print."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_PROGRAM = """#!{python} -S
import sys
sys.path.insert(0, {root!r})
from tests.logind_double import play
play({name!r}, {folder!r})
"""
_GET = "get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
_SCOPE = ["--user", "--scope", "--quiet", "--collect", "--"]


@dataclass
class Answers:
    """What the manager is set to. `bus` is False where the user has no bus (`su`, a container), `allowed` is
    False where polkit asks for a password, `hangs` makes busctl sleep."""

    kill: bool = True
    only: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    linger: bool = False
    bus: bool = True
    allowed: bool = True
    hangs: bool = False


class Logind:
    """The doubles in a folder that comes first on PATH."""

    def __init__(self, folder: Path, answers: Answers, patch: pytest.MonkeyPatch) -> None:
        from ollama_tune.core.machine import logout

        self._folder = folder
        folder.mkdir()
        for name in ("busctl", "loginctl", "systemd-run"):
            program = folder / name
            root = str(Path(__file__).parents[1])
            program.write_text(
                _PROGRAM.format(python=sys.executable, root=root, name=name, folder=str(folder))
            )
            program.chmod(0o755)
        self.set(answers)
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(logout, "BOOTED", folder)
        patch.setattr(logout, "_user", lambda: "ada")
        patch.setattr(logout, "LIMIT", 60.0)  # the doubles start a Python each, on a box that may be busy
        logout.known_logout.cache_clear()

    def set(self, answers: Answers) -> None:
        """Change what the manager is set to."""
        (self._folder / "answers.json").write_text(json.dumps(asdict(answers)))

    @property
    def answers(self) -> Answers:
        """What it is set to now."""
        return Answers(**json.loads((self._folder / "answers.json").read_text()))

    @property
    def calls(self) -> list[str]:
        """Every call so far, as typed."""
        log = self._folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


def play(name: str, folder: str) -> None:
    """Be one of the programs."""
    words, place = sys.argv[1:], Path(folder)
    with (place / "calls").open("a") as log:
        log.write(" ".join([name, *words]) + "\n")
    known = json.loads((place / "answers.json").read_text())
    {"busctl": _busctl, "loginctl": _loginctl, "systemd-run": _run}[name](words, known, place)


def _busctl(words: list[str], known: dict[str, object], _place: Path) -> None:
    if known["hangs"]:
        import time

        time.sleep(60)
    assert " ".join(words[:4]) == _GET, words
    for name in words[4:]:
        key = {"KillUserProcesses": "kill", "KillOnlyUsers": "only", "KillExcludeUsers": "spared"}[name]
        value = known[key]
        if isinstance(value, bool):
            print(f"b {str(value).lower()}")
        else:
            assert isinstance(value, list)
            print(" ".join([f"as {len(value)}", *(f'"{user}"' for user in value)]))


def _loginctl(words: list[str], known: dict[str, object], place: Path) -> None:
    if words == ["show-user", "ada", "--property=Linger"]:
        print(f"Linger={'yes' if known['linger'] else 'no'}")
    elif words == ["--no-ask-password", "enable-linger"]:
        if not known["allowed"]:
            sys.exit("Could not enable linger: Interactive authentication required.")
        (place / "answers.json").write_text(json.dumps({**known, "linger": True}))
    else:
        sys.exit(f"Unknown command verb {words[0]}.")


def _run(words: list[str], known: dict[str, object], _place: Path) -> None:
    """A scope runs its command in place of itself."""
    if not known["bus"]:
        sys.exit("Failed to connect to bus: No medium found")
    assert words[: len(_SCOPE)] == _SCOPE, words
    command = words[len(_SCOPE) :]
    os.environ["IN_SCOPE"] = "yes"
    os.execvp(command[0], command)
