"""The wizard from its first frame to the proved export, recorded: the README's moving picture.

    make picture
    python -m tests.bench.tour --still assets/wizard.png assets/tour.gif ollama-tune

Presses Enter at every step, and asks one question at Try it; nothing is staged. The bundled model is trained
in a folder of its own. Needs DejaVu Sans Mono (or --font).
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tests.bench.picture import draw_screen
from tests.terminal import Terminal

COLOURS = 48
"""In the palette of the moving picture: a terminal has few, and the file stays small."""
TRAINING = 2.0
"""Seconds between two frames of the training."""
PATIENCE = 600.0


@dataclass
class Recording:
    """Frames with the milliseconds that each is shown."""

    terminal: Terminal
    font: str
    frames: list[Image.Image] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def take(self, milliseconds: int) -> None:
        """Keep what stands on the screen now."""
        self.terminal.pump(0.8)
        self.frames.append(draw_screen(self.terminal.screen, self.font))
        self.shown.append(milliseconds)

    def save(self, path: Path) -> None:
        """All frames as one file, with one palette that is made from all of them."""
        every = Image.new("RGB", (self.frames[0].width, sum(frame.height for frame in self.frames)))
        top = 0
        for frame in self.frames:
            every.paste(frame, (0, top))
            top += frame.height
        palette = every.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
        first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames)
        first.save(path, save_all=True, append_images=rest, duration=self.shown, loop=0, optimize=True)


def setup(recording: Recording) -> None:
    """Machine, model, data, settings, review: Enter."""
    terminal = recording.terminal
    for number, sign in enumerate(("CPU", "can be tuned", "500 rows", "fits", "ollama-tune run"), 1):
        terminal.wait(f"Step {number} of", 60)
        terminal.wait(sign, 60)
        recording.take(2600)
        terminal.press("enter")


def training(recording: Recording, still: Path | None) -> None:
    """The run as it goes; the picture of its middle is kept."""
    terminal, began, middle = recording.terminal, time.monotonic(), False
    terminal.wait("Step 6 of", 60)
    while "✓ Finished" not in terminal.text and time.monotonic() - began < PATIENCE:
        recording.take(700)
        share = re.search(r" (\d+)%  step", terminal.text)
        if still is not None and not middle and share is not None and int(share[1]) >= 40:
            recording.frames[-1].save(still)
            middle = True
        terminal.pump(TRAINING)
    recording.take(2600)
    terminal.press("enter")


def answers(recording: Recording) -> None:
    """A held-out question to both models."""
    terminal = recording.terminal
    terminal.wait("Step 7 of", 60)
    terminal.pump(12.0)
    terminal.press("f5")
    recording.take(1500)
    terminal.press("enter")
    terminal.pump(6.0)
    recording.take(3500)
    terminal.press("enter")


def export(recording: Recording) -> None:
    """The file, its proof, and what to type now."""
    terminal = recording.terminal
    terminal.wait("Step 8 of", 60)
    terminal.pump(2.0)
    recording.take(2600)
    terminal.press("enter")
    terminal.wait("Proved", PATIENCE)
    recording.take(4000)
    terminal.press("enter")
    terminal.wait("Step 9 of", 60)
    recording.take(5000)
    terminal.press("q")


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--still", type=Path, help="a picture of the training")
    parser.add_argument("--size", default="110x32", help="columns x lines")
    parser.add_argument("--font", default="DejaVuSansMono.ttf")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    columns, lines = (int(part) for part in given.size.split("x"))
    command = [part for part in given.command if part != "--"]
    with tempfile.TemporaryDirectory(prefix="tune-tour-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "COLORTERM": "truecolor", "OLLAMA_TUNE_HOME": home}
        with Terminal(command, environment, columns=columns, lines=lines) as terminal:
            recording = Recording(terminal, given.font)
            setup(recording)
            training(recording, given.still)
            answers(recording)
            export(recording)
            terminal.finish(10)
        recording.save(given.output)
    print(f"{given.output}: {len(recording.frames)} frames, {given.output.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
