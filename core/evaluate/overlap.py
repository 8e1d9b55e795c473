"""How much two texts have in common, word by word, in any script: token F1 and ROUGE-L."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

LONGEST = 10_000
"""Words of a text that are compared."""
END_OF_THOUGHT = "</think>"
_ASCII = re.compile(r"[a-z0-9]+")
_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x30FF),  # kana, iteration marks
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts that put no blanks between words; each of their characters counts as a word."""
_STARTS = [first for first, _ in _WITHOUT_BLANKS]


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and their marks, without regard to case (NFKC).

    Where a script puts no blanks between words, each character is one. Punctuation is left out.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    found = _ASCII.findall(text) if text.isascii() else _any_script(text)
    return found[:LONGEST]


def _any_script(text: str) -> list[str]:
    found: list[str] = []
    open_word = False
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M" and found:
            found[-1] += character
        elif kind not in "LN":
            open_word = False
        elif _stands_alone(character):
            found.append(character)
            open_word = False
        elif open_word:
            found[-1] += character
        else:
            found.append(character)
            open_word = True
    return found


def _stands_alone(character: str) -> bool:
    place = bisect_right(_STARTS, ord(character)) - 1
    return place >= 0 and ord(character) <= _WITHOUT_BLANKS[place][1]


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, in whatever order; 1 where neither has any.

    As SQuAD's F1 (Rajpurkar et al. 2016), but with the words of every language and no article left out.
    """
    said, wanted = words(answer), words(reference)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004) with equal weights: F1 of the longest common subsequence of the words."""
    said, wanted = words(answer), words(reference)
    return _f1(common_subsequence(said, wanted), len(said), len(wanted))


def without_thoughts(answer: str, reference: str) -> str:
    """What an answer says behind `</think>`, where the wanted text has no thoughts.

    Nothing where it was cut off amid them.
    """
    if END_OF_THOUGHT in reference:
        return answer
    _, mark, said = answer.rpartition(END_OF_THOUGHT)
    if not mark:
        return "" if said.lstrip().startswith("<think>") else said
    return said.lstrip()


def _f1(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if said or wanted else 1.0


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """How long the longest common subsequence of two lists is.

    A row of the usual table is kept as the bits of one whole number (Crochemore et al. 2001), so that a
    long answer takes milliseconds.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    row = every = (1 << len(one)) - 1
    for word in other:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(one) - row.bit_count()
