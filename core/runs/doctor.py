"""Checks about runs: those that are going, and whether a logout ends them."""

from __future__ import annotations

from collections.abc import Iterator

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.doctor import Check, ok, warn
from ollama_tune.core.machine.logout import read_logout
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.runs.lock import is_held


def going() -> Iterator[Check]:
    """Runs that hold their lock now: they share this box' memory with a new one."""
    try:
        folders = sorted(path.parent for path in runs_dir().glob("*/lock"))
    except TuneError:
        folders = []
    alive = [folder.name for folder in folders if is_held(folder / "lock")]
    for name in alive:
        yield warn(
            f"{name} is going", "A second run shares its memory and time; `ollama-tune runs` lists them."
        )
    if not alive:
        yield ok("none is going")


def logout() -> Iterator[Check]:
    """Whether the login manager ends a run when its user logs out."""
    known = read_logout()
    if not known.kills:
        yield ok("does not end a run")
    elif not known.scope:
        yield warn(
            "ends a run: KillUserProcesses=yes, and `systemd-run --user` does not work",
            "Stay logged in during a run, or ask an administrator to set KillUserProcesses=no.",
        )
    elif not known.lingers:
        yield warn(
            "may end a run: KillUserProcesses=yes, and lingering is off",
            "Type `loginctl enable-linger` once; the start of a run tries it too.",
        )
    else:
        yield ok("does not end a run: it gets a unit of its own, and lingering is on")
