"""Text for a terminal: untrusted text made harmless, and figures with units."""

from __future__ import annotations

import unicodedata

_SYMBOLS = {code: chr(0x2400 + code) for code in range(32)} | {127: "␡"}


def _symbol(character: str) -> str:
    if ord(character) in _SYMBOLS:
        return _SYMBOLS[ord(character)]
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"<U+{ord(character):04X}>"
    return character


def visible(text: str, *, keep_newlines: bool = False) -> str:
    """The text with every control, format and surrogate character as a visible symbol.

    Text from outside (data rows, model names, logs, model output) goes through this before it
    reaches a screen, so that it can neither move the cursor nor reverse the reading direction.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n" if keep_newlines else ""
    return "".join(c if c in kept or c.isprintable() else _symbol(c) for c in text)


def one_line(text: str, width: int) -> str:
    """The text on one line of at most `width` characters, cut with an ellipsis."""
    line = " ".join(visible(text[: 4 * width + 64], keep_newlines=True).split())
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def human_bytes(count: float) -> str:
    """A size in binary units: `812 B`, `5.8 MiB`, `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


DAYS = 2
"""Days from which hours are counted in days."""


def human_seconds(seconds: float) -> str:
    """A duration in words that fit a cell: `8 s`, `3 min 20 s`, `2 h 05 min`, `7 days 2 h`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < DAYS * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def human_estimate(seconds: float) -> str:
    """A duration that is only foreseen, without seconds that nobody can know: `44 min`, else as above."""
    minutes = round(seconds / 60)
    return (
        f"{minutes} min" if 10 <= minutes < 60 else human_seconds(seconds if minutes < 10 else 60 * minutes)
    )


def human_count(count: float) -> str:
    """A whole number with thousands separators, or `2.9 M`, `8.0 B` above a million."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    if count >= 1e6:
        return f"{count / 1e6:.1f} M"
    return f"{round(count):,}"


def human_rows(count: int) -> str:
    """`1 row`, `2,000 rows`."""
    return "1 row" if count == 1 else f"{count:,} rows"


def common_prefix(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low if first[low:high] != second[low:high] else high
