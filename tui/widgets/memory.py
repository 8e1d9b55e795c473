"""The memory panel of a run: predicted, probed, now and, part by part, the peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.memory_words import grouped
from ollama_tune.tui.run_values import Memory, ProbeResult
from ollama_tune.tui.widgets.bar import level

LABEL, FIGURE, WORDS, FEW_WORDS = 10, 10, 46, 28
GAP, SHARE = 3, 4
"""Cells between two devices in one line, and for a share in percent."""
WIDE = 90
LOOKS = {
    "model": ("█", "$primary"),
    "training": ("▓", "$accent"),
    "rows": ("▒", "$success"),
    "libraries": ("░", "$foreground"),
}
OTHER = ("▤", "$accent")
OTHERS = "others"
"""What holds memory on the same device besides the run: other programs, and on a GPU the driver's own."""
EMPTY = "·"


class MemoryPanel(Widget):
    """Bars with words for predicted, now and the peak, which is shown by part; and what the probe found.

    Where there is little room the peak and its parts stay. Of several GPUs each has a line.
    """

    DEFAULT_CSS = """
    MemoryPanel { height: 4; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._devices: tuple[Memory, ...] = ()
        self._predicted: Mapping[str, int] | None = None
        self._probe: ProbeResult | None = None

    def show(
        self,
        memory: Memory | Sequence[Memory] | None,
        predicted: Mapping[str, int] | None = None,
        probe: ProbeResult | None = None,
    ) -> None:
        """Show what was measured, of each device, against the plan's parts (name to bytes) where known."""
        found = () if memory is None else (memory,) if isinstance(memory, Memory) else tuple(memory)
        if (found, predicted, probe) != (self._devices, self._predicted, self._probe):
            self._devices, self._predicted, self._probe = found, predicted, probe
            self.refresh()

    def lines(self, width: int) -> list[Content]:
        """All lines for a width in cells."""
        return [line for _, line in self._ranked(width)]

    def render(self) -> RenderResult:
        """The most important of the lines, in their order."""
        height = max(self.size.height, 1)
        ranked = self._ranked(self.size.width, height)
        if len(ranked) > height < sum(bool(memory.total) for memory in self._devices):
            return Content("\n").join(compact(self._devices, self.size.width, height))
        least = sorted(rank for rank, _ in ranked)[:height][-1]
        return Content("\n").join([line for rank, line in ranked if rank <= least])

    def _ranked(self, width: int, height: int = 99) -> list[tuple[int, Content]]:
        """Each line after its rank, 0 for the most important."""
        predicted = sum((self._predicted or {}).values())
        measured = [memory for memory in self._devices if memory.total]
        if not measured:
            return [(0, Content.styled("Memory: not measured yet.", "dim"))]
        memory = next((one for one in measured if one.parts), measured[0])
        most = max(*(one.peak for one in measured), predicted, memory.used, 1)
        scale = memory.total if 4 * most >= memory.total else most
        rows = [(4, self._row("predicted", predicted, scale, width, ""))] if predicted else []
        if len(measured) > 1:
            rows += [(0, self._device(one, scale, width)) for one in measured]
        else:
            rows.append((3, self._now(memory, scale, width)))
            rows.append((0, self._peak(memory, scale, width, predicted)))
        rows += [(5, line) for line in self._probed()]
        legends = self._legend(memory, width, height - len(measured), scale == memory.total)
        return [*rows, *((1 + number, line) for number, line in enumerate(legends))]

    def _now(self, memory: Memory, scale: int, width: int) -> Content:
        """What the run holds now, and what is left beside others."""
        free = f"{human_bytes(memory.free)} of {human_bytes(memory.total)} free"
        others = f", others {human_bytes(memory.others)}" if width >= WIDE else ""
        return self._row("now", memory.used, scale, width, free + others)

    def _device(self, memory: Memory, scale: int, width: int) -> Content:
        """One of several: its peak by part, and what it holds now."""
        words = f"now {human_bytes(memory.used)} of {human_bytes(memory.total)}"
        words = f"peak, {words}" if width >= WIDE else words
        label = one_line(memory.device, LABEL - 1)
        return self._line(label, self._bar(memory, scale, self._room(width)), memory.peak, words)

    def _row(self, label: str, count: int, scale: int, width: int, words: str) -> Content:
        return self._line(label, level(count / scale, self._room(width)), count, words)

    def _peak(self, memory: Memory, scale: int, width: int, predicted: int) -> Content:
        bar = self._bar(memory, scale, self._room(width))
        return self._line("peak", bar, memory.peak, self._verdict(memory.peak, predicted))

    @staticmethod
    def _bar(memory: Memory, scale: int, room: int) -> Content:
        """The peak by part; where the whole device is to scale, with what others hold of it."""
        if not memory.parts:
            return level(memory.peak / scale, room)
        held = {OTHERS: memory.others} if scale == memory.total else {}
        return stacked(grouped(memory.parts) | held, scale, room)

    @staticmethod
    def _room(width: int) -> int:
        return max(width - LABEL - FIGURE - (WORDS if width >= WIDE else FEW_WORDS), 8)

    @staticmethod
    def _line(label: str, bar: Content, count: int, words: str) -> Content:
        return Content.assemble(
            (f"{label:<{LABEL}}", "dim"), bar, (f"{human_bytes(count):>{FIGURE}}", "bold"), f"  {words}"
        )

    def _verdict(self, peak: int, predicted: int) -> str:
        if not predicted:
            return ""
        share = peak / predicted
        return f"{share:.0%} of predicted" if share < 1.005 else f"! {share - 1:.0%} over predicted"

    def _probed(self) -> list[Content]:
        """`probe     5.9 GiB measured, 6.0 GiB predicted (-2 %), limit 21.3 GiB`."""
        probe = self._probe
        if probe is None or not probe.predicted:
            return []
        share = f"{100 * (probe.measured / probe.predicted - 1):+.0f} %"
        limit = f", limit {human_bytes(probe.limit)}" if probe.limit > 0 else ""
        measured, predicted = human_bytes(probe.measured), human_bytes(probe.predicted)
        words = f"{measured} measured, {predicted} predicted ({share}){limit}"
        return [Content.assemble((f"{'probe':<{LABEL}}", "dim"), words)]

    def _legend(self, memory: Memory, width: int, most: int, whole: bool) -> list[Content]:
        """The blocks of the peak with their parts; before it is known by part, those of the prediction."""
        if memory.parts:
            held = {OTHERS: memory.others} if whole and memory.others else {}
            return legend(grouped(memory.parts) | held, width, most)
        foreseen = grouped(self._predicted or {})
        if not foreseen:
            return []
        lines = legend(foreseen, width - LABEL, most)
        return [Content.assemble((f"{'predicted':<{LABEL}}", "dim"), lines[0]), *lines[1:]]


def compact(devices: Sequence[Memory], width: int, height: int) -> list[Content]:
    """The peaks of many devices in so few lines: some in a line each, or, where even so there is no room, in
    words of all of them."""
    columns = -(-len(devices) // height)
    room = (width - (columns - 1) * GAP) // columns
    names = max(len(memory.device) for memory in devices)
    if room - names < SHARE + 5:
        return [_of_all(devices)]
    cells = [_cell(memory, names, room) for memory in devices]
    rows = (cells[start : start + columns] for start in range(0, len(cells), columns))
    return [Content(" " * GAP).join(row) for row in rows]


def _cell(memory: Memory, names: int, room: int) -> Content:
    """`GPU 0 ████····  9.9 of 24.0 GiB`, or the share alone where there is less room."""
    share = memory.peak / max(memory.total, 1)
    words = f"{human_bytes(memory.peak)} of {human_bytes(memory.total)}"
    if room - names < len(words) + SHARE + 5:
        words = f"{share:.0%}"
    bar = level(share, room - names - 2 - max(len(words), SHARE))
    name = f"{one_line(memory.device, names):<{names}} "
    return Content.assemble((name, "dim"), bar, (f" {words:>{SHARE}}", "bold"))


def _of_all(devices: Sequence[Memory]) -> Content:
    """`16 GPUs: at the peak 9.9 to 10.4 GiB; the fullest is GPU 3 with 43%`."""
    fullest = max(devices, key=lambda memory: memory.peak / max(memory.total, 1))
    peaks = [memory.peak for memory in devices]
    share = f"{fullest.peak / max(fullest.total, 1):.0%}"
    words = f" at the peak {human_bytes(min(peaks))} to {human_bytes(max(peaks))}; the fullest is "
    return Content.assemble(
        (f"{len(devices)} processes:", "dim"), words, f"{one_line(fullest.device, 12)}, {share}"
    )


def stacked(parts: Mapping[str, int], scale: int, width: int) -> Content:
    """The parts side by side in a bar of `width` cells for `scale` bytes."""
    blocks: list[Content | tuple[str, str]] = []
    taken = end = 0
    for name, count in parts.items():
        look, style = LOOKS.get(name, OTHER)
        taken += count
        upto = min(round(taken / scale * width), width)
        blocks.append((look * (upto - end), style))
        end = upto
    return Content.assemble(*blocks, (EMPTY * (width - end), "dim"))


def legend(parts: Mapping[str, int], width: int, most: int = 99) -> list[Content]:
    """Which block is which part, the largest first; where `most` lines are too few, in one with its unit said
    once, and without the smallest where even that is too long."""
    lines: list[Content] = []
    for entry in entries(parts):
        if lines and lines[-1].cell_length + 2 + entry.cell_length <= width:
            lines[-1] = Content.assemble(lines[-1], "  ", entry)
        else:
            lines.append(entry)
    return lines if len(lines) <= most else [_brief(parts, width)]


def _brief(parts: Mapping[str, int], width: int) -> Content:
    """`GiB █ model 12.4 ▒ rows 3.1`, with as many parts as there is room for."""
    name, unit = ("GiB", 1 << 30) if max(parts.values()) >= 1 << 30 else ("MiB", 1 << 20)
    line = Content.styled(name, "dim")
    for entry in entries(parts, unit):
        if line.cell_length + 1 + entry.cell_length > width:
            break
        line = Content.assemble(line, " ", entry)
    return line


def entries(parts: Mapping[str, int], unit: int = 0) -> Iterator[Content]:
    """A block with its part and the bytes of it, or how many of a unit these are, the largest first."""
    for name in sorted((name for name in parts if parts[name]), key=lambda name: -parts[name]):
        figure = f"{parts[name] / unit:.1f}" if unit else human_bytes(parts[name])
        yield Content.assemble(LOOKS.get(name, OTHER), f" {one_line(name, 16)} {figure}")
