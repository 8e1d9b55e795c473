"""How answers are judged."""

from __future__ import annotations

import math
import unicodedata


def normalised(text: str) -> str:
    """The text in Unicode's compatibility form (NFKC), stripped, with single spaces; case is kept."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact_match(answer: str, reference: str) -> bool:
    """True when both texts are the same but for white space and Unicode's spellings of one character."""
    return normalised(answer) == normalised(reference)


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): how far a rate measured on few rows can be trusted."""
    if not rows:
        return 0.0, 1.0
    z, share = 1.959964, hits / rows
    centre = share + z * z / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
