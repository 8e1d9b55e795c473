"""A very small text grammar: patterns with alternatives and named words."""

from __future__ import annotations

import random
import re

Exchange = tuple[str, str]
"""What the guest says and what the café answers."""

_ALTERNATIVES = re.compile(r"\(([^()]*)\)")


def say(rng: random.Random, pattern: str, **words: object) -> str:
    """One text of a pattern: `(a|b)` chooses a or b, innermost first; then `{name}` is filled in.

    Words are filled in last, so their own text is never read as a pattern.
    """
    count = 1
    while count:
        pattern, count = _ALTERNATIVES.subn(lambda match: rng.choice(match[1].split("|")), pattern)
    return sentence(" ".join(pattern.format(**words).split()))


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def chosen(rng: random.Random, patterns: tuple[str, ...] | list[str], **words: object) -> str:
    """One text of one of several patterns."""
    return say(rng, rng.choice(patterns), **words)


def joined(parts: list[str], last: str = " and ") -> str:
    """The parts as a spoken list: `a, b and c`."""
    return last.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
