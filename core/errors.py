"""The errors a person sees: what happened, and what to do about it."""

from __future__ import annotations


class TuneError(Exception):
    """A problem told to the user in two sentences, never as a traceback.

    Args:
        what: what happened and what it means, one sentence ending in a full stop.
        fix: what to do now, one sentence ending in a full stop.
        details: technical text for the log or the details file; never shown by default.
    """

    exit_code = 1
    code = "failed"
    """One short word for programs; it never changes. Every kind of error has its own."""

    def __init__(self, what: str, fix: str, *, details: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix
        self.details = details

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"


class UsageError(TuneError):
    """The command or a value in `run.yaml` was wrong; nothing was started (exit status 2)."""

    exit_code = 2
    code = "usage"


class BusyError(TuneError):
    """Something else holds what this needs, such as a run that is already going (exit status 75)."""

    exit_code = 75
    code = "busy"
