"""Small helpers for text on screens."""

from __future__ import annotations

import os
from pathlib import Path

from ollama_tune.core.text import visible


def tilde(path: str | os.PathLike[str]) -> str:
    """A path for a screen: control characters visible, the home folder as `~`."""
    text, home = os.fspath(path), str(Path.home()).rstrip("/")
    inside = home and (text == home or text.startswith(home + "/"))
    return visible("~" + text[len(home) :] if inside else text)
