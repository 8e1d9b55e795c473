"""Well-known NVIDIA cards by their public figures, so that a plan can be made for one to rent or buy."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache

from ollama_tune.core.errors import UsageError
from ollama_tune.core.machine.values import Gpu

MIB, GIB = 1 << 20, 1 << 30
DRIVER_BYTES = GIB // 2
DRIVER_SHARE = 0.012
"""Total less free memory of an idle card without a screen: at least half a GiB, 1 GiB of 80 (published)."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*g(?:i?b)?", re.IGNORECASE)
_MAKERS = {"nvidia", "geforce", "tesla", "quadro", "rtx", "gtx", "generation", "edition", "gpu"}
_PORTABLE = {"laptop", "mobile", "max"}


@dataclass(frozen=True)
class Card:
    """A card: memory in MiB as the driver reports it, compute capability, watts, and its speed.

    `teraflops` is the dense 16-bit rate with 32-bit sums (halved on GeForce cards), `bandwidth` is GB/s.
    """

    name: str
    mib: int
    capability: tuple[int, int]
    watts: int
    teraflops: float
    bandwidth: int

    @property
    def words(self) -> frozenset[str]:
        """The words that a name must hold to mean this card."""
        return _words(self.name)


_VOLTA, _TURING, _A100, _AMPERE, _ADA = (7, 0), (7, 5), (8, 0), (8, 6), (8, 9)
_HOPPER, _B200, _BLACKWELL = (9, 0), (10, 0), (12, 0)

CARDS = (
    Card("V100", 16384, _VOLTA, 300, 125, 900),
    Card("V100 32GB", 32768, _VOLTA, 300, 125, 900),
    Card("T4", 15360, _TURING, 70, 65, 320),
    Card("RTX 2080 Ti", 11264, _TURING, 250, 53.8, 616),
    Card("A100", 40960, _A100, 400, 312, 1555),
    Card("A100 80GB", 81920, _A100, 400, 312, 2039),
    Card("A30", 24576, _A100, 165, 165, 933),
    Card("A10", 23028, _AMPERE, 150, 125, 600),
    Card("A10G", 23028, _AMPERE, 300, 70, 600),
    Card("A40", 46068, _AMPERE, 300, 149.7, 696),
    Card("RTX A4000", 16376, _AMPERE, 140, 76.7, 448),
    Card("RTX A5000", 24564, _AMPERE, 230, 111.1, 768),
    Card("RTX A6000", 49140, _AMPERE, 300, 154.8, 768),
    Card("RTX 3060", 12288, _AMPERE, 170, 25.5, 360),
    Card("RTX 3060 Ti", 8192, _AMPERE, 200, 32.4, 448),
    Card("RTX 3070", 8192, _AMPERE, 220, 40.6, 448),
    Card("RTX 3080", 10240, _AMPERE, 320, 59.5, 760),
    Card("RTX 3080 Ti", 12288, _AMPERE, 350, 68.2, 912),
    Card("RTX 3090", 24576, _AMPERE, 350, 71.2, 936),
    Card("RTX 3090 Ti", 24564, _AMPERE, 450, 80.0, 1008),
    Card("L4", 23034, _ADA, 72, 121, 300),
    Card("L40", 46068, _ADA, 300, 181, 864),
    Card("L40S", 46068, _ADA, 350, 362, 864),
    Card("RTX 4000 Ada", 20475, _ADA, 130, 107, 360),
    Card("RTX 5000 Ada", 32760, _ADA, 250, 261, 576),
    Card("RTX 6000 Ada", 49140, _ADA, 300, 364, 960),
    Card("RTX 4060", 8188, _ADA, 115, 30.2, 272),
    Card("RTX 4060 Ti", 8188, _ADA, 160, 44.1, 288),
    Card("RTX 4060 Ti 16GB", 16380, _ADA, 165, 44.1, 288),
    Card("RTX 4070", 12282, _ADA, 200, 58.3, 504),
    Card("RTX 4070 Super", 12282, _ADA, 220, 71.0, 504),
    Card("RTX 4070 Ti", 12282, _ADA, 285, 80.2, 504),
    Card("RTX 4070 Ti Super", 16376, _ADA, 285, 88.2, 672),
    Card("RTX 4080", 16376, _ADA, 320, 97.5, 717),
    Card("RTX 4080 Super", 16376, _ADA, 320, 104.4, 736),
    Card("RTX 4090", 24564, _ADA, 450, 165.2, 1008),
    Card("H100", 81559, _HOPPER, 700, 989, 3352),
    Card("H100 PCIe", 81559, _HOPPER, 350, 756, 2039),
    Card("H100 NVL", 95830, _HOPPER, 400, 835, 3938),
    Card("H200", 143771, _HOPPER, 700, 989, 4800),
    Card("GH200", 97871, _HOPPER, 700, 989, 4000),
    Card("B200", 183359, _B200, 1000, 2250, 8000),
    Card("RTX 5060 Ti 16GB", 16311, _BLACKWELL, 180, 47.4, 448),
    Card("RTX 5070", 12227, _BLACKWELL, 250, 61.7, 672),
    Card("RTX 5070 Ti", 16303, _BLACKWELL, 300, 87.9, 896),
    Card("RTX 5080", 16303, _BLACKWELL, 360, 112.6, 960),
    Card("RTX 5090", 32607, _BLACKWELL, 575, 209.5, 1792),
    Card("RTX PRO 6000 Blackwell", 97887, _BLACKWELL, 600, 503, 1792),
)


def gpu_of(text: str) -> Gpu:
    """A card by its name (`RTX 4090`, `A100 80GB`) or only its memory (`24GiB`), idle and without a screen.

    `free` is its memory less what driver and system keep. An unknown name is a `UsageError` that names
    the nearest; of a card known by its memory alone nothing else is assumed.
    """
    size = _SIZE.fullmatch(text.strip())
    if size is not None:
        return _sized(text.strip(), float(size[1]))
    card = find_card(text)
    if card is None:
        raise UsageError(f"The card {text!r} is not known.", _advice(text))
    total = card.mib * MIB
    return Gpu(0, "", card.name, total, _free(total), card.capability, power_limit=float(card.watts))


@lru_cache(64)
def find_card(name: str) -> Card | None:
    """The card that a name means, as people or the driver write it; of two that match the more exact one.

    Cards of portable computers share the names of larger ones and are none of these.
    """
    given = _words(name)
    if given & _PORTABLE:
        return None
    matching = [card for card in CARDS if card.words <= given]
    return max(matching, key=lambda card: len(card.words), default=None)


def _words(name: str) -> frozenset[str]:
    """Words of a name without the maker's; `80 GB` and `80GiB` are one word, `rtx4070ti` three."""
    text = re.sub(r"(\d+)\s*gi?b?\b", r"\1gb", name.lower())
    text = re.sub(r"(rtx|gtx)(?=\d)", r"\1 ", re.sub(r"(\d{4})(?=ti|super)", r"\1 ", text))
    return frozenset(re.findall(r"[a-z0-9]+", text)) - _MAKERS


def _sized(text: str, size: float) -> Gpu:
    total = int(size * GIB)
    if not GIB <= total <= 2048 * GIB:
        raise UsageError(f"No GPU has {text} of memory.", "Write it as 24GiB, or name the card.")
    return Gpu(0, "", f"a GPU with {size:g} GiB", total, _free(total), None)


def _free(total: int) -> int:
    return total - max(DRIVER_BYTES, int(DRIVER_SHARE * total))


def _advice(text: str) -> str:
    known = {card.name.lower(): card.name for card in CARDS}
    close = difflib.get_close_matches(text.strip().lower(), known, n=2, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(known[name] for name in close)}? Or give its memory: 24GiB."
    return "Give its memory, such as 24GiB, or a name such as RTX 4090, A100 80GB or L40S."
