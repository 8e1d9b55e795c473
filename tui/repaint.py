"""Painting what changed and nothing else: what a key costs does not grow with what a screen shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from textual._compositor import ChopsUpdate, Compositor, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

Lines = list[dict[int, Strip]]
"""What is painted in each line of the terminal, by the column where it begins, in order."""


class SparingCompositor(Compositor):
    """Asks a widget only for lines of which a cell is to be painted, and cuts them only where another widget
    lies over it.

    Textual 8.2 asks nearly all widgets for all of their lines, and cuts each at every edge of every widget
    that is on the same line. What is painted is the same.
    """

    def render_full_update(self, simplify: bool = False) -> LayoutUpdate:
        """Paint the whole screen."""
        if simplify:
            return super().render_full_update(simplify)
        self._dirty_regions.clear()
        screen = self.size.region
        return LayoutUpdate([line.values() for line in self._painted([screen])], screen)

    def render_partial_update(self) -> ChopsUpdate | None:
        """Paint the regions that changed."""
        screen = self.size.region
        changed = [part for region in self._dirty_regions if (part := region.intersection(screen))]
        self._dirty_regions.clear()
        if not changed:
            return None
        lines = self._painted(apart(changed))
        ends = [[x + strip.cell_length for x, strip in line.items()] for line in lines]
        return ChopsUpdate(lines, list(self._regions_to_spans(changed)), ends)

    def _painted(self, left: list[Region]) -> Lines:
        """The cells of these regions, of which none overlap, from the widgets in the front to the back."""
        lines: Lines = [{} for _ in range(self.size.height)]
        for widget, (region, clip) in self.visible_widgets.items():
            seen = region.intersection(clip)
            here = [part.intersection(seen) for part in left if seen.overlaps(part)]
            if not here:
                continue
            top, bottom = min(part.y for part in here), max(part.bottom for part in here)
            rows = Region(seen.x, top, seen.width, bottom - top)
            strips = widget.render_lines(rows.translate(-region.offset))
            for part in here:
                for y in part.line_range:
                    lines[y][part.x] = strips[y - top].crop(part.x - seen.x, part.right - seen.x)
            left = [piece for part in left for piece in outside(part, seen)]
            if not left:
                break
        return [dict(sorted(line.items())) for line in lines]


def apart(regions: Iterable[Region]) -> list[Region]:
    """The same cells as regions that have none in common."""
    found: list[Region] = []
    for region in regions:
        pieces = [region]
        for other in found:
            pieces = [piece for part in pieces for piece in outside(part, other)]
        found += pieces
    return found


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
