"""What was compared after an export, with figures and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ollama_tune.core.errors import TuneError

Verdict = Literal["pass", "warn", "fail", "skipped"]
Progress = Callable[[int, int], None]
"""Gets what is done and what there is in all, in bytes or in parts."""
Stopped = Callable[[], bool]
"""True once the person asked to stop."""


@dataclass(frozen=True)
class Check:
    """One comparison: its short name, verdict, the measured figure, and what it means.

    `text` also says what to do unless the verdict is `pass`; `data` holds the figures as numbers, with the
    limits they were judged by.
    """

    name: str
    verdict: Verdict
    figure: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """All checks of one exported file; the verdict is the worst of them (`skipped` counts for nothing).

    `files` maps a word (`gguf`, `modelfile`, `verification`) to a path in the run folder, `commands` are
    what to type next. `about` says what was proved and by what: the base, the adapter's digest, what was
    asked for, and the versions of the libraries.
    """

    verdict: Verdict
    checks: tuple[Check, ...]
    file: str
    sha256: str
    bytes: int
    type: str
    ollama_name: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As stored in `export/verification.json` and in the `verification` event."""
        checks = [asdict(check) for check in self.checks]
        return asdict(self) | {"checks": checks, "commands": list(self.commands)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verification:
        """The value that `to_dict` stored, by this version or another: what is unknown here is left out."""
        checks = tuple(Check(**_known(Check, check)) for check in data["checks"])
        commands = tuple(data.get("commands", ()))
        return cls(**_known(cls, data) | {"checks": checks, "commands": commands})


def _known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    return {name.name: data[name.name] for name in fields(kind) if name.name in data}


def worst(checks: tuple[Check, ...]) -> Verdict:
    """The verdict of a set of checks: fail before warn before pass."""
    found = {check.verdict for check in checks}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


class ExportStopped(TuneError):
    """The person asked to stop while an export was going; nothing was left under a final name."""

    def __init__(self) -> None:
        super().__init__("The export was stopped.", "Export again when you like.")
