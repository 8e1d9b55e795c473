"""A level as blocks: how much of something is taken, readable without colour."""

from __future__ import annotations

from textual.content import Content

FULL, EMPTY = "█", "░"


def level(share: float, width: int, style: str = "$primary") -> Content:
    """A bar of `width` cells filled to `share` (0 to 1); anything above nothing shows one cell."""
    share = min(max(share, 0.0), 1.0)
    filled = max(round(share * width), 1 if share > 0 else 0)
    return Content.assemble((FULL * filled, style), (EMPTY * (width - filled), "dim"))
