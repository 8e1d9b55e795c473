"""What an Ollama server can do, by its version: one table row a generation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ollama_tune.core.errors import TuneError

DEVELOPMENT = (0, 0, 0)
"""What a server built from source calls itself; it counts as the newest."""


@dataclass(frozen=True)
class Generation:
    """The versions from `since` up to the next row.

    `native_template`: the Jinja template in a GGUF file is used, so that none has to be sent. `copies`: how
    often the file lies on the server's disk while a model is made of it.
    """

    since: tuple[int, int, int]
    usable: bool
    native_template: bool
    copies: int
    text: str


TOO_OLD = Generation((0, 0, 0), False, False, 1, "makes no models of uploaded files")
GO_TEMPLATES = Generation((0, 5, 5), True, False, 1, "needs a template of its own kind")
CONVERTING = Generation((0, 30, 0), True, True, 2, "uses the file's template and rewrites the file")
CURRENT = Generation((0, 34, 1), True, True, 1, "uses the file's template and keeps the file as it is")
GENERATIONS = (TOO_OLD, GO_TEMPLATES, CONVERTING, CURRENT)


def generation(version: str) -> Generation:
    """The generation of a version such as `0.34.4` or `0.30.0-rc2`; unreadable ones count as the newest."""
    number = number_of(version)
    if number == DEVELOPMENT:
        return CURRENT
    return max((row for row in GENERATIONS if row.since <= number), key=lambda row: row.since)


def number_of(version: str) -> tuple[int, int, int]:
    """The three numbers of a version; those of a development version where there are none."""
    found = re.match(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?!\d)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else DEVELOPMENT


def require_usable(version: str) -> Generation:
    """The generation of a server that can take an export at all; `TuneError` names one that cannot."""
    found = generation(version)
    if not found.usable:
        raise TuneError(
            f"Ollama {version} is too old: it {found.text}.",
            "Update Ollama to 0.30 or newer and export again; the GGUF file is kept.",
        )
    return found
