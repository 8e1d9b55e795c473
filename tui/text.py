"""Small helpers for text on screens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.text import visible

if TYPE_CHECKING:
    from textual.content import Content
    from textual.widgets import Static

    from ollama_tune.core.data.values import Problem


def tilde(path: str | os.PathLike[str]) -> str:
    """A path for a screen: control characters visible, the home folder as `~`."""
    text, home = os.fspath(path), str(Path.home()).rstrip("/")
    inside = home and (text == home or text.startswith(home + "/"))
    return visible("~" + text[len(home) :] if inside else text)


def put_text(static: Static, content: Content | str, *, layout: bool = True) -> None:
    """Show another text; nothing is done where it is the same.

    The second layout is for a text that changes while a first one is under way: Textual 8 then keeps the
    height of the old text.
    """
    if static.content != content:
        static.update(content, layout=layout)
        if layout:
            static.call_after_refresh(static.refresh, repaint=False, layout=True)


def where_text(problem: Problem) -> str:
    """`line 3`, `lines 3, 9, 12, …`; empty for what concerns the whole file."""
    lines = list(dict.fromkeys(problem.lines))[:4]
    if not lines:
        return ""
    more = ", …" if problem.count > len(lines) and len(lines) > 1 else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(f'{line:,}' for line in lines)}{more}"
