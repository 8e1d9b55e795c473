"""What the box does now, in a line or, where there is room, one a GPU besides."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from ollama_tune.core.machine.live import BoxNow
from ollama_tune.core.machine.values import Gpu
from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.widgets.bar import level

BAR = 10
TALL = 34
"""A window of so many lines has room for a line a GPU."""
WIDE = 90
MOST = 4
LITTLE_DISK = 2 << 30
GAP = "   "


class LivePanel(Widget):
    """GPUs, processor, memory and disk of the machine that trains; empty while nothing is known."""

    DEFAULT_CSS = "LivePanel { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._box: BoxNow | None = None

    def show(self, box: BoxNow | None) -> None:
        """Show another look at the box."""
        if box != self._box:
            more = self._count(self._box) != self._count(box)
            self._box = box
            self.display = box is not None
            self.refresh(layout=more)

    @staticmethod
    def _count(box: BoxNow | None) -> int:
        return 0 if box is None else 1 + min(len(box.gpus), MOST)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One line, or one more for each GPU where the window is tall."""
        return self._count(self._box) if viewport.height >= TALL else min(self._count(self._box), 1)

    def render(self) -> RenderResult:
        """The lines that fit."""
        if self._box is None:
            return ""
        lines = live_lines(self._box, self.size.width)
        short = len(lines) > self.size.height or self.size.width < WIDE
        return Content("\n").join([live_line(self._box)] if short else lines)


def live_line(box: BoxNow) -> Content:
    """Everything in one line: `GPU 97 %  71 °C  285 W   CPU 34 %   RAM 52.1 GiB free   disk …`."""
    parts = [_gpus(box.gpus)] if box.gpus else []
    parts.append(_pair("CPU", _percent(box.cpu)))
    parts.append(_pair("RAM", f"{human_bytes(box.ram_free)} free"))
    return Content(GAP).join([*parts, _disk(box)])


def live_lines(box: BoxNow, width: int) -> list[Content]:
    """A line a GPU, and one for the rest with what the run itself takes, or two where it is long."""
    lines = [_gpu(gpu, len(box.gpus) > 1) for gpu in box.gpus[:MOST]]
    run = "" if box.run is None else f", the run {box.run:.1f} of {box.cores} cores"
    ram = _pair("RAM", f"{_of(box.ram_free, box.ram_total)} free")
    busy = level((box.cpu or 0.0) / 100, BAR)
    cpu = Content.assemble(_pair("CPU", f"{_percent(box.cpu):>5} "), busy, run)
    whole, rest = (Content(GAP).join(parts) for parts in ((cpu, ram, _disk(box)), (ram, _disk(box))))
    return [*lines, whole] if whole.cell_length <= width else [*lines, cpu, rest]


def _gpu(gpu: Gpu, many: bool) -> Content:
    label = f"GPU {gpu.index}" if many else "GPU"
    busy = level((gpu.utilization or 0) / 100, BAR)
    limit = f" of {gpu.power_limit:.0f} W" if gpu.power_limit else " W"
    told = [
        "" if gpu.temperature is None else f"{gpu.temperature} °C",
        "" if gpu.power is None else f"{gpu.power:.0f}{limit}",
        f"{_of(gpu.free, gpu.total)} free" if gpu.total else "",
    ]
    words = GAP.join([*filter(None, told), one_line(gpu.name, 40)])
    return Content.assemble(_pair(label, f"{_percent(gpu.utilization):>5} "), busy, GAP, words)


def _gpus(gpus: tuple[Gpu, ...]) -> Content:
    """All of them in few words: how busy each is, the hottest, and what they draw together."""
    degrees = [gpu.temperature for gpu in gpus if gpu.temperature is not None]
    watts = [gpu.power for gpu in gpus if gpu.power is not None]
    busy = " ".join("–" if gpu.utilization is None else str(gpu.utilization) for gpu in gpus[:MOST])
    told = [f"{busy} %", f"{max(degrees)} °C" if degrees else "", f"{sum(watts):.0f} W" if watts else ""]
    return _pair("GPU", "  ".join(filter(None, told)))


def _disk(box: BoxNow) -> Content:
    if box.disk_free is None:
        return _pair("disk", "–")
    words = f"{human_bytes(box.disk_free)} free"
    if box.disk_free < LITTLE_DISK:
        return Content.assemble(("disk ", "dim"), (f"! {words}", "bold $text-warning"))
    return _pair("disk", words)


def _of(free: int, total: int) -> str:
    """`21.8 of 23.5 GiB`; the unit of both where they differ."""
    part, whole = human_bytes(free), human_bytes(total)
    same = part.split()[1] == whole.split()[1]
    return f"{part.split()[0] if same else part} of {whole}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0f} %"


def _pair(name: str, value: str) -> Content:
    return Content.assemble((f"{name} ", "dim"), value)
