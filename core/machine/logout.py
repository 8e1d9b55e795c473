"""Whether processes outlive a logout: systemd's login manager may end all of them (`KillUserProcesses=yes`).

Read over D-Bus with systemd's own small programs; where they are missing or systemd does not run, nobody
ends anything at a logout.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

BOOTED = Path("/run/systemd/system")
"""There when systemd runs this box (sd_booted(3))."""
LIMIT = 3.0
"""Seconds for each of the programs: a bus that hangs must not hang us."""
SCOPE = ("systemd-run", "--user", "--scope", "--quiet", "--collect", "--")
"""Runs a command in a unit of the user's own manager; the command keeps the process id (systemd-run(1))."""
_MANAGER = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_PROPERTIES = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")


@dataclass(frozen=True)
class Logout:
    """`kills`: this user's processes end with the session. `scope`: units of the user's manager can be made.
    `lingers`: that manager goes on after the last logout."""

    kills: bool = False
    scope: bool = False
    lingers: bool = False


def read_logout() -> Logout:
    """What a logout does here, asked anew; quick where nothing is ended."""
    if not kills_processes():
        return Logout()
    scope = _ask(*SCOPE, "true") is not None
    return Logout(True, scope, lingers())


def kills_processes() -> bool:
    """Whether logind ends this user's processes; its lists of users count before the general setting.

    A list of users to end (`KillOnlyUsers`) decides alone; root is left alone where no exceptions are named.
    """
    if not BOOTED.is_dir():
        return False
    answer = _ask("busctl", "get-property", *_MANAGER, *_PROPERTIES)
    lines = (answer or "").splitlines()
    if len(lines) != len(_PROPERTIES):
        return False
    user, (kill, only, spared) = _user(), (_value(line) for line in lines)
    if user in spared or (not spared and user == "root"):
        return False
    return user in only if only else kill == ["true"]


def lingers() -> bool:
    """Whether this user's manager, and so a scope in it, outlives the last logout."""
    return (_ask("loginctl", "show-user", _user(), "--property=Linger") or "").strip() == "Linger=yes"


def enable_linger() -> bool:
    """Ask that the user's manager goes on after a logout; never asks for a password. True when it does."""
    return lingers() or (_ask("loginctl", "--no-ask-password", "enable-linger") is not None and lingers())


@functools.cache
def known_logout() -> Logout:
    """As `read_logout`, asked once in this process: what is started from it is started in one way."""
    return read_logout()


def scope_prefix() -> tuple[str, ...]:
    """What to put before a command that shall outlive a logout; empty where not needed or not to be had."""
    known = known_logout()
    return SCOPE if known.kills and known.scope else ()


def logout_remark() -> str:
    """A sentence for the one who is about to start a run that a logout would end; empty where it goes on."""
    return _remark(read_logout())


def _remark(known: Logout) -> str:
    if not known.kills or (known.scope and known.lingers):
        return ""
    if known.scope:
        return "Logging out may end this run (KillUserProcesses=yes): `loginctl enable-linger` prevents that."
    return (
        "Logging out ends this run (KillUserProcesses=yes, and `systemd-run --user` does not work here): "
        "stay logged in, or ask an administrator."
    )


def outlive_logout() -> str:
    """Let what is started from now on go on after a logout, as far as this box allows; the remark where not.

    Where scopes work but the user's manager would end with the last session, that is changed (lingering).
    """
    known = known_logout()
    if known.kills and known.scope:
        known = replace(known, lingers=enable_linger())
    return _remark(known)


def _user() -> str:
    with contextlib.suppress(KeyError, OSError, ImportError):
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    with contextlib.suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return str(os.getuid())


def _value(line: str) -> list[str]:
    """The words of a property as busctl prints it: `b true`, `as 2 "root" "backup"`, `as 0`."""
    words = shlex.split(line)
    return words[2:] if words[:1] == ["as"] else words[1:]


def _ask(*command: str) -> str | None:
    """What a program prints; None where it is missing, fails, or does not end in time."""
    if shutil.which(command[0]) is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=True
        )
        return done.stdout
    return None
