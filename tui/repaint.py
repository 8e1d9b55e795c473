"""Painting what changed and nothing else: what a key costs does not grow with what a screen shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip


class SparingCompositor(Compositor):
    """Asks a widget only for lines of which a cell is to be painted, and only where nothing lies over it.

    Textual 8.2 asks all widgets whose container meets the box around everything that changed, which are
    nearly all of them, for all of their lines. What is painted is the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed: Sequence[Region] = ()

    def render_partial_update(self) -> ChopsUpdate | None:
        """Paint the regions that changed."""
        self._changed = [region for region in self._dirty_regions if region]
        try:
            return super().render_partial_update()
        finally:
            self._changed = ()

    def _get_renders(self, crop: Region | None = None) -> Iterable[tuple[Region, Region, list[Strip]]]:
        """Of each widget that is to be seen, from the front to the back: its place, which part, the lines."""
        left: Sequence[Region] = self._changed
        if not left:
            yield from super()._get_renders(crop)
            return
        for widget, (region, clip) in self.visible_widgets.items():
            seen = region.intersection(clip)
            here = [part for part in left if seen.overlaps(part)]
            if not here:
                continue
            top, bottom = min(part.y for part in here), max(part.bottom for part in here)
            rows = seen.intersection(Region(seen.x, top, seen.width, bottom - top))
            yield region, rows, widget.render_lines(rows.translate(-region.offset))
            left = [piece for part in left for piece in outside(part, seen)]
            if not left:
                return


def outside(part: Region, cover: Region) -> Iterator[Region]:
    """What of a region another one does not cover, in at most four pieces."""
    x, y, width, _ = part
    top, bottom = max(y, cover.y), min(part.bottom, cover.bottom)
    left, right = max(x, cover.x), min(part.right, cover.right)
    if top >= bottom or left >= right:
        yield part
        return
    pieces = (
        Region(x, y, width, top - y),
        Region(x, bottom, width, part.bottom - bottom),
        Region(x, top, left - x, bottom - top),
        Region(right, top, part.right - right, bottom - top),
    )
    yield from filter(None, pieces)
