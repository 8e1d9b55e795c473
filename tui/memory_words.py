"""The parts of a run's memory in four plain words, the same wherever memory is shown."""

from __future__ import annotations

from collections.abc import Mapping

PARTS = {
    "model": ("weights",),
    "training": ("adapter", "gradients", "optimizer"),
    "rows": ("activations", "loss", "workspaces"),
    "libraries": ("libraries", "other", "context", "cache"),
}
"""A plain word -> the technical parts that it stands for, as plans and workers name them."""
_WORDS = {name: word for word, names in PARTS.items() for name in names}


def word_of(name: str) -> str:
    """The plain word for a technical part; one that is not known stands for itself."""
    return _WORDS.get(name, name)


def grouped(parts: Mapping[str, int]) -> dict[str, int]:
    """Bytes by plain word, in the order of the words, from bytes by technical part."""
    sums = dict.fromkeys([*PARTS, *map(word_of, parts)], 0)
    for name, count in parts.items():
        sums[word_of(name)] += count
    return {word: count for word, count in sums.items() if count}
