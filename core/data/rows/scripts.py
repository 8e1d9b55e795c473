"""Which scripts a text is written in: Latin, Han, Cyrillic and so on, as shares of its letters."""

from __future__ import annotations

import bisect
from collections import Counter

_BLOCKS = (
    (0x0041, 0x02B8, "Latin"),
    (0x0370, 0x03FF, "Greek"),
    (0x0400, 0x052F, "Cyrillic"),
    (0x0530, 0x058F, "Armenian"),
    (0x0590, 0x05FF, "Hebrew"),
    (0x0600, 0x06FF, "Arabic"),
    (0x0700, 0x074F, "Syriac"),
    (0x0750, 0x077F, "Arabic"),
    (0x0780, 0x07BF, "Thaana"),
    (0x08A0, 0x08FF, "Arabic"),
    (0x0900, 0x097F, "Devanagari"),
    (0x0980, 0x09FF, "Bengali"),
    (0x0A00, 0x0A7F, "Gurmukhi"),
    (0x0A80, 0x0AFF, "Gujarati"),
    (0x0B00, 0x0B7F, "Odia"),
    (0x0B80, 0x0BFF, "Tamil"),
    (0x0C00, 0x0C7F, "Telugu"),
    (0x0C80, 0x0CFF, "Kannada"),
    (0x0D00, 0x0D7F, "Malayalam"),
    (0x0D80, 0x0DFF, "Sinhala"),
    (0x0E00, 0x0E7F, "Thai"),
    (0x0E80, 0x0EFF, "Lao"),
    (0x0F00, 0x0FFF, "Tibetan"),
    (0x1000, 0x109F, "Burmese"),
    (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"),
    (0x1200, 0x139F, "Ethiopic"),
    (0x1780, 0x17FF, "Khmer"),
    (0x1800, 0x18AF, "Mongolian"),
    (0x1E00, 0x1EFF, "Latin"),
    (0x1F00, 0x1FFF, "Greek"),
    (0x3005, 0x3007, "Han"),
    (0x3041, 0x309F, "Hiragana"),
    (0x30A0, 0x30FF, "Katakana"),
    (0x3105, 0x312F, "Bopomofo"),
    (0x3130, 0x318F, "Hangul"),
    (0x31F0, 0x31FF, "Katakana"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"),
    (0xAC00, 0xD7FF, "Hangul"),
    (0xF900, 0xFAFF, "Han"),
    (0xFB1D, 0xFB4F, "Hebrew"),
    (0xFB50, 0xFDFF, "Arabic"),
    (0xFE70, 0xFEFE, "Arabic"),
    (0xFF21, 0xFF5A, "Latin"),
    (0xFF66, 0xFF9D, "Katakana"),
    (0xFFA0, 0xFFDC, "Hangul"),
    (0x20000, 0x323AF, "Han"),
)
"""First and last code point and the script, from the block and script tables of Unicode 16."""

_STARTS = [first for first, _, _ in _BLOCKS]
ENOUGH = 2_000_000
"""Characters after which the shares do not change any more."""
EVERY = 16
"""Of many rows, one in so many is looked at."""
ALL = 500
"""So many first rows are looked at one and all."""


def script_of(character: str) -> str:
    """The script of a letter; empty for digits, marks and signs, which belong to all scripts."""
    if not character.isalpha():
        return ""
    at = bisect.bisect_right(_STARTS, ord(character)) - 1
    return _BLOCKS[at][2] if at >= 0 and ord(character) <= _BLOCKS[at][1] else "other"


class ScriptMix:
    """Counts the letters of a sample of rows by script."""

    def __init__(self) -> None:
        self._letters: Counter[str] = Counter()
        self._rows = self._seen = 0

    def add(self, text: str) -> None:
        """One row's text; most are passed over once there are many."""
        self._rows += 1
        if self._seen < ENOUGH and (self._rows <= ALL or self._rows % EVERY == 0):
            self._letters.update(text[:ENOUGH])
            self._seen += len(text)

    def shares(self) -> tuple[tuple[str, float], ...]:
        """(script, share of all letters), the most frequent first; empty where there is no letter."""
        counts: Counter[str] = Counter()
        for character, count in self._letters.items():
            counts[script_of(character)] += count
        del counts[""]
        letters = sum(counts.values())
        return tuple((script, count / letters) for script, count in counts.most_common())


def spoken(shares: tuple[tuple[str, float], ...], most: int = 4) -> str:
    """The mix in words, such as `Latin 92 %, Han 6 %, Cyrillic 2 %`; shares below 0.5 % are left out."""
    named = [f"{script} {share:.0%}".replace("%", " %") for script, share in shares[:most] if share >= 0.005]
    return ", ".join(named)
