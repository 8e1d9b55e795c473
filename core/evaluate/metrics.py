"""How answers are judged."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

ORDER, BETA = 6, 2
LONGEST = 10_000


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


def similarity(answer: str, reference: str) -> float:
    """How alike two texts are, from 0 to 1 (the same but for white space): chrF (Popović 2015, β = 2).

    It counts the runs of one to six characters that both have, white space left out, so it needs no words
    and holds for every script; what is missing weighs more than what is too much. Only the first 10,000
    characters of each are compared.
    """
    said, wanted = ("".join(normalised(text[:LONGEST]).split()) for text in (answer, reference))
    if said == wanted:
        return 1.0
    orders = [n for n in range(1, ORDER + 1) if len(said) >= n and len(wanted) >= n]
    if not orders:
        return 0.0
    shares = [_shares(_runs(said, n), _runs(wanted, n)) for n in orders]
    precision, recall = (sum(column) / len(orders) for column in zip(*shares, strict=True))
    weighted = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / weighted if weighted else 0.0


def _runs(text: str, length: int) -> Counter[str]:
    return Counter(text[i : i + length] for i in range(len(text) - length + 1))


def _shares(said: Counter[str], wanted: Counter[str]) -> tuple[float, float]:
    """Precision and recall of the runs."""
    common = sum((said & wanted).values())
    return common / sum(said.values()), common / sum(wanted.values())
